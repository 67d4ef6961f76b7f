"""Iso-CTS: isotropic merging in common and task-specific subspaces."""

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from hf_tsv.linalg import Factors, nearest_orthogonal, truncated_svd
from hf_tsv.methods import Deltas, Matrices, Scale, merge_method
from hf_tsv.methods._spectral import Tolerance, mean_of_rest


@merge_method(
    "iso_cts",
    paper="https://arxiv.org/abs/2502.04959",
    matrices=Matrices(),
    cost="T + 1 singular value decompositions and 2 polar factors of a matrix",
)
def iso_cts(
    deltas: Deltas,
    *,
    common_space_fraction: Annotated[float, Ge(0), Le(1)] = 0.8,
    scale: Scale = 1.0,
    rest_scale: Scale = 1.0,
    tolerance: Tolerance = 1e-6,
) -> Tensor:
    """Give most of the rank to what all tasks share, the rest to each task's own directions, all equally strong.

    Keep the sum's leading singular vectors and fill the rest of the rank with each task's own directions.
    With U_c the sum's leading left vectors and U_t diag(s_t) Vh_t the leading triplets of Delta_t - U_c U_c^T Delta_t,
    M = scale * mean(s) polar([U_1 ... U_T U_c]) polar([Vh_1; ...; Vh_T; Vh_c]) (Marczak et al. 2025, algorithm 2).
    Non-matrix tensors get the mean of the deltas.

    Args:
        deltas: T task matrices, (m, n) each, or deltas of a non-matrix tensor.
        common_space_fraction: Share of the rank given to the sum's vectors, before rounding so that the tasks share the
            rest evenly.
        scale: Factor on merged matrices (the paper's alpha, chosen on validation data: 1.1 to 1.9).
        rest_scale: Factor on the mean of non-matrix tensors.
        tolerance: Singular values below this share of their matrix's norm, whose vectors are arbitrary, are left out,
            as are directions almost absent from the joined vectors. 0 keeps all, as the authors' code does.
    """
    if not deltas.is_matrix:
        return mean_of_rest(deltas, rest_scale)
    side, num_tasks = min(deltas.shape), len(deltas)
    # The authors' round() may give the tasks together more than the whole rank.
    own_rank = min(round((side - int(side * common_space_fraction)) / num_tasks), side // num_tasks)
    common_rank = side - own_rank * num_tasks
    common = truncated_svd(deltas.weighted_sum(), common_rank, rtol=tolerance)
    parts = [_own(deltas, t, common.u, own_rank, tolerance) for t in deltas.active]
    parts.append(common)  # last, as in the paper: the order affects only rounding
    s = torch.cat([part.s for part in parts])  # (K,)
    deltas.notes["rank"] = [part.s.numel() for part in parts]
    if not s.numel():
        return deltas.zeros()
    left = nearest_orthogonal(torch.cat([part.u for part in parts], dim=1), tolerance=tolerance)  # (m, K)
    right = nearest_orthogonal(torch.cat([part.vh for part in parts]), tolerance=tolerance)  # (K, n)
    return left.mul_(scale * s.mean()) @ right


def _own(deltas: Deltas, t: int, common: Tensor, rank: int, tolerance: float) -> Factors:
    """Return a task's leading triplets outside the common space that are above the subtraction's rounding."""
    delta = deltas.scaled(t)
    floor = tolerance * float(torch.linalg.vector_norm(delta, dtype=torch.float64))
    with deltas.naming(t):
        outside = delta - common @ (common.T @ delta)  # (m, n)
        return truncated_svd(outside, rank, rtol=tolerance, floor=floor)
