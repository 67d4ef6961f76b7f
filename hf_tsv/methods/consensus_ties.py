"""Consensus Merging on TIES' merged task vector."""

from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from hf_tsv.methods import Deltas, Scale, merge_method
from hf_tsv.methods._consensus import MaskLambda, keep_consensus
from hf_tsv.methods.ties import Density, Trim, ties


@merge_method(
    "consensus_ties",
    paper="https://arxiv.org/abs/2405.07813",
    survey=ties.survey,
    elementwise=ties.elementwise,
    cost="every model is read three times, first for the thresholds",
)
def consensus_ties(
    deltas: Deltas,
    *,
    k: Annotated[int, Ge(0)] = 2,
    mask_lambda: MaskLambda = 0.4,
    density: Density = 0.2,
    trim: Trim = "global",
    scale: Scale = 1.0,
) -> Tensor:
    """Merge by TIES, adding up what agrees, and keep the entries that at least k tasks use.

    As `consensus_ta`, with TIES' disjoint sum instead of the sum (Wang et al. 2024, section 4).

    Args:
        deltas: T deltas of one tensor.
        k: Number of tasks that must use an entry. 1 drops catastrophic weights, which no task uses; 2 also drops
            selfish ones; 0 is TIES.
        mask_lambda: The masks' lambda_t: the larger it is, the fewer entries a task uses.
        density: TIES' share of the entries that is kept, the largest by magnitude.
        trim: The range of that share, the task's whole vector (`global`) or each tensor (`tensor`), as for `ties`.
        scale: Factor on the merged delta (the paper's alpha).
    """
    merged = ties.fn(deltas, density=density, trim=trim, normalize=False)
    return keep_consensus(deltas, merged, k, mask_lambda).mul_(scale)
