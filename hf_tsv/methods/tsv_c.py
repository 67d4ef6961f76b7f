"""TSV-Compress: every task keeps its own change, in an adapter."""

from typing import Annotated

from annotated_types import Ge, Gt, Le
from torch import Tensor

from hf_tsv.methods._deltas import Deltas
from hf_tsv.methods._registry import always, merge_method

Share = Annotated[float, Gt(0), Le(1)]


@merge_method(
    "tsv_c",
    paper="https://arxiv.org/abs/2412.00081",
    elementwise=always,
    cost="1 singular value decomposition of a matrix and task",
)
def tsv_c(
    deltas: Deltas,
    *,
    rank: Annotated[int, Ge(1)] | None = None,
    fraction: Share | None = None,
    energy: Share | None = None,
    error: Share | None = None,
    budget: str | None = None,
) -> Tensor:
    """Keep the base model's weight, and each task's leading singular triplets beside it in the task's adapter.

    theta_t = theta_0 + U_k diag(s_k) Vh_k of each task matrix (Gargiulo et al. 2024, section 3.2). One rule for k at
    most is given; without any, k is the paper's min(m, n) / T. A model's weight doesn't matter here.

    Args:
        deltas: T deltas of one tensor.
        rank: Triplets kept.
        fraction: Share of min(m, n) kept.
        energy: The fewest triplets with this share of the squared change.
        error: The fewest triplets with at most this relative error.
        budget: As much as fits into a size such as 10MB, or a share of the model such as 10%, for the whole adapter.
    """
    return deltas.zeros()
