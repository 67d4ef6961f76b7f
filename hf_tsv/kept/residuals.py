"""What a merge leaves to each task: adapters on the merged model.

Where a recipe says `tsv_c`, the merged model has the base's weight and the adapter all that the task changed; with
`residuals` the adapter also holds what the merge lost of the task elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_tsv.checkpoints.folder import open_checkpoint
from hf_tsv.checkpoints.protocol import AdapterCheckpoint, Checkpoint, TensorInfo
from hf_tsv.errors import PlanError
from hf_tsv.kept.adapters import compress_tasks
from hf_tsv.kept.options import compressing
from hf_tsv.linalg.ranks import Budget, RankChoice, rank_choice
from hf_tsv.lora.skeleton import check_installed
from hf_tsv.lora.write.plan import BaseRef
from hf_tsv.merging.plan import KEEP, Plan, Step
from hf_tsv.merging.progress import Progress
from hf_tsv.merging.resources import Resources
from hf_tsv.staging.folder import Staging


def rules_of(plan: Plan) -> dict[str, RankChoice]:
    """The rule for the ranks of every tensor whose change goes into adapters; empty for a merge without any.

    Raises:
        PlanError: two budgets: an adapter has one.
    """
    nbytes = sum(plan.base.info(name).nbytes for name in plan.base.names())
    given: dict[str, Mapping[str, Any]] = {}
    for step in plan.merged:
        if step.is_in_adapters:
            given[step.name] = step.parameters
        elif plan.recipe.residuals is not None:
            given[step.name] = plan.recipe.residuals
    rules = {
        name: rank_choice(rule, num_tasks=len(plan.tasks), checkpoint_bytes=nbytes) for name, rule in given.items()
    }
    budgets = sorted({rule.nbytes for rule in rules.values() if isinstance(rule, Budget)})
    if len(budgets) > 1:
        raise PlanError(f"{plan.recipe.source}: expected one budget for an adapter but got {budgets} bytes. Keep one")
    return rules


def check_residuals(plan: Plan) -> None:
    """Whether the adapters that a plan asks for can be made, as far as its headers tell.

    Raises:
        PlanError: as `rules_of`.
        CheckpointError: transformers or PEFT is not installed.
    """
    rules_of(plan)
    check_installed()


def write_residuals(
    plan: Plan,
    staging: Staging,
    identity: Mapping[str, str],
    folders: Mapping[str | None, Path],
    resources: Resources,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """Write the adapters into the merged model's folder, and have PEFT load each on it.

    Args:
        plan: The merge.
        staging: The run's working folder, with the merged model: weights and configuration.
        identity: What the run is, for its journal.
        folders: Where the fine-tuned models lie, by task.
        resources: What may be used of the machine.
        progress: Told of the work done.

    Returns:
        As `compress_tasks`, whose errors these are too.

    Raises:
        PlanError: as `rules_of`.
    """
    rules, merged = rules_of(plan), staging.out
    shared, base = open_checkpoint(merged), BaseRef(str(staging.final))

    def on_merged(step: Step) -> Step:
        info = shared.info(step.name)
        return replace(step, info=info, out=info, method=step.method if step.name in rules else KEEP)

    finetuned = tuple(_Whole(c) if isinstance(c, AdapterCheckpoint) else c for c in plan.finetuned)
    left = replace(plan, base=shared, finetuned=finetuned, steps=tuple(map(on_merged, plan.steps)))
    options = compressing(plan.recipe, rules)
    return compress_tasks(left, {**folders, None: merged}, staging, identity, base, options, resources, progress)


@dataclass(frozen=True)
class _Whole:
    """A fine-tuned model that is known as a change of the base, seen without that: another model is the base here."""

    model: Checkpoint

    @property
    def label(self) -> str:
        return self.model.label

    def names(self) -> Sequence[str]:
        return self.model.names()

    def info(self, name: str) -> TensorInfo:
        return self.model.info(name)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        return self.model.read(name, rows)

    def will_need(self, name: str) -> None:
        self.model.will_need(name)

    def fingerprint(self) -> str:
        return self.model.fingerprint()
