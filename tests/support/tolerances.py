"""How far apart two right answers may lie: what rounding alone does, on any CPU and with any BLAS.

A tolerance that was read off one machine fails on the next, whose BLAS adds up in another order. These follow from
the dtype, the size and the condition instead. u is the unit roundoff, eps / 2: as much as one rounding can change.
"""

import math

import torch
from torch import Tensor

# Over the rule of thumb, so that no order of summation comes near: measured errors are 0.2 to 1 times the rule.
MARGIN = 4.0


def rounding(dtype: torch.dtype, *, terms: int = 1, condition: float = 1.0) -> float:
    """Relative error of what is computed by sums of `terms` products: MARGIN * sqrt(terms) * u * condition.

    A sum of n products is off by at most n u times the sum of their magnitudes (Higham, Accuracy and Stability of
    Numerical Algorithms, 2nd ed., section 3.1). Roundings go up and down alike, so that sqrt(n) u is what occurs
    (section 2.8), and less than that where BLAS adds up in blocks.

    Args:
        dtype: What is computed in.
        terms: Products in a sum, or operations one after another; 1 where a result is rounded once.
        condition: How much larger the result's relative error is than that of the sum: the sum of magnitudes over the
            magnitude of the sum, or the condition number of what is done with it next.
    """
    return MARGIN * math.sqrt(terms) * _unit_roundoff(dtype) * condition


def factorisation(dtype: torch.dtype, size: int, *, condition: float = 1.0) -> float:
    """Error of an SVD, QR or eigendecomposition beside the largest singular value: MARGIN * size * u * condition.

    LAPACK turns the matrix by one reflection for each row and column, and each adds about u: backward errors, and how
    far the vectors are from orthonormal, grow no faster than the size (Higham, section 19.3; LAPACK Users' Guide,
    section 4.9, with p(m, n) = m + n). It bounds the worst entry as well as the norm.

    Args:
        dtype: What is computed in.
        size: Rows and columns of the matrix together: it is turned from both sides.
        condition: How the matrix's error is amplified: the largest singular value over the least or over a gap.
    """
    return MARGIN * size * _unit_roundoff(dtype) * condition


def polar_amplification(a: Tensor, tolerance: float = 1e-7) -> float:
    """How many times larger a polar factor's error is than its argument's, in the mean over all entries.

    Where the argument moves by e_ij in its own singular vectors, the polar factor moves by 2 e_ij / (d_i + d_j)
    (Higham, Functions of Matrices, section 8.4). Directions below the tolerance are dropped.
    """
    d = torch.linalg.svdvals(a.double())
    d = d[d > tolerance * d[0]]
    return float((4 / (d[:, None] + d).square()).mean().sqrt())


def _unit_roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


# Of the tiny models in tests.support.models and what is made of them, all in float32.

# Merged weights are stored: a norm's weight, which is 1, that changes by 0.01 is rounded to this share of its change.
CHANGE = rounding(torch.float32, condition=100)

# A weight of up to 1 that products of factors, of up to 64 terms, were added to.
WEIGHTS = rounding(torch.float32, terms=64)

# Two layers, in each some five products of up to 48 terms one after another; what comes out is about 1.
OUTPUTS = rounding(torch.float32, terms=2 * 5 * 48)
