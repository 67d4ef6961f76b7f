"""Truncated singular value decomposition, exact or sketched."""

from typing import Literal

import torch
from torch import Tensor

from hf_tsv.linalg._exact import exact_svd, exact_values
from hf_tsv.linalg._factors import Cut, Factors, factors_of
from hf_tsv.linalg._gram import computable, largest_entry, row_blocks, tall
from hf_tsv.linalg._sketch import sketch_svd

SvdMode = Literal["exact", "sketch"]


def truncated_svd(a: Tensor, rank: int, *, mode: SvdMode = "exact", rtol: float = 1e-6, floor: float = 0.0) -> Factors:
    """Return the leading singular triplets of a matrix that are above its noise.

    Args:
        a: Matrix (m, n), float32 or float64, on any device and of any layout.
        rank: Maximum number of triplets.
        mode: `exact` is at least as good as an SVD in a's dtype. `sketch` is faster, without guaranteed digits.
        rtol: Triplets with s <= rtol * s[0] are dropped: float32 holds nothing there, and their directions
            are arbitrary.
        floor: Triplets with s <= floor are dropped; `rounding_edge` computes a value for it. With rtol = floor = 0,
            exactly min(rank, m, n) triplets are kept, whatever their values.

    Returns:
        Factors in a's dtype on a's device; with rtol or floor above 0, a zero matrix has no triplets.

    Raises:
        MethodError: a holds NaN or infinity, or no solver could factor it.
    """
    x = computable(a)
    cut = Cut(min(rank, *a.shape), rtol, floor)
    if cut.rank <= 0 or (cut.drops_zeros and largest_entry(x) == 0):
        energy = sum(float(rows.square().sum()) for _, rows in row_blocks(x, torch.float64))
        return Factors(a.new_empty(a.shape[0], 0), a.new_empty(0), a.new_empty(0, a.shape[1]), energy=energy)
    solve = sketch_svd if mode == "sketch" else exact_svd
    triplets = solve(tall(x), cut)
    if x.shape[0] < x.shape[1]:  # the transpose was factored
        triplets = triplets.transposed
    return factors_of(triplets, a)


def singular_values(a: Tensor) -> Tensor:
    """Return all singular values of a matrix (m, n): (min(m, n),) float64, descending, without vectors.

    Raises:
        MethodError: a holds NaN or infinity, or no solver could factor it.
    """
    if not a.numel():
        return torch.empty(0, dtype=torch.float64)
    return exact_values(tall(computable(a)))
