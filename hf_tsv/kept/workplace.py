"""Where, and with what, a job makes what single tasks keep."""

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
    """Where, and with what, a job makes what single tasks keep.

    Attributes:
        staging: The job's working folder; what is written to its `out` becomes the output.
        identity: What the job is, for its journal.
        folders: Folders of the models on this machine, by task; the base's under None.
        resources: What may be used of the machine.
        progress: Notified of the work done.
        in_order: Whether to take tensors in the order of their files, for sources that are read over a network, instead
            of the largest first.
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
        """The tensors found in one stage of the job; those of an earlier start of it are there already."""
        return Findings(self.staging, self.identity, stage, infos)

    def run(self, plan: Plan, steps: Sequence[Step], work_on: Callable[[Step], None], *, quiet: bool = False) -> None:
        """Work on every step, within the memory and the workers that the job has."""
        progress = Silent() if quiet else self.progress
        each_step(steps, work_on, plan, self.resources, progress, in_order=self.in_order)
