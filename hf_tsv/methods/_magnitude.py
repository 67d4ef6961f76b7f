"""Exact magnitude thresholds of whole task vectors, without holding one."""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Literal

import torch
from torch import Tensor

from hf_tsv.methods._deltas import Deltas

SAMPLE = 1 / 16  # share of every tensor's rows, for a first guess
_MARGIN = 0.005  # share of the entries on either side of the guess
_BINS_OF_SAMPLE = 1 << 15  # fewer bins, because the sample's pieces are small
_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


@dataclass
class _Bracket:
    """The bit patterns [low, high) that can hold a threshold, counted in bins of 2^shift patterns."""

    low: int
    high: int
    most_bins: int = 1 << 19

    @property
    def shift(self) -> int:
        return max(0, (self.high - self.low - 1).bit_length() - (self.most_bins - 1).bit_length())

    @property
    def bins(self) -> int:
        return -(-(self.high - self.low) >> self.shift)

    def counts(self, bits: Tensor) -> Tensor:
        """Count the patterns below, in each bin, and above: (bins + 2,)."""
        places = bits - (self.low - (1 << self.shift))
        if self.shift:
            places >>= self.shift
        return torch.bincount(places.clamp_(0, self.bins + 1), minlength=self.bins + 2)

    def bin(self, place: int) -> "_Bracket":
        return _Bracket(self.low + (place << self.shift), min(self.high, self.low + (place + 1 << self.shift)))


class MagnitudeThresholds:
    """The magnitude that a given share of a task's entries reaches or exceeds, for each task.

    The bit patterns of |x| sort like |x| itself, so the threshold is found by counting patterns. A sample shows
    where it should be; one pass over everything then counts each pattern there. If the sample was wrong, or
    too many patterns are there, another pass follows: the result is exact and the same for any order of the tensors.

    Attributes:
        scope: `model` to rank the entries of the whole model together, `tensor` for those of one tensor.
        share: Share of every tensor's rows that the next pass has to see; 0 once all thresholds are known.
        thresholds: One float per task, once they are known; keep |x| >= threshold.
    """

    def __init__(
        self,
        densities: Sequence[float],
        dtype: torch.dtype,
        *,
        inclusive: bool,
        scope: Literal["model", "tensor"] = "model",
    ) -> None:
        """Start with the sample. `inclusive` keeps one more entry, as the TIES authors' code does: there, the smallest
        kept entry has rank N - int(density N) from below."""
        self.scope = scope
        self._densities = tuple(densities)
        self._dtype = dtype
        self._inclusive = inclusive
        self._highest = 1 << torch.finfo(dtype).bits - 1
        self._patterns: list[int | None] = [0 if density >= 1 else None for density in densities]
        self._brackets = [_Bracket(0, self._highest, _BINS_OF_SAMPLE) for _ in densities]
        self._sampling = True
        self._lock = Lock()
        self._counts = self._empty_counts()

    @property
    def share(self) -> float:
        if None not in self._patterns:
            return 0.0
        return SAMPLE if self._sampling else 1.0

    @property
    def thresholds(self) -> tuple[float, ...]:
        values = []
        for bits in self._patterns:
            pattern = torch.tensor(bits, dtype=_BITS[self._dtype])
            values.append(float(pattern.view(self._dtype)))
        return tuple(values)

    def observe(self, task: int, delta: Tensor) -> None:
        """Count the entries of one tensor, or of some of its rows."""
        if self._patterns[task] is not None:
            return
        magnitudes = delta.abs().to(self._dtype)
        bits = magnitudes.view(_BITS[self._dtype]).flatten()  # (numel,)
        counts = self._brackets[task].counts(bits)
        with self._lock:
            self._counts[task] += counts

    def advance(self) -> None:
        """Narrow each unknown threshold's bracket by the counts of the last pass."""
        settle = self._guess if self._sampling else self._narrow
        for task, pattern in enumerate(self._patterns):
            if pattern is None:
                settle(task)
        self._sampling = False
        self._counts = self._empty_counts()

    def _guess(self, task: int) -> None:
        """Narrow the bracket to the bins around the sample's own threshold."""
        below = self._counts[task].cumsum(0)
        seen = int(below[-1])
        rank, margin = self._rank(task, seen), _MARGIN * seen
        bracket = self._brackets[task]
        first = _place(below, int(rank - margin), bracket)
        last = _place(below, int(rank + margin), bracket)
        self._brackets[task] = _Bracket(bracket.bin(first).low, bracket.bin(last).high)

    def _narrow(self, task: int) -> None:
        """Narrow the bracket to the bin that holds the threshold, or move it to the side where the threshold is."""
        bracket = self._brackets[task]
        below = self._counts[task].cumsum(0)  # (bins + 2,): entries up to the end of each bin
        rank = self._rank(task, int(below[-1]))
        if not below[-1]:
            self._brackets[task] = _Bracket(0, 1)  # without any entry the threshold is 0
        elif rank < int(below[0]):
            self._brackets[task] = _Bracket(0, bracket.low)
        elif rank >= int(below[-2]):
            self._brackets[task] = _Bracket(bracket.high, self._highest)
        else:
            self._brackets[task] = bracket.bin(_place(below, rank, bracket))
        if self._brackets[task].high - self._brackets[task].low == 1:
            self._patterns[task] = self._brackets[task].low

    def _rank(self, task: int, numel: int) -> int:
        """Return the number of entries strictly below the smallest kept one, if all differ."""
        staying = int(numel * self._densities[task]) + self._inclusive
        return max(0, min(numel - staying, numel - 1))

    def _empty_counts(self) -> list[Tensor]:
        return [torch.zeros(bracket.bins + 2, dtype=torch.int64) for bracket in self._brackets]


def _place(below: Tensor, rank: int, bracket: _Bracket) -> int:
    """Return the bin that holds the entry of this rank, or the nearest existing bin."""
    place = int(torch.searchsorted(below, rank + 1)) - 1  # the first count is of the patterns below all bins
    return min(max(place, 0), bracket.bins - 1)


def trimmed(delta: Tensor, threshold: float) -> Tensor:
    """Return the delta with entries of magnitude below the threshold set to zero."""
    if not threshold:
        return delta
    exact = torch.tensor(threshold, dtype=delta.dtype)
    just_below = float(exact.nextafter(torch.zeros_like(exact)))  # hardshrink also drops entries equal to its bound
    return torch.nn.functional.hardshrink(delta, just_below)


def surveyed(deltas: Deltas, thresholds: MagnitudeThresholds) -> MagnitudeThresholds:
    """Compute the thresholds from these deltas alone, and return them."""
    while thresholds.share:
        for t, delta in enumerate(deltas):
            thresholds.observe(t, delta)
        thresholds.advance()
    return thresholds
