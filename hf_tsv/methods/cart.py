"""CART: Centered Arithmetic with Rank-reduced Task vectors."""

import math
from typing import Annotated

from annotated_types import Gt, Le
from torch import Tensor

from hf_tsv.linalg import truncated_svd
from hf_tsv.methods import Deltas, Matrices, Scale, merge_method
from hf_tsv.methods._spectral import mean_of_rest


@merge_method(
    "cart",
    paper="https://arxiv.org/abs/2412.12153",
    matrices=Matrices(),
    cost="T singular value decompositions of a matrix",
)
def cart(
    deltas: Deltas, *, rank_fraction: Annotated[float, Gt(0), Le(1)] = 0.04, scale: float = 0.1, rest_scale: Scale = 1.0
) -> Tensor:
    """Add to the mean a low-rank approximation of each task's difference from it.

    M = mean + scale * sum_t SVD_k(Delta_t - mean), SVD_k the k leading triplets (Choi et al. 2024). Non-matrix tensors
    get the mean of the deltas.

    Args:
        deltas: T task matrices, (m, n) each, or deltas of a non-matrix tensor.
        rank_fraction: k as a share of min(m, n), rounded up. The paper chooses it and `scale` on validation data;
            the defaults are those of Panariello et al. 2025 (Core Space).
        scale: Factor on the low-rank differences (the paper's lambda).
        rest_scale: Factor on the mean of non-matrix tensors.
    """
    if not deltas.is_matrix:
        return mean_of_rest(deltas, rest_scale)
    if not deltas.active:
        return deltas.zeros()
    # Tasks of weight 0 don't count in the mean either.
    mean = deltas.weighted_sum().div_(len(deltas.active))
    rank = math.ceil(rank_fraction * min(deltas.shape))
    merged = mean.clone()
    for t in deltas.active:
        delta = deltas.scaled(t).sub_(mean)  # (m, n): the task's difference from the mean
        with deltas.naming(t):
            own = truncated_svd(delta, rank, mode=deltas.svd)
        merged.addmm_(own.u * own.s, own.vh, alpha=scale)
    return merged
