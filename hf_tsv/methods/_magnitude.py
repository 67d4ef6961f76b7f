"""Exact magnitude thresholds of whole task vectors, without holding one."""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Literal

import torch
from torch import Tensor

from hf_tsv.methods._deltas import Deltas

SAMPLE = 1 / 16  # of every tensor's rows, for a first guess
_MARGIN = 0.005  # of the entries, on either side of the guess
_BINS_OF_SAMPLE = 1 << 15  # its pieces are small
_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


@dataclass
class _Bracket:
    """Bit patterns [low, high) that a threshold is looked for among, counted 2^shift to a bin."""

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
        """How many lie below, in each bin, and above: (bins + 2,)."""
        places = bits - (self.low - (1 << self.shift))
        if self.shift:
            places >>= self.shift
        return torch.bincount(places.clamp_(0, self.bins + 1), minlength=self.bins + 2)

    def bin(self, place: int) -> "_Bracket":
        return _Bracket(self.low + (place << self.shift), min(self.high, self.low + (place + 1 << self.shift)))


class MagnitudeThresholds:
    """Per task, the magnitude that a given share of its entries reaches or exceeds.

    The bit pattern of |x| orders like |x| itself, so the threshold is found by counting patterns. A sample says
    where it should lie; one pass over everything then counts each pattern there. Where the sample was wrong, or
    too many patterns lie there, another pass follows: the result is exact and the same for any order of the tensors.

    Attributes:
        scope: Whether the entries are those of the `model`, or of one `tensor`.
        share: What part of every tensor's rows the next pass has to see; 0 once all thresholds are known.
        thresholds: One float a task, once they are known; keep |x| >= threshold.
    """

    def __init__(
        self,
        densities: Sequence[float],
        dtype: torch.dtype,
        *,
        inclusive: bool,
        scope: Literal["model", "tensor"] = "model",
    ) -> None:
        """`inclusive` keeps one entry more, as the TIES authors' code does: N - int(density N) is their
        rank from below of the smallest entry that stays."""
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
        """Count one tensor's entries, or some rows' of it."""
        if self._patterns[task] is not None:
            return
        magnitudes = delta.abs().to(self._dtype)
        bits = magnitudes.view(_BITS[self._dtype]).flatten()  # (numel,)
        counts = self._brackets[task].counts(bits)
        with self._lock:
            self._counts[task] += counts

    def advance(self) -> None:
        """Look closer, at what the last pass leaves possible."""
        settle = self._guess if self._sampling else self._narrow
        for task, pattern in enumerate(self._patterns):
            if pattern is None:
                settle(task)
        self._sampling = False
        self._counts = self._empty_counts()

    def _guess(self, task: int) -> None:
        """The bins around the sample's own threshold."""
        below = self._counts[task].cumsum(0)
        seen = int(below[-1])
        rank, margin = self._rank(task, seen), _MARGIN * seen
        bracket = self._brackets[task]
        first = _place(below, int(rank - margin), bracket)
        last = _place(below, int(rank + margin), bracket)
        self._brackets[task] = _Bracket(bracket.bin(first).low, bracket.bin(last).high)

    def _narrow(self, task: int) -> None:
        """The one bin that holds the threshold, or the side where it lies."""
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
        """Entries that lie strictly below the smallest that stays, when all differ."""
        staying = int(numel * self._densities[task]) + self._inclusive
        return max(0, min(numel - staying, numel - 1))

    def _empty_counts(self) -> list[Tensor]:
        return [torch.zeros(bracket.bins + 2, dtype=torch.int64) for bracket in self._brackets]


def _place(below: Tensor, rank: int, bracket: _Bracket) -> int:
    """The bin that holds the entry of this rank, among those there are."""
    place = int(torch.searchsorted(below, rank + 1)) - 1  # the first count is of what lies below all bins
    return min(max(place, 0), bracket.bins - 1)


def trimmed(delta: Tensor, threshold: float) -> Tensor:
    """The delta without its entries of magnitude below the threshold: zero is in their place."""
    if not threshold:
        return delta
    exact = torch.tensor(threshold, dtype=delta.dtype)
    just_below = float(exact.nextafter(torch.zeros_like(exact)))  # hardshrink drops what equals its bound
    return torch.nn.functional.hardshrink(delta, just_below)


def surveyed(deltas: Deltas, thresholds: MagnitudeThresholds) -> MagnitudeThresholds:
    """The same thresholds, known: these deltas are all there is."""
    while thresholds.share:
        for t, delta in enumerate(deltas):
            thresholds.observe(t, delta)
        thresholds.advance()
    return thresholds
