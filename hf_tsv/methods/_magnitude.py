"""Exact magnitude thresholds of whole task vectors, without holding one."""

from collections.abc import Sequence
from threading import Lock

import torch
from torch import Tensor

DIGIT_BITS = 16
_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


class MagnitudeThresholds:
    """Per task, the magnitude that a given share of its entries reaches or exceeds.

    The bit pattern of |x| orders like |x| itself. So the threshold is found as in a radix sort, 16 bits of
    it a pass, by counting: exact, the same for any order of the tensors, and 0.5 MB a task.

    Attributes:
        passes: Passes over the data that it takes: 2 in float32, 4 in float64.
        thresholds: One float a task, once all passes are done; keep |x| >= threshold.
    """

    def __init__(self, densities: Sequence[float], dtype: torch.dtype, *, inclusive: bool) -> None:
        """`inclusive` keeps one entry more, as the TIES authors' code does: N - int(density N) is their
        rank from below of the smallest entry that stays."""
        self.passes = torch.finfo(dtype).bits // DIGIT_BITS
        self.thresholds: tuple[float, ...] = ()
        self._densities = tuple(densities)
        self._dtype = dtype
        self._inclusive = inclusive
        self._prefixes = [0] * len(densities)
        self._ranks: list[int] = []
        self._done = 0
        self._lock = Lock()
        self._counts = self._empty_counts()

    def observe(self, task: int, delta: Tensor) -> None:
        """Count one tensor's entries by their next 16 bits."""
        bits = delta.abs().to(self._dtype).view(_BITS[self._dtype]).flatten()
        shift = self._shift
        if self._done:
            bits = bits[(bits >> (shift + DIGIT_BITS)) == self._prefixes[task]]
            bits = bits >> shift & (1 << DIGIT_BITS) - 1
        else:
            bits = bits >> shift
        counts = torch.bincount(bits, minlength=1 << DIGIT_BITS)
        with self._lock:
            self._counts[task] += counts

    def advance(self) -> None:
        """Settle 16 bits of every threshold."""
        if not self._done:
            self._ranks = [self._rank(int(c.sum()), d) for c, d in zip(self._counts, self._densities, strict=True)]
        for task, counts in enumerate(self._counts):
            below = counts.cumsum(0)
            digit = int(torch.searchsorted(below, self._ranks[task] + 1))
            digit = min(digit, counts.numel() - 1)
            self._ranks[task] -= int(below[digit - 1]) if digit else 0
            self._prefixes[task] = self._prefixes[task] << DIGIT_BITS | digit
        self._done += 1
        self._counts = self._empty_counts()
        if self._done == self.passes:
            self.thresholds = tuple(self._value(p) for p in self._prefixes)

    @property
    def _shift(self) -> int:
        return DIGIT_BITS * (self.passes - 1 - self._done)

    def _empty_counts(self) -> list[Tensor]:
        return [torch.zeros(1 << DIGIT_BITS, dtype=torch.int64) for _ in self._densities]

    def _rank(self, numel: int, density: float) -> int:
        """Entries that lie strictly below the smallest that stays, when all differ."""
        kept = int(numel * density) + self._inclusive
        return max(0, min(numel - kept, numel - 1))

    def _value(self, bits: int) -> float:
        return float(torch.tensor(bits, dtype=_BITS[self._dtype]).view(self._dtype))


def trim(delta: Tensor, threshold: float) -> Tensor:
    """Zero what is smaller than the threshold, in place."""
    return delta.masked_fill_(delta.abs() < threshold, 0.0)
