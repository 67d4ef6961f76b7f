"""SVC: singular value calibration of a merged matrix."""

from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from hf_tsv.linalg import Factors, truncated_svd
from hf_tsv.methods import Deltas, Matrices, Scale, merge_method
from hf_tsv.methods._spectral import Merged, merged_by, scaled_deltas, survey_of


@merge_method(
    "svc",
    paper="https://arxiv.org/abs/2602.05536",
    matrices=Matrices(),
    survey=survey_of,
    cost="the other method's, 1 singular value decomposition and T products of a matrix",
)
def svc(
    deltas: Deltas,
    *,
    of: Merged = "task_arithmetic",
    alpha: Annotated[float, Gt(0)] = 1.0,
    scale: Scale = 1.0,
) -> Tensor:
    """Merge by another method, then shrink the singular values of directions that several tasks share.

    With M = U diag(s) Vh merged, a task has <u_r^T M, u_r^T Delta_t> / |u_r^T Delta_t|^2 = p_rt in direction r, and
    s_r <- s_r T / sum_t max(alpha, p_rt) (Li et al. 2026, algorithm 1). Non-matrix tensors are merged by the other
    method alone.

    Args:
        deltas: T task matrices, (m, n) each, or deltas of a non-matrix tensor.
        of: The method that merges first, with its defaults.
        alpha: Minimum of p_rt in the sum. With 1, singular values only shrink; below 1, weak ones grow.
        scale: Factor on the merged delta.
    """
    merged = merged_by(of, deltas)
    if not deltas.is_matrix:
        return merged.mul_(scale)
    svd = truncated_svd(merged, min(deltas.shape))
    if not svd.s.numel():
        return merged
    counts = [_projections(svd, delta).clamp(min=alpha) for delta in scaled_deltas(deltas)]  # (k,) each
    factors = scale * len(counts) / torch.stack(counts).sum(0)  # (k,)
    return (svd.u * (svd.s * factors.to(svd.s.dtype))) @ svd.vh


def _projections(merged: Factors, delta: Tensor) -> Tensor:
    """Return one task's p_r for every direction r, (k,) float64; 0 where the task has no change."""
    response = merged.u.T @ delta  # (k, n)
    squares = torch.linalg.vector_norm(response, dim=1, dtype=torch.float64).square()  # (k,)
    products = merged.s * (merged.vh * response).sum(1, dtype=torch.float64)  # (k,)
    return torch.where(squares > 0, products / squares.masked_fill(squares == 0, 1.0), 0.0)
