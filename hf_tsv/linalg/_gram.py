"""Gram matrices and their eigenpairs, the start of most factorisations here."""

from collections.abc import Iterator

import torch
from torch import Tensor

from hf_tsv.linalg import _lapack

_ROWS = 1024  # rows in float64 at a time: a delta is never copied whole


def tall(a: Tensor) -> Tensor:
    """Return the matrix or its transpose as a view, whichever has at least as many rows as columns."""
    return a if a.shape[0] >= a.shape[1] else a.T


def gram(a: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a^T a (q, q) of a matrix (p, q), computed in dtype. On the CPU only the upper triangle is filled."""
    out = a.new_zeros(a.shape[1], a.shape[1], dtype=dtype)
    for _, rows in row_blocks(a, dtype):
        if has_lapack(out):  # LAPACK's symmetric product takes half the operations; torch has none
            _lapack.add_gram(out, rows)
        else:
            out.addmm_(rows.T, rows)
    return out


def symmetric(upper: Tensor) -> Tensor:
    """Return the full symmetric matrix from its upper triangle, as `gram` leaves it."""
    return upper.triu() + upper.triu(1).T


def times(a: Tensor, b: Tensor) -> Tensor:
    """Return a b for a tall matrix a (p, q) and a matrix b (q, k), computed in b's dtype and rounded once to a's."""
    out = new_matrix(a, a.shape[0], b.shape[1], a.dtype)
    for where, rows in row_blocks(a, b.dtype):
        out[where] = rows @ b
    return out


def row_blocks(a: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of a matrix in blocks, each with its slice: in dtype, dense in the matrix's own layout."""
    for start in range(0, a.shape[0], _ROWS):
        rows = a[start : start + _ROWS]
        yield slice(start, start + len(rows)), new_matrix(a, len(rows), a.shape[1], dtype).copy_(rows)


def new_matrix(a: Tensor, p: int, q: int, dtype: torch.dtype) -> Tensor:
    """Return an uninitialised matrix (p, q), in row-major or column-major order as a is."""
    return a.new_empty(p, q, dtype=dtype) if a.is_contiguous() else a.new_empty(q, p, dtype=dtype).T


def leading_eigenpairs(symmetric: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return all eigenvalues (n,), descending, and the vectors (n, k) of the k largest. Overwrites its argument.

    Raises:
        LinAlgError: the eigensolver did not converge.
    """
    if has_lapack(symmetric):
        return _lapack.leading_eigenpairs(symmetric, k)
    values, vectors = torch.linalg.eigh(symmetric)  # ascending
    return values.flip(0), vectors.flip(1)[:, :k]


def eigenvalues(symmetric: Tensor) -> Tensor:
    """Return all eigenvalues (n,), descending. Overwrites its argument."""
    if has_lapack(symmetric):
        return _lapack.eigenvalues(symmetric)
    values: Tensor = torch.linalg.eigvalsh(symmetric)
    return values.flip(0)


def has_lapack(a: Tensor) -> bool:
    """True if LAPACK can work on the tensor's memory; otherwise torch does the work."""
    return a.device.type == "cpu"


def largest_entry(a: Tensor) -> float:
    """Return max |a_ij|; NaN if a holds NaN."""
    lowest, highest = a.aminmax()  # one pass, and no copy as a.abs() would be
    return max(-float(lowest), float(highest))


def computable(a: Tensor) -> Tensor:
    """Return the matrix off MPS, which lacks float64, and contiguous: equal values give equal bits in any layout."""
    return (a.cpu() if a.device.type == "mps" else a).contiguous()
