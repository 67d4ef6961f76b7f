"""A merge as an adapter on the base, instead of a checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_tsv.checkpoints.protocol import TensorInfo
from hf_tsv.files.names import ADAPTERS
from hf_tsv.kept.adapters import compress_tasks
from hf_tsv.kept.options import compressing
from hf_tsv.linalg.ranks import Energy, FixedRank
from hf_tsv.lora.write.plan import BaseRef
from hf_tsv.merging.engine import merge_step, surveys
from hf_tsv.merging.plan import Plan
from hf_tsv.merging.progress import Progress
from hf_tsv.merging.resources import Resources
from hf_tsv.methods.tsv_c import tsv_c
from hf_tsv.staging.folder import Staging

MERGED = "merged"


def write_as_adapter(
    plan: Plan,
    staging: Staging,
    identity: Mapping[str, str],
    base: BaseRef,
    folders: Mapping[str | None, Path],
    rank: int | None,
    resources: Resources,
    progress: Progress,
    *,
    in_order: bool = False,
) -> dict[str, dict[str, Any]]:
    """Write what a merge changes of the base as a PEFT adapter, and have PEFT load it.

    Its factors are the merged change's leading singular triplets, which no other factors of that rank come nearer to.
    Every merged tensor is computed twice: for its rank and for its factors.

    Args:
        plan: The merge; its output in float32, so that the change is not rounded to the base's dtype.
        staging: The run's working folder, in which the adapter's files come to lie in what it publishes.
        identity: What the run is, for its journal.
        base: What the adapter calls its base.
        folders: Where the base (None) lies.
        rank: Most triplets of a matrix; all that it has unless given. Of LoRA adapters of rank r these are at most T r.
        resources: What may be used of the machine.
        progress: Told of the work done.
        in_order: As in `compress_tasks`.

    Returns:
        As `compress_tasks`, whose errors these are too; the one task is called `merged`.
    """
    merged = _Merged(plan, resources, progress)
    steps = []
    for step in plan.steps:
        if step.is_merged:
            step = replace(step, method=tsv_c.name, weights=(1.0,), parameters={})
        steps.append(step)
    as_task = replace(plan, tasks=(MERGED,), finetuned=(merged,), steps=tuple(steps), parts=())
    options = compressing(plan.recipe, FixedRank(rank) if rank else Energy(1.0), profiles=("faithful",))
    report = compress_tasks(as_task, folders, staging, identity, base, options, resources, progress, in_order=in_order)
    out, folder = staging.out, staging.out / ADAPTERS["faithful"]
    for file in (folder / MERGED).iterdir():
        file.rename(out / file.name)
    (folder / MERGED).rmdir()
    folder.rmdir()
    return report


class _Merged:
    """The merged model, of which every tensor is merged when it is read."""

    label = "the merged model"

    def __init__(self, plan: Plan, resources: Resources, progress: Progress) -> None:
        self._plan = plan
        self._steps = {step.name: step for step in plan.steps}
        self._surveys = surveys(plan, plan.steps, resources, progress)
        # A stack's matrices are read one after another, and each is asked for more than once.
        self._whole = lru_cache(maxsize=resources.workers)(self._computed)

    def names(self) -> Sequence[str]:
        return self._plan.base.names()

    def info(self, name: str) -> TensorInfo:
        return self._steps[name].out

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        whole = self._whole(name)
        return (whole[slice(*rows)] if rows else whole).clone()

    def will_need(self, name: str) -> None:
        for checkpoint in self._plan.finetuned:
            checkpoint.will_need(name)

    def fingerprint(self) -> str:
        return "\0".join(checkpoint.fingerprint() for checkpoint in (self._plan.base, *self._plan.finetuned))

    def _computed(self, name: str) -> Tensor:
        step = self._steps[name]
        return merge_step(self._plan, step, self._surveys(step))[0]
