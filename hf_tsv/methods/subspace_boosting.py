"""Subspace Boosting: lift the small singular values of a merged matrix."""

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from hf_tsv.linalg import truncated_svd
from hf_tsv.methods import Deltas, Matrices, Scale, merge_method
from hf_tsv.methods._spectral import Merged, Tolerance, merged_by, survey_of


@merge_method(
    "subspace_boosting",
    paper="https://arxiv.org/abs/2506.16506",
    matrices=Matrices(),
    survey=survey_of,
    cost="the other method's, and 1 singular value decomposition of a matrix",
)
def subspace_boosting(
    deltas: Deltas,
    *,
    of: Merged = "task_arithmetic",
    beta: Annotated[float, Ge(0), Le(1)] = 0.01,
    scale: Scale = 1.0,
    tolerance: Tolerance = 1e-6,
) -> Tensor:
    """Merge by another method, then raise the small singular values of the result.

    Each is raised to the value at which a share of the sum is reached: s_i <- max(s_i, s_k) with k the first index
    where s_1 + ... + s_k >= beta * sum(s) (Skorobogat et al. 2025).
    Non-matrix tensors are merged by the other method alone.

    Args:
        deltas: T task matrices, (m, n) each, or deltas of a non-matrix tensor.
        of: The method that merges first, with its defaults.
        beta: Share of the sum of the singular values; the smaller it is, the more they are levelled.
        scale: Factor on the merged delta.
        tolerance: Singular values below this share of the largest, whose vectors are arbitrary, aren't raised. 0 raises
            all, as the authors' code does.
    """
    merged = merged_by(of, deltas)
    if not deltas.is_matrix:
        return merged.mul_(scale)
    svd = truncated_svd(merged, min(deltas.shape), rtol=tolerance)
    if not svd.s.numel():
        return merged
    sums = svd.s.double().cumsum(0)  # (k,)
    place = min(int(torch.searchsorted(sums, beta * sums[-1])), len(sums) - 1)
    return (svd.u * svd.s.clamp(min=float(svd.s[place])).mul_(scale)) @ svd.vh
