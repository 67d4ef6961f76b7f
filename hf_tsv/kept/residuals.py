"""Residuals: adapters on the merged model, one per task.

Where a recipe says `tsv_c`, the merged model has the base's weight, and the adapter holds the task's whole change.
With `residuals`, the adapter also holds the part of the task's change that the merge lost in other tensors.
"""

from dataclasses import replace

from hf_tsv.checkpoints.folder import open_checkpoint
from hf_tsv.checkpoints.view import View
from hf_tsv.kept.adapters import compress_tasks
from hf_tsv.kept.settings import read_settings
from hf_tsv.kept.workplace import Workplace
from hf_tsv.lora.write.plan import BaseRef
from hf_tsv.merging.plan import KEEP, Plan
from hf_tsv.record import AdapterReports


def write_residuals(plan: Plan, work: Workplace) -> AdapterReports:
    """Write the adapters into the merged model's folder, and have PEFT load each of them on the merged model.

    Args:
        plan: The plan of the merge.
        work: The workplace. The merged model's weights and configuration are in its output already.

    Returns:
        The reports of `compress_tasks`. Errors are those of `compress_tasks`, too.

    Raises:
        PlanError: as for `read_settings`.
    """
    settings = read_settings(plan)
    merged = open_checkpoint(work.out)

    steps = []
    for step in plan.steps:
        info = merged.info(step.name)
        # A tensor without a rule goes into no adapter.
        method = step.method if step.name in settings.rules else KEEP
        steps.append(replace(step, info=info, out=info, method=method))
    # A source adapter stores a change of the base model. Here the merged model is the base, so `View` hides that the
    # source is an adapter, and its weights are read like a whole model's.
    finetuned = tuple(View(checkpoint) for checkpoint in plan.finetuned)
    plan_on_merged = replace(plan, base=merged, finetuned=finetuned, steps=tuple(steps))
    # The merged model is on this machine, wherever its sources were read from.
    work_on_merged = replace(work, folders={**work.folders, None: work.out}, in_order=False)
    base = BaseRef(str(work.staging.final))
    return compress_tasks(plan_on_merged, base, settings, work_on_merged)
