"""The effect of storing weights in few bits on a delta's singular values."""

import math

import torch
from torch import Tensor

_MARGIN = 1.05  # in float32 the merge arithmetic's own rounding adds to the noise: 3 % measured
_ROWS = 1024  # rows processed at a time
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def rounding_edge(weights: Tensor, dtype: torch.dtype | str) -> float:
    """Return the largest singular value that rounding weights to their stored dtype can explain.

    Rounding to a grid of spacing ulp(w) adds noise of variance ulp(w)^2 / 12. The largest singular value of an
    m x n matrix of such noise is the edge of Marchenko and Pastur's law; values below it can be rounding alone.

        edge = sqrt(mean(ulp(w)^2) / 12) * (sqrt(m) + sqrt(n))

    Args:
        weights: The fine-tuned weights (m, n) as stored, in any float dtype that holds them.
        dtype: The stored dtype, or its name, such as "bfloat16".

    Returns:
        The edge plus a margin of 5 %; 0 for an empty matrix.
    """
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if not weights.numel():
        return 0.0
    m, n = weights.shape
    rms_ulp = _rms_ulp(weights, dtype)
    return _MARGIN * rms_ulp / math.sqrt(12) * (math.sqrt(m) + math.sqrt(n))


def _rms_ulp(weights: Tensor, dtype: torch.dtype) -> float:
    """Return the root mean square of ulp(w), from counts of each exponent, so the order of summation doesn't matter."""
    info = torch.finfo(dtype)
    mantissa = -_log2(info.eps)  # bits
    exponent_mask = (1 << 8 * dtype.itemsize - 1 - mantissa) - 1
    counts = torch.zeros(2048, dtype=torch.float32, device=weights.device)  # by exponent, which has 11 bits in float64
    for rows in torch.split(weights, _ROWS):
        bits = rows.to(dtype).contiguous().view(_INTEGERS[dtype.itemsize])
        exponents = (bits >> mantissa) & exponent_mask
        exponents.clamp_(min=1)  # subnormals are spaced like the smallest normals
        counts += exponents.flatten().bincount(minlength=2048)
    occurring = [(exponent, count) for exponent, count in enumerate(counts.tolist()) if count]
    top = occurring[-1][0]  # in units of its ulp the sum can neither overflow nor vanish
    mean_square = sum(count * 4.0 ** (exponent - top) for exponent, count in occurring) / weights.numel()
    return math.ldexp(math.sqrt(mean_square), top - 1 + _log2(info.smallest_normal) + _log2(info.eps))


def _log2(power_of_two: float) -> int:
    return math.frexp(power_of_two)[1] - 1
