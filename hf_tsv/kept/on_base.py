"""Adapters on the base model itself, for jobs that make no model of their own."""

from hf_tsv.kept.adapters import compress_tasks
from hf_tsv.kept.as_adapter import write_as_adapter
from hf_tsv.kept.settings import read_settings
from hf_tsv.kept.workplace import Workplace
from hf_tsv.linalg.ranks import Energy, RankChoice, rank_choice
from hf_tsv.lora.write.plan import BaseRef
from hf_tsv.merging.plan import Plan
from hf_tsv.record import AdapterReports
from hf_tsv.sources.models import Source


def write_on_base(plan: Plan, base: Source, work: Workplace) -> AdapterReports:
    """Write an adapter for every task or, where the recipe says so, one adapter of the merge.

    Returns:
        The reports of `compress_tasks`. Errors are those of `compress_tasks`, too.
    """
    base_ref = BaseRef(base.ref.path, base.revision)
    if not plan.makes_one_adapter:
        return compress_tasks(plan, base_ref, read_settings(plan), work)
    rule: RankChoice = Energy(1.0)  # the whole change of the merge
    if plan.recipe.output:
        nbytes = sum(plan.base.info(name).nbytes for name in plan.base.names())
        rule = rank_choice(plan.recipe.output, num_tasks=1, checkpoint_bytes=nbytes)
    return write_as_adapter(plan, base_ref, rule, work)
