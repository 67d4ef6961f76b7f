"""Truncated SVD in float32 arithmetic: within a bound that is checked, or without any promise."""

import math

import torch
from torch import Tensor

from hf_tsv.linalg._exact import exact_svd, is_orthonormal, roots
from hf_tsv.linalg._factors import Cut, Triplets
from hf_tsv.linalg._gram import gram, leading_eigenpairs
from hf_tsv.linalg._lapack import LinAlgError

ALLOWED = 1e-4  # rms angle between the vectors found and the true subspace
_SPARE = 0.1  # share of vectors found beyond the rank: they take up what would mix into the ones kept
_BLOCK = 32  # vectors that the Krylov space grows by


def fast_svd(a: Tensor, cut: Cut) -> Triplets:
    """Leading triplets of a tall matrix (p, q) within `ALLOWED`, or those of `exact_svd`.

    The eigenvectors of a Gram matrix in float32 lose what is small next to the largest eigenvalue. A Rayleigh-Ritz
    step on the matrix itself wins most of it back, and the residual it leaves tells what is still missing.
    """
    try:
        found = _sketched(a, cut, _gram_basis)
    except LinAlgError:
        found = None
    if found is None or a.dtype == torch.float64 or not found.error <= ALLOWED:
        return exact_svd(a, cut)._replace(fell_back=True)
    return found


def sketch_svd(a: Tensor, cut: Cut) -> Triplets:
    """Triplets of a tall matrix (p, q) with nearly the energy of the leading ones; no promise on their digits.

    From a block Krylov space of twice the rank (Musco and Musco 2015). Where that is more than half of all
    there is, the Gram matrix in float32 costs less.
    """
    try:
        return _sketched(a, cut, _krylov_basis if 4 * cut.rank <= a.shape[1] else _gram_basis)._replace(error=0.0)
    except LinAlgError:
        return exact_svd(a, cut)._replace(fell_back=True)


def _sketched(a: Tensor, cut: Cut, basis_of: Callable[[Tensor, int], Tensor]) -> Triplets:
    """Rayleigh-Ritz on a basis of right vectors, on the matrix scaled so that float32 holds its entries' squares."""
    lowest, highest = a.aminmax()
    top = max(-float(lowest), float(highest))
    if not 2.0**-100 < top < 2.0**100:
        raise LinAlgError("NaN, infinity, or entries whose scale float32 does not hold")
    scale = 2.0 ** -math.frexp(top)[1]
    x = a * scale
    found = _ritz(x, basis_of(x, cut.rank), cut._replace(floor=cut.floor * scale))
    energy = float(torch.linalg.vector_norm(a, dtype=torch.float64)) ** 2
    return found._replace(s=found.s / scale, energy=energy)


def _gram_basis(x: Tensor, rank: int) -> Tensor:
    """Eigenvectors of the Gram matrix, (q, rank and a few)."""
    spare = int(_SPARE * rank) + 8
    return leading_eigenpairs(gram(x, x.dtype), min(x.shape[1], rank + spare))[1].contiguous()


def _krylov_basis(x: Tensor, rank: int) -> Tensor:
    """Orthonormal basis of span(b, x^T x b, (x^T x)^2 b, ...), (q, about 2 rank); b is drawn by a fixed seed."""
    size = min(x.shape[1], _BLOCK * math.ceil(2 * rank / _BLOCK))
    start = torch.randn(x.shape[0], min(_BLOCK, size), generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    block = torch.linalg.qr(x.T @ start.to(x.device))[0]
    basis = x.new_empty(size, x.shape[1]).T
    for end in range(_BLOCK, size + 1, _BLOCK): ...
    return basis
