"""The nearest orthogonal matrix, and the product it is made for."""

import torch
from torch import Tensor

from hf_tsv.linalg._exact import checked_gram, dense_svd
from hf_tsv.linalg._gram import computable, gram, leading_eigenpairs, symmetric, tall, times
from hf_tsv.linalg._lapack import LinAlgError

ALLOWED = 1e-3  # relative error of a polar factor that stems from its argument's
COARSE = 1e-3  # of the largest singular value; its square is ten roundings of a Gram matrix in float32
EVEN = 0.1  # of the largest singular value: from there on a product in float32 is as good as one in float64
RESOLVED = 1e-7  # of the largest singular value; its square is a hundred roundings of the Gram matrix


class IllConditionedError(ArithmeticError):
    """The matrix amplifies the error of its entries too much: compute it anew, with `exact` factors."""


def nearest_orthogonal(a: Tensor, *, tolerance: float = 1e-7, error: float = 0.0, sketch: bool = False) -> Tensor:
    """The polar factor P Q^T of a = P diag(d) Q^T, without the directions that a hardly has.

    It is the matrix with orthonormal columns (rows, when a is wide) nearest to a; where directions are
    dropped, a partial isometry.

    Args:
        a: Matrix (p, q), float32 or float64, on any device and of any layout.
        tolerance: Directions with d <= tolerance * d_max are dropped: float32 vectors hold nothing there. With
            0 all are kept, and those of a rank-deficient matrix are arbitrary.
        error: Relative error of a's columns, as `Factors.error` tells it.
        sketch: Work in float32 and drop what it doesn't resolve, 1e-3 of d_max: quick, and no promise on digits.

    Returns:
        (p, q) in a's dtype on a's device.

    Raises:
        IllConditionedError: an error of that size may change the result by more than 1e-3.
        MethodError: a holds NaN or infinity, or nothing could factor it.
    """
    if not a.numel():
        return a.clone()
    x = computable(a)
    polar = _sketched(tall(x), tolerance) if sketch else _polar(tall(x), tolerance, error)
    return (polar if x.shape[0] >= x.shape[1] else polar.T).contiguous().to(a.device)


def from_orthogonalised(u: Tensor, s: Tensor, vh: Tensor) -> Tensor:
    """u diag(s) vh, (m, n): the middle matrix is never formed, which would cost digits."""
    return (u * s) @ vh


def _polar(a: Tensor, tolerance: float, error: float) -> Tensor:
    if a.dtype == torch.float64:  # of whose digits a Gram matrix in float64 holds half
        return _by_svd(a, tolerance, error)
    try:
        return _by_gram(a, tolerance, error)
    except LinAlgError:
        return _by_svd(a, tolerance, error)


def _sketched(a: Tensor, tolerance: float) -> Tensor:
    """As `_by_gram`, in a's dtype and unchecked."""
    try:
        squares, vectors = leading_eigenpairs(gram(a, a.dtype), a.shape[1])
    except LinAlgError:
        return _polar(a, tolerance, 0.0)
    k = int((squares > max(tolerance, COARSE) ** 2 * squares[0]).sum())
    quarter = vectors[:, :k] * squares[:k] ** -0.25
    return a @ (quarter @ quarter.T)


def _by_gram(a: Tensor, tolerance: float, error: float) -> Tensor:
    """a (a^T a)^(-1/2) in float64: one product after the eigendecomposition of the small side."""
    squares, vectors = leading_eigenpairs(checked_gram(a), a.shape[1])
    if tolerance < RESOLVED and squares[-1] <= RESOLVED**2 * squares[0]:
        raise LinAlgError("directions that a Gram matrix does not resolve")
    k = int((squares > tolerance**2 * squares[0]).sum())
    _check_amplified(error, squares[:k].sqrt())
    quarter = vectors[:, :k] * squares[:k] ** -0.25
    root = symmetric(gram(quarter.T))
    polar = times(a, root.to(a.dtype) if squares[k - 1] > EVEN**2 * squares[0] else root)
    if not _is_partial_isometry(polar, vectors[:, :k]):
        raise LinAlgError("the eigenvectors are wrong")
    return polar


def _by_svd(a: Tensor, tolerance: float, error: float) -> Tensor:
    p, d, qh = dense_svd(a)
    kept = (d > tolerance * d[0]) if tolerance else torch.ones_like(d, dtype=torch.bool)
    _check_amplified(error, d[kept])
    return torch.mm(p * kept, qh).to(a.dtype)


def _is_partial_isometry(x: Tensor, directions: Tensor) -> bool:
    """Whether x^T x projects on these orthonormal columns, as far as a few random vectors see: a gross error shows."""
    probe = torch.randn(x.shape[1], 4, generator=torch.Generator().manual_seed(0), device="cpu").to(x)
    seen = x.T @ (x @ probe)
    wanted = directions @ (directions.T @ probe.double())
    lengths = torch.linalg.vector_norm(x, dim=1 if x.is_contiguous() else 0)  # as it lies in memory, and no copy
    size = float(lengths.square().sum(dtype=torch.float64))
    return abs(size - directions.shape[1]) < 0.5 and bool((seen - wanted).norm() <= 1e-2 * probe.norm())


def _check_amplified(error: float, d: Tensor) -> None:
    """The polar factor moves by 2 e_ij / (d_i + d_j) where the matrix moves by e_ij: here in the mean over all i, j."""
    amplification = (4 / (d[:, None] + d).square()).mean().sqrt() if error else 0.0
    if error * amplification > ALLOWED:
        raise IllConditionedError(f"an error of {error:.1e} grows {float(amplification):.1e} times")
