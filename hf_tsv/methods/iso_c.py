"""Iso-C: isotropic merging in the common subspace."""

from torch import Tensor

from hf_tsv.linalg import truncated_svd
from hf_tsv.methods import Deltas, Matrices, Scale, merge_method
from hf_tsv.methods._spectral import Tolerance, mean_of_rest


@merge_method(
    "iso_c",
    paper="https://arxiv.org/abs/2502.04959",
    matrices=Matrices(),
    cost="1 singular value decomposition of a matrix, however many models",
)
def iso_c(deltas: Deltas, *, scale: Scale = 1.0, rest_scale: Scale = 1.0, tolerance: Tolerance = 1e-6) -> Tensor:
    """Add up the task matrices and replace all singular values of the sum by their mean.

    M = scale * mean(s) U Vh with U diag(s) Vh = sum_t w_t Delta_t (Marczak et al. 2025, section 4.1).
    Non-matrix tensors get the mean of the deltas.

    Args:
        deltas: T task matrices, (m, n) each, or deltas of a non-matrix tensor.
        scale: Factor on merged matrices (the paper's alpha, chosen on validation data: 0.8 to 1.5).
        rest_scale: Factor on the mean of non-matrix tensors.
        tolerance: Singular values below this share of the largest, whose vectors are arbitrary, are left out of M and
            mean(s). 0 keeps all, as the authors' code does.
    """
    if not deltas.is_matrix:
        return mean_of_rest(deltas, rest_scale)
    total = truncated_svd(deltas.weighted_sum(), min(deltas.shape), rtol=tolerance)
    if not total.s.numel():
        return deltas.zeros()
    deltas.notes["rank"] = total.s.numel()
    return (total.u * (scale * total.s.mean())) @ total.vh
