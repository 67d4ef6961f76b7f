"""The singular value decomposition to the last digit that float32 or float64 holds, whatever LAPACK does."""

import math

import scipy.linalg
import torch
from torch import Tensor

from hf_tsv.errors import MethodError
from hf_tsv.linalg._factors import Cut, Triplets
from hf_tsv.linalg._gram import eigenvalues, gram, leading_eigenpairs, times
from hf_tsv.linalg._lapack import LinAlgError

RESOLVED = 1e-6  # of the largest singular value: squared, what lies below drowns in the Gram matrix's rounding


def exact_svd(a: Tensor, cut: Cut) -> Triplets:
    """Leading triplets of a tall matrix (p, q).

    float32 goes through the Gram matrix in float64, which holds more digits than an SVD in float32 and
    takes a fraction of its time; what that can't resolve, and float64, through an SVD in float64.

    Raises:
        MethodError: NaN or infinity in a, or nothing could factor it.
    """
    if a.dtype == torch.float64:
        return _by_svd(a, cut)
    try:
        return _by_gram(a, cut)
    except LinAlgError:
        return _by_svd(a, cut)


def exact_values(a: Tensor) -> Tensor:
    """All singular values of a tall matrix (p, q), (q,) float64, descending."""
    if a.dtype == torch.float64:
        return dense_svd(a)[1]
    try:
        return roots(eigenvalues(checked_gram(a)))
    except LinAlgError:
        return dense_svd(a)[1]


def checked_gram(a: Tensor) -> Tensor:
    """The Gram matrix in float64. No finite float32 overflows in it, so its diagonal tells NaN and infinity.

    Raises:
        MethodError: NaN or infinity in a.
    """
    product = gram(a)
    if not math.isfinite(product.trace()):
        check_finite(a)
    return product


def dense_svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVD in float64: u, s, vh, proven by multiplying them out.

    Divide and conquer, and where that fails or comes out wrong, as MKL's does on some matrices, QR iteration.

    Raises:
        MethodError: NaN or infinity in a, or both failed.
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
    """
    Raises:
        MethodError: NaN or infinity in a.
    """
    bad = a.numel() - int(a.isfinite().sum())
    if bad:
        raise MethodError(f"{bad} of {a.numel()} entries are NaN or infinite. Check the fine-tuned checkpoint")


def is_orthonormal(u: Tensor, tolerance: float | Tensor) -> bool:
    """Whether u^T u = I within the tolerance, one for all entries or one for each; never where u holds NaN."""
    defect = (u.T @ u).double() - torch.eye(u.shape[1], dtype=torch.float64, device=u.device)
    return bool((defect.abs() <= tolerance).all())


def _by_gram(a: Tensor, cut: Cut) -> Triplets:
    product = checked_gram(a)  # (q, q)
    energy = float(product.trace())
    squares, vectors = leading_eigenpairs(product, cut.rank)
    s = roots(squares)
    k = cut.rank_of(s)
    # What is too small for the squares to show has vectors of pure rounding: the caller then takes the slow way.
    if k and s[k - 1] <= RESOLVED * s[0]:
        raise LinAlgError("singular values that a Gram matrix does not resolve")
    kept = s[:k]
    right = vectors[:, :k]  # (q, k)
    left = times(a, right / kept)  # (p, k)
    # Rounding leaves the left vectors' inner products this far from I: the Gram matrix's own, divided by s.
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
