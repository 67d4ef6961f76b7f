"""The nearest orthogonal matrix, and the product it is made for."""

import torch
from torch import Tensor

from hf_tsv.linalg._exact import checked_gram, dense_svd
from hf_tsv.linalg._gram import computable, leading_eigenpairs, tall, times
from hf_tsv.linalg._lapack import LinAlgError

RESOLVED = 1e-7  # of the largest singular value; its square is a hundred roundings of the Gram matrix


def nearest_orthogonal(a: Tensor, *, tolerance: float = 1e-7) -> Tensor:
    """The polar factor P Q^T of a = P diag(d) Q^T, without the directions that a hardly has.

    It is the matrix with orthonormal columns (rows, when a is wide) nearest to a; where directions are
    dropped, a partial isometry.

    Args:
        a: Matrix (p, q), float32 or float64, on any device and of any layout.
        tolerance: Directions with d <= tolerance * d_max are dropped: float32 vectors hold nothing there. With
            0 all are kept, and those of a rank-deficient matrix are arbitrary.

    Returns:
        (p, q) in a's dtype on a's device.

    Raises:
        MethodError: a holds NaN or infinity, or nothing could factor it.
    """
    if not a.numel():
        return a.clone()
    x = computable(a)
    t = tall(x)
    try:
        polar = _by_gram(t, tolerance)
    except LinAlgError:
        polar = _by_svd(t, tolerance)
    return (polar if x.shape[0] >= x.shape[1] else polar.T).contiguous().to(a.device)


def from_orthogonalised(u: Tensor, s: Tensor, vh: Tensor) -> Tensor:
    """u diag(s) vh, (m, n): the middle matrix is never formed, which would cost digits."""
    return (u * s) @ vh


def _by_gram(a: Tensor, tolerance: float) -> Tensor:
    """a (a^T a)^(-1/2) in float64: one product after the eigendecomposition of the small side."""
    if a.dtype == torch.float64:
        raise LinAlgError("a Gram matrix in float64 holds half of the digits")
    squares, vectors = leading_eigenpairs(checked_gram(a), a.shape[1])
    if tolerance < RESOLVED and squares[-1] <= RESOLVED**2 * squares[0]:
        raise LinAlgError("directions that a Gram matrix does not resolve")
    kept = squares > tolerance**2 * squares[0]
    quarter = vectors[:, kept] * squares[kept] ** -0.25
    polar = times(a, quarter @ quarter.T)
    if not abs(polar.norm() ** 2 - int(kept.sum())) < 0.5:
        raise LinAlgError("the eigenvectors are wrong")
    return polar


def _by_svd(a: Tensor, tolerance: float) -> Tensor:
    p, d, qh = dense_svd(a)
    kept = (d > tolerance * d[0]) if tolerance else torch.ones_like(d, dtype=torch.bool)
    return torch.mm(p * kept, qh).to(a.dtype)
