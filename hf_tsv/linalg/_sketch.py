"""Truncated SVD by a random sketch, in float32 arithmetic: fast, but without guaranteed digits."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hf_tsv.linalg._exact import exact_svd, is_orthonormal, roots
from hf_tsv.linalg._factors import Cut, Triplets
from hf_tsv.linalg._gram import gram, largest_entry, leading_eigenpairs, symmetric
from hf_tsv.linalg._lapack import LinAlgError

_SPARE = 0.25  # share of extra vectors beyond the rank: they absorb what would mix into the kept ones
_DROWNED = 5e-4  # rounding of a Gram matrix, in units of the gaps between its values: vectors move by a seventh of it
_OUTSTANDING = 50.0  # times the last value of a block: three steps of subspace iteration don't find a vector below that
_BLOCK = 32  # vectors added to the Krylov space per step

Basis = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # matrix, rank -> basis of right vectors and its image


def sketch_svd(a: Tensor, cut: Cut) -> Triplets:
    """Return triplets of a tall matrix (p, q) with nearly the leading ones' energy; `exact_svd`'s if that fails.

    They come from a block Krylov space of twice the rank (Musco and Musco 2015). If that is more than half of q, or
    the matrix is much taller than wide, the Gram matrix in the matrix's dtype costs less.
    """
    return _attempt(a, cut) or exact_svd(a, cut)


def _attempt(a: Tensor, cut: Cut) -> Triplets | None:
    """Return triplets from a basis of right vectors of the matrix, scaled so that float32 holds its entries' squares.

    None on failure: the eigensolver, vectors that aren't orthonormal, NaN, or a scale outside float32's exponents.
    """
    top = largest_entry(a)
    if not 2.0**-100 < top < 2.0**100:  # NaN fails the comparison, too
        return None
    scale = 2.0 ** -math.frexp(top)[1]  # a power of two, so that scaling rounds nothing
    x = a * scale
    p, q = x.shape
    basis_of: Basis = _krylov_basis if 4 * cut.rank <= q and p <= 8 * q else _gram_basis
    try:
        basis, image = basis_of(x, cut.rank)  # (q, size), (p, size)
        # The basis's best approximation of the triplets (Rayleigh-Ritz); the small problem is in float64.
        squares, rotation = leading_eigenpairs(gram(image), cut.rank)
    except LinAlgError:
        return None
    s = roots(squares)
    k = cut._replace(floor=cut.floor * scale).rank_of(s)
    rotation, s = rotation[:, :k].to(image.dtype), s[:k].to(image.dtype)
    triplets = Triplets(image @ rotation / s, s, basis @ rotation)
    if not is_orthonormal(triplets.left, 1e-4) or not is_orthonormal(triplets.right, 1e-4):
        return None
    return triplets._replace(s=triplets.s / scale, energy=(float(x.norm()) / scale) ** 2)


def _gram_basis(x: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return leading right vectors from the Gram matrix, (q, rank and a few), and their image under x.

    The eigenvectors of a Gram matrix in float32 lose directions that are small next to the largest eigenvalue. If too
    much would be lost, the largest directions are removed first.
    """
    size = min(x.shape[1], rank + int(_SPARE * rank) + 8)
    product = gram(x, x.dtype)
    top = _outstanding(product, min(size, _BLOCK))  # (q, few)
    if top.shape[1]:
        product = gram(x - (x @ top) @ top.T, x.dtype)
    _, basis = leading_eigenpairs(product, size - top.shape[1])
    basis = torch.linalg.qr(torch.cat([top, basis], dim=1))[0]  # (q, size)
    return basis, x @ basis


def _outstanding(product: Tensor, size: int) -> Tensor:
    """Return the leading eigenvectors (q, few) so large that the Gram matrix's rounding drowns the rest; maybe none.

    The rounding is eps times the largest value. Its effect on the vectors depends on the gaps between values; the mean
    of the values beyond the first `size` is used as their estimate.
    """
    full = symmetric(product)  # (q, q)
    basis = _random(full, size)
    for _ in range(3):
        basis = torch.linalg.qr(full @ basis)[0]
    projected = basis.T @ full @ basis  # (size, size)
    values, rotation = leading_eigenpairs(projected.double(), size)
    rest = (float(full.trace()) - float(values.sum())) / max(1, len(full) - size)
    drowned = torch.finfo(full.dtype).eps * float(values[0]) > _DROWNED * rest
    stands_out = drowned & (values > _OUTSTANDING * values[-1])
    return basis @ rotation[:, stands_out].to(full.dtype)


def _random(like: Tensor, size: int) -> Tensor:
    """Return a random normal matrix (rows of like, size), the same on every device."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(like), size, generator=generator, dtype=like.dtype, device="cpu").to(like.device)


def _krylov_basis(x: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return an orthonormal basis of span(b, x^T x b, ...), (q, about twice the rank), b random, and its image."""
    p, q = x.shape
    size = min(q, 2 * rank + _BLOCK)
    basis = x.new_empty(size, q).T  # (q, size), column-major
    image = x.new_empty(size, p).T  # (p, size), likewise
    block = x.T @ _random(x, _BLOCK)
    for at in range(0, size, _BLOCK):
        for _ in range(2):  # once would leave rounding errors, which dividing by a small norm amplifies
            block = torch.linalg.qr(block - basis[:, :at] @ (basis[:, :at].T @ block))[0]
        block = block[:, : size - at]
        basis[:, at : at + _BLOCK] = block
        image[:, at : at + _BLOCK] = x @ block
        block = x.T @ image[:, at : at + _BLOCK]
    return basis, image
