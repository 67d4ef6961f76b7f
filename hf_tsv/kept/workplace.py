"""The folders and resources with which a job makes the files that single tasks keep."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_tsv.checkpoints.protocol import TensorInfo
from hf_tsv.merging.plan import Plan, Step
from hf_tsv.merging.pool import each_step
from hf_tsv.merging.progress import Progress, Silent
from hf_tsv.merging.resources import Resources
from hf_tsv.staging.findings import Findings
from hf_tsv.staging.folder import Staging


@dataclass(frozen=True)
class Workplace:
    """The folders and resources with which a job makes the files that single tasks keep.

    Attributes:
        staging: The job's working folder; its `out` becomes the output.
        identity: The identity of the job, for its journal.
        folders: Folders of the models on this machine, by task; the base's is under None.
        resources: The workers, memory and device to use.
        progress: Notified of the work done.
        in_order: True to take tensors in the order of their files, for sources that are read over a network; False to
            take the largest first.
    """

    staging: Staging
    identity: Mapping[str, str]
    folders: Mapping[str | None, Path]
    resources: Resources
    progress: Progress
    in_order: bool = False

    @property
    def out(self) -> Path:
        return self.staging.out

    def open_findings(self, stage: str, infos: Sequence[TensorInfo]) -> Findings:
        """Open the findings of one stage of the job. Those of an earlier start of the job are there already."""
        return Findings(self.staging, self.identity, stage, infos)

    def run(self, plan: Plan, steps: Sequence[Step], work_on: Callable[[Step], None], *, quiet: bool = False) -> None:
        """Call `work_on` with every step, within the job's limits on memory and workers."""
        progress = Silent() if quiet else self.progress
        each_step(steps, work_on, plan, self.resources, progress, in_order=self.in_order)
