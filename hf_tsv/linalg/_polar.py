"""The nearest orthogonal matrix."""

import torch
from torch import Tensor

from hf_tsv.linalg._exact import checked_gram, dense_svd
from hf_tsv.linalg._gram import computable, gram, leading_eigenpairs, symmetric, tall, times
from hf_tsv.linalg._lapack import LinAlgError

COARSE = 1e-3  # of the largest singular value; its square is ten roundings of a Gram matrix in float32
EVEN = 0.1  # of the largest singular value: if all are above, a product in float32 is as good as one in float64
RESOLVED = 1e-7  # of the largest singular value; its square is a hundred roundings of the Gram matrix


def nearest_orthogonal(a: Tensor, *, tolerance: float = 1e-7, sketch: bool = False) -> Tensor:
    """Return the polar factor P Q^T of a = P diag(d) Q^T, without the directions where d is near 0.

    This is the matrix with orthonormal columns (rows, if a is wide) nearest to a, or a partial isometry if
    directions are dropped.

    Args:
        a: Matrix (p, q), float32 or float64, on any device and of any layout.
        tolerance: Directions with d <= tolerance * d_max are dropped: float32 vectors hold nothing there. With
            0 all are kept, and a rank-deficient matrix's extra ones are arbitrary.
        sketch: True to work in a's dtype and also drop directions below 1e-3 of d_max: faster, digits not guaranteed.

    Returns:
        (p, q) in a's dtype on a's device.

    Raises:
        MethodError: a holds NaN or infinity, or no solver could factor it.
    """
    if not a.numel():
        return a.clone()
    x = computable(a)
    polar = _sketched(tall(x), tolerance) if sketch else _polar(tall(x), tolerance)
    is_tall = x.shape[0] >= x.shape[1]
    return (polar if is_tall else polar.T).contiguous().to(a.device)


def _polar(a: Tensor, tolerance: float) -> Tensor:
    if a.dtype == torch.float64:  # its Gram matrix in float64 would hold half of its digits
        return _by_svd(a, tolerance)
    try:
        return _by_gram(a, tolerance)
    except LinAlgError:
        return _by_svd(a, tolerance)


def _sketched(a: Tensor, tolerance: float) -> Tensor:
    """Return the polar factor as `_by_gram` does, but in a's dtype and unchecked."""
    try:
        squares, vectors = leading_eigenpairs(gram(a, a.dtype), a.shape[1])
    except LinAlgError:
        return _polar(a, tolerance)
    k = int((squares > max(tolerance, COARSE) ** 2 * squares[0]).sum())
    quarter = vectors[:, :k] * squares[:k] ** -0.25
    return a @ (quarter @ quarter.T)


def _by_gram(a: Tensor, tolerance: float) -> Tensor:
    """Return a (a^T a)^(-1/2) by way of the small side's eigendecomposition in float64, then one product."""
    squares, vectors = leading_eigenpairs(checked_gram(a), a.shape[1])
    if tolerance < RESOLVED and squares[-1] <= RESOLVED**2 * squares[0]:
        raise LinAlgError("directions that a Gram matrix does not resolve")
    k = int((squares > tolerance**2 * squares[0]).sum())  # directions kept: the squares descend
    quarter = vectors[:, :k] * squares[:k] ** -0.25  # (q, k); its product with its transpose is (a^T a)^(-1/2)
    root = symmetric(gram(quarter.T))  # (q, q)
    is_even = squares[k - 1] > EVEN**2 * squares[0]
    polar = times(a, root.to(a.dtype) if is_even else root)  # (p, q)
    if not _is_partial_isometry(polar, vectors[:, :k]):
        raise LinAlgError("the eigenvectors are wrong")
    return polar


def _by_svd(a: Tensor, tolerance: float) -> Tensor:
    p, d, qh = dense_svd(a)
    is_resolved = (d > tolerance * d[0]) if tolerance else torch.ones_like(d, dtype=torch.bool)
    return torch.mm(p * is_resolved, qh).to(a.dtype)


def _is_partial_isometry(x: Tensor, directions: Tensor) -> bool:
    """True if x^T x projects onto these orthonormal columns, tested on a few random vectors: catches gross errors."""
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(x.shape[1], 4, generator=generator, device="cpu").to(x)  # (q, 4)
    seen = x.T @ (x @ probe)
    wanted = directions @ (directions.T @ probe.double())
    lengths = torch.linalg.vector_norm(x, dim=1 if x.is_contiguous() else 0)  # in memory order, to avoid a copy
    size = float(lengths.square().sum(dtype=torch.float64))
    return abs(size - directions.shape[1]) < 0.5 and bool((seen - wanted).norm() <= 1e-2 * probe.norm())
