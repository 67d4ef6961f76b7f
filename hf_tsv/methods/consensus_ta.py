"""Consensus Merging on the sum of the task vectors."""

from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from hf_tsv.methods import Deltas, Scale, merge_method
from hf_tsv.methods._consensus import MaskLambda, keep_consensus


@merge_method(
    "consensus_ta", paper="https://arxiv.org/abs/2405.07813", elementwise=True, cost="every model is read twice"
)
def consensus_ta(
    deltas: Deltas, *, k: Annotated[int, Ge(0)] = 2, mask_lambda: MaskLambda = 0.4, scale: Scale = 1.0
) -> Tensor:
    """Add up the task vectors and keep the entries that at least k tasks use.

    theta = theta_0 + scale * m tau, tau = sum_t w_t tau_t, with m 1 where at least k TALL-masks are 1:
    |w_t tau_t| > mask_lambda_t |tau - w_t tau_t| (Wang et al. 2024, section 4).

    Args:
        deltas: T deltas of one tensor.
        k: Number of tasks that must use an entry. 1 drops catastrophic weights, which no task uses; 2 also drops
            selfish ones; 0 is Task Arithmetic.
        mask_lambda: The masks' lambda_t: the larger it is, the fewer entries a task uses. The paper chooses one per
            task from 0.2 to 0.6 on validation data.
        scale: Factor on the merged delta (the paper's alpha).
    """
    return keep_consensus(deltas, deltas.weighted_sum(), k, mask_lambda).mul_(scale)
