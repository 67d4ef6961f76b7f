"""The largest possible size of adapters, computed from headers alone."""

import torch

from hf_tsv.checkpoints.dtypes import DTYPES
from hf_tsv.kept.settings import read_settings
from hf_tsv.linalg.ranks import Budget, Spectrum, choose_ranks
from hf_tsv.merging.plan import Plan


def largest_adapter_bytes(plan: Plan) -> int:
    """Compute the size in bytes of a plan's largest faithful adapter: every tensor is changed, at full rank.

    Rules that depend on the singular values (`energy`, `error`) may keep all of them.

    Raises:
        PlanError: as for `read_settings`.
    """
    settings = read_settings(plan)
    factor_dtype = settings.dtype_of_factors
    total = settings.budget or 0  # covers all tensors whose rule is the budget
    for step in plan.merged:
        rule = settings.rules.get(step.name)
        if rule is None or isinstance(rule, Budget):
            continue
        view = step.view
        if view is None:
            total += step.info.nbytes
            continue
        item = step.info.nbytes // step.info.numel  # bytes per number
        # A flat spectrum needs the most triplets for any share of the energy.
        flat = Spectrum(
            values=torch.ones(min(view.m, view.n), dtype=torch.float64),
            m=view.m,
            n=view.n,
            factor_item=DTYPES[factor_dtype].nbytes if factor_dtype else item,
            whole_item=item,
        )
        rank = choose_ranks({step.name: flat}, rule)[step.name]
        total += view.count * flat.bytes_at(rank)  # every matrix of a stack has the same rank
    return total
