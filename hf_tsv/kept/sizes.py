"""How large adapters get at most, known from headers alone."""

import torch

from hf_tsv.checkpoints.dtypes import DTYPES
from hf_tsv.kept.settings import AdapterSettings, read_settings
from hf_tsv.linalg.ranks import Budget, RankChoice, Spectrum, choose_ranks
from hf_tsv.merging.plan import Plan, Step


def largest_adapter_bytes(plan: Plan) -> int:
    """Bytes that one faithful adapter of a plan takes at most: those of a task that changed every tensor at full rank.

    Rules that depend on the singular values (`energy`, `error`) may need all of them.

    Raises:
        PlanError: as `read_settings`.
    """
    settings = read_settings(plan)
    total = 0
    for step in plan.merged:
        rule = settings.rules.get(step.name)
        if rule is not None and not isinstance(rule, Budget):
            total += _largest_bytes(step, rule, settings)
    return total + (settings.budget or 0)


def _largest_bytes(step: Step, rule: RankChoice, settings: AdapterSettings) -> int:
    view = step.view
    if view is None:
        return step.info.nbytes
    item = step.info.nbytes // step.info.numel
    factor_dtype = settings.dtype_of_factors
    # A flat spectrum needs the most triplets for any share of the energy.
    flat = Spectrum(
        values=torch.ones(min(view.m, view.n), dtype=torch.float64),
        m=view.m,
        n=view.n,
        factor_item=DTYPES[factor_dtype].nbytes if factor_dtype else item,
        whole_item=item,
    )
    rank = choose_ranks({step.name: flat}, rule)[step.name]
    return view.count * flat.bytes_at(rank)
