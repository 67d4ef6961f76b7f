"""Singular value decomposition to the last digit of float32 or float64, even where LAPACK fails."""

import math

import scipy.linalg
import torch
from torch import Tensor

from hf_tsv.errors import MethodError
from hf_tsv.linalg._factors import Cut, Triplets
from hf_tsv.linalg._gram import eigenvalues, gram, leading_eigenpairs, times
from hf_tsv.linalg._lapack import LinAlgError

RESOLVED = 1e-6  # of the largest singular value: the squares of smaller values are lost in the Gram matrix's rounding


def exact_svd(a: Tensor, cut: Cut) -> Triplets:
    """Return the leading triplets of a tall matrix (p, q).

    A float32 matrix goes through its Gram matrix in float64, which holds more digits than an SVD in float32 and
    takes a fraction of its time. float64 matrices, and those the Gram matrix can't resolve, get an SVD in float64.

    Raises:
        MethodError: a holds NaN or infinity, or no solver could factor it.
    """
    if a.dtype == torch.float64:
        return _by_svd(a, cut)
    try:
        return _by_gram(a, cut)
    except LinAlgError:
        return _by_svd(a, cut)


def exact_values(a: Tensor) -> Tensor:
    """Return all singular values of a tall matrix (p, q): (q,) float64, descending."""
    if a.dtype == torch.float64:
        return dense_svd(a)[1]
    try:
        return roots(eigenvalues(checked_gram(a)))
    except LinAlgError:
        return dense_svd(a)[1]


def checked_gram(a: Tensor) -> Tensor:
    """Return the Gram matrix in float64, after checking a for NaN and infinity.

    No finite float32 overflows in float64, so the trace is finite exactly if all of a is.

    Raises:
        MethodError: a holds NaN or infinity.
    """
    product = gram(a)
    if not math.isfinite(product.trace()):
        check_finite(a)
    return product


def dense_svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin SVD in float64, u, s, vh, checked by multiplying it out.

    Uses divide and conquer, then QR iteration where that fails or is wrong, as MKL's is on some matrices.

    Raises:
        MethodError: a holds NaN or infinity, or both solvers failed.
    """
    check_finite(a)
    x = a.double()
    for solve in (_divide_and_conquer, _qr_iteration):
        try:
            u, s, vh = solve(x)
        except (LinAlgError, scipy.linalg.LinAlgError):
            continue
        # MKL's divide and conquer returns garbage on some matrices, and reports success.
        residual = (torch.mm(u * s, vh) - x).abs().max()
        if residual <= 1e-10 * s[0] and is_orthonormal(u, 1e-10) and is_orthonormal(vh.T, 1e-10):
            return u, s, vh
    raise MethodError("no singular value decomposition converged, not even in float64. Leave this tensor out")


def check_finite(a: Tensor) -> None:
    """Check that every entry is finite.

    Raises:
        MethodError: a holds NaN or infinity.
    """
    bad = a.numel() - int(a.isfinite().sum())
    if bad:
        raise MethodError(f"{bad} of {a.numel()} entries are NaN or infinite. Check the fine-tuned checkpoint")


def is_orthonormal(u: Tensor, tolerance: float | Tensor) -> bool:
    """True if u^T u = I within the tolerance, one for all entries or one for each; False if u holds NaN."""
    defect = (u.T @ u).double() - torch.eye(u.shape[1], dtype=torch.float64, device=u.device)
    return bool((defect.abs() <= tolerance).all())


def _by_gram(a: Tensor, cut: Cut) -> Triplets:
    product = checked_gram(a)  # (q, q)
    energy = float(product.trace())
    squares, vectors = leading_eigenpairs(product, cut.rank)
    s = roots(squares)
    k = cut.rank_of(s)
    # The vectors of values too small to show in the squares are pure rounding: the caller then uses the SVD.
    if k and s[k - 1] <= RESOLVED * s[0]:
        raise LinAlgError("singular values that a Gram matrix does not resolve")
    kept = s[:k]
    right = vectors[:, :k]  # (q, k)
    left = times(a, right / kept)  # (p, k)
    # Rounding moves the left vectors' inner products this far from I: the Gram matrix's rounding, divided by s.
    rounding = 8 * (len(s) + 16) * torch.finfo(torch.float64).eps * kept[:1].square() / (kept[:, None] * kept)
    if not is_orthonormal(right, 1e-10) or not is_orthonormal(left, rounding + 1e-5):
        raise LinAlgError("the eigenvectors are wrong")
    return Triplets(left, kept, right, energy, values=s)


def _by_svd(a: Tensor, cut: Cut) -> Triplets:
    u, s, vh = dense_svd(a)
    k = cut.rank_of(s)
    return Triplets(u[:, :k], s[:k], vh[:k].T, float(s.square().sum()), values=s)


def roots(squares: Tensor) -> Tensor:
    return squares.clamp(min=0).sqrt()


def _divide_and_conquer(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    return u, s, vh


def _qr_iteration(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = map(torch.from_numpy, scipy.linalg.svd(x.cpu().numpy(), full_matrices=False, lapack_driver="gesvd"))
    return u.to(x.device), s.to(x.device), vh.to(x.device)
