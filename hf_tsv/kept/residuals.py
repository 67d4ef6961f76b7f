"""What a merge leaves to each task: adapters on the merged model.

Where a recipe says `tsv_c`, the merged model has the base's weight, and the adapter holds all that the task changed.
With `residuals`, the adapter also holds what the merge lost of the task elsewhere.
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
    """Write the adapters into the merged model's folder, and have PEFT load each on it.

    Args:
        plan: The merge.
        work: Where and with what; the merged model's weights and configuration are in its output already.

    Returns:
        As `compress_tasks`, whose errors these are too.

    Raises:
        PlanError: as `read_settings`.
    """
    settings = read_settings(plan)
    merged = open_checkpoint(work.out)

    steps = []
    for step in plan.steps:
        info = merged.info(step.name)
        # A tensor without a rule goes into no adapter.
        method = step.method if step.name in settings.rules else KEEP
        steps.append(replace(step, info=info, out=info, method=method))
    # An adapter's change is one of the base model. Here the merged model is the base, so each is seen as a plain one.
    finetuned = tuple(View(checkpoint) for checkpoint in plan.finetuned)
    plan_on_merged = replace(plan, base=merged, finetuned=finetuned, steps=tuple(steps))
    # The merged model lies on this machine, whatever its sources were read from.
    work_on_merged = replace(work, folders={**work.folders, None: work.out}, in_order=False)
    base = BaseRef(str(work.staging.final))
    return compress_tasks(plan_on_merged, base, settings, work_on_merged)
