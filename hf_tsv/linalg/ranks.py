"""How many singular triplets of each task matrix to keep (TSV-Compress, https://arxiv.org/abs/2412.00081).

A matrix stored as factors of rank k takes k (m + n) numbers, its error is the energy of the triplets left out. Every
choice is made from singular values alone, before any vector is computed.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from hf_tsv.errors import MethodError, parse_bytes

Key = TypeVar("Key", bound=Hashable)


class Dense(Enum):
    """Marks a matrix that is stored whole: its factors would take as many bytes."""

    DENSE = "dense"

    def __repr__(self) -> str:
        return "DENSE"


DENSE: Final[Literal[Dense.DENSE]] = Dense.DENSE


@dataclass(frozen=True)
class Spectrum:
    """What a choice of ranks needs to know of a task matrix (m, n).

    Attributes:
        values: Singular values, float64, descending.
        m: Rows.
        n: Columns.
        noise: Values up to this one are rounding noise: they count as no energy and are never kept.
        unit: What a singular value is measured in when matrices compete for a budget. 1 counts plain energy; the
            root mean square of the base matrix's weights counts change relative to the layer, which measured better.
        factor_item: Bytes of a number in a factor.
        whole_item: Bytes of a number of the matrix when it is stored whole.
        rank_numbers: Numbers that one triplet takes, None for m + n.
        whole_numbers: Numbers that the matrix stored whole takes, None for m n.
    """

    values: Tensor
    m: int
    n: int
    noise: float = 0.0
    unit: float = 1.0
    factor_item: int = 4
    whole_item: int = 4
    rank_numbers: int | None = None
    whole_numbers: int | None = None

    @property
    def rank_bytes(self) -> int:
        """Bytes of one triplet."""
        return self.factor_item * (self.m + self.n if self.rank_numbers is None else self.rank_numbers)

    @property
    def whole_bytes(self) -> int:
        """Bytes of the matrix stored whole."""
        return self.whole_item * (self.m * self.n if self.whole_numbers is None else self.whole_numbers)

    @cached_property
    def energies(self) -> Tensor:
        """Squares of the singular values above the noise, (k,) float64."""
        return self.values[self.values > self.noise].double().square()

    @cached_property
    def kept(self) -> Tensor:
        """Energy of the first k triplets, for k = 0, 1, ...: (k + 1,) float64."""
        return torch.cat([torch.zeros(1, dtype=torch.float64), self.energies.cumsum(0)])

    @property
    def full_rank(self) -> int:
        """Triplets above the noise."""
        return len(self.energies)

    def capped(self, rank: int) -> "int | Dense":
        """The rank as far as there is something to keep, or DENSE where that takes the bytes of the whole."""
        rank = min(rank, self.full_rank)
        return DENSE if rank and rank * self.rank_bytes >= self.whole_bytes else rank

    def bytes_at(self, rank: "int | Dense") -> int:
        return self.whole_bytes if isinstance(rank, Dense) else rank * self.rank_bytes

    def energy_at(self, rank: "int | Dense") -> float:
        """Energy kept, above the noise."""
        return float(self.kept[-1] if isinstance(rank, Dense) else self.kept[min(rank, self.full_rank)])

    def error_at(self, rank: "int | Dense") -> float:
        """Frobenius norm of what is left out over that of all, above the noise; 0 for a zero matrix."""
        total = float(self.kept[-1])
        return math.sqrt(max(0.0, 1 - self.energy_at(rank) / total)) if total else 0.0


@dataclass(frozen=True)
class FixedRank:
    """The same number of triplets of every matrix."""

    rank: int


@dataclass(frozen=True)
class Fraction:
    """A share of min(m, n), at least one triplet. The paper's choice is 1 / (number of tasks)."""

    share: float


@dataclass(frozen=True)
class Energy:
    """The fewest triplets with this share of the matrix's energy."""

    share: float


@dataclass(frozen=True)
class Error:
    """The fewest triplets with at most this relative error in the Frobenius norm."""

    most: float


@dataclass(frozen=True)
class Budget:
    """As much energy as fits into this many bytes for all matrices together, with what is stored beside them."""

    nbytes: int


RankChoice: TypeAlias = FixedRank | Fraction | Energy | Error | Budget


def rank_choice(given: Mapping[str, Any], *, num_tasks: int, checkpoint_bytes: int) -> RankChoice:
    """The rule that `rank`, `fraction`, `energy`, `error` or `budget` names; the paper's 1 / T when none does.

    Args:
        given: At most one of them.
        num_tasks: T.
        checkpoint_bytes: What a budget in per cent is a share of.

    Raises:
        MethodError: several are given, or the budget is no size.
    """
    named = {key: value for key, value in given.items() if value is not None}
    if len(named) > 1:
        raise MethodError(f"expected one rule for the ranks but got {', '.join(named)}. Keep one")
    match named:
        case {"rank": rank}:
            return FixedRank(rank)
        case {"energy": share}:
            return Energy(share)
        case {"error": most}:
            return Error(most)
        case {"budget": budget}:
            return Budget(_budget(str(budget), checkpoint_bytes))
    return Fraction(named.get("fraction", 1 / num_tasks))


def _budget(text: str, checkpoint_bytes: int) -> int:
    try:
        if text.endswith("%"):
            share = float(text.removesuffix("%")) / 100
            if 0 < share <= 1:
                return int(share * checkpoint_bytes)
        elif (nbytes := parse_bytes(text)) > 0:
            return nbytes
    except ValueError:
        pass
    raise MethodError(f"expected a budget such as 10MB or 10% but got {text!r}")


def choose_ranks(spectra: Mapping[Key, Spectrum], how: RankChoice, *, fixed_bytes: int = 0) -> dict[Key, "int | Dense"]:
    """How many triplets of each matrix to keep.

    Args:
        spectra: The matrices: those of one task, or of all tasks together when they share a budget.
        how: The rule. Under a budget, ties go to the matrix that comes first.
        fixed_bytes: Bytes of what is stored whatever the ranks are; they count into a budget.

    Returns:
        A rank for each key, 0 where nothing is kept, or DENSE where the matrix itself takes no more bytes.

    Raises:
        MethodError: the budget is smaller than what is stored anyway.
    """
    if isinstance(how, Budget):
        return _spend(spectra, how.nbytes, fixed_bytes)
    return {key: spectrum.capped(_rank(spectrum, how)) for key, spectrum in spectra.items()}


def pooled(spectra: Sequence[Spectrum]) -> Spectrum:
    """Matrices that must have one rank, such as the experts of a layer, as one spectrum.

    Its j-th energy is the sum of theirs, in their own units; a triplet of it costs one of each.
    """
    if len(spectra) == 1:
        return spectra[0]
    width = max((spectrum.full_rank for spectrum in spectra), default=0)
    energies = torch.zeros(width, dtype=torch.float64)
    for spectrum in spectra:
        energies[: spectrum.full_rank] += spectrum.energies / spectrum.unit**2
    return replace(
        spectra[0],
        values=energies.sqrt(),
        noise=0.0,
        unit=1.0,
        rank_numbers=sum(s.rank_bytes for s in spectra) // spectra[0].factor_item,
        whole_numbers=sum(s.whole_bytes for s in spectra) // spectra[0].whole_item,
    )


@dataclass(frozen=True)
class Compression(Generic[Key]):
    """What a choice of ranks costs and keeps.

    Attributes:
        nbytes: Bytes of all factors, of what is stored whole, and of what lies beside them.
        energy: Share of the squared singular values above the noise that is kept, over all matrices; 1 when there
            are none.
        errors: Relative error of each matrix in the Frobenius norm.
    """

    nbytes: int
    energy: float
    errors: Mapping[Key, float] = field(repr=False)


def summarize(
    spectra: Mapping[Key, Spectrum], ranks: Mapping[Key, "int | Dense"], *, fixed_bytes: int = 0
) -> Compression[Key]:
    """Bytes, energy and errors of a choice of ranks."""
    total = sum(float(spectrum.kept[-1]) for spectrum in spectra.values())
    kept = sum(spectrum.energy_at(ranks[key]) for key, spectrum in spectra.items())
    return Compression(
        nbytes=fixed_bytes + sum(spectrum.bytes_at(ranks[key]) for key, spectrum in spectra.items()),
        energy=kept / total if total else 1.0,
        errors={key: spectrum.error_at(ranks[key]) for key, spectrum in spectra.items()},
    )


def _rank(spectrum: Spectrum, how: FixedRank | Fraction | Energy | Error) -> int:
    match how:
        case FixedRank(rank):
            return rank
        case Fraction(share):
            return max(1, int(min(spectrum.m, spectrum.n) * share + 1e-9))
        case Energy(share):
            return _fewest(spectrum, share)
        case Error(most):
            return _fewest(spectrum, 1 - most**2)


def _fewest(spectrum: Spectrum, share: float) -> int:
    """The smallest k with that share of the energy; a share of 1 takes what a sum in float64 can tell from it."""
    wanted = min(share, 1 - 1e-14) * spectrum.kept[-1]
    return int(torch.searchsorted(spectrum.kept, wanted))


# A budget is a knapsack. The gain of a matrix is concave in its rank, so taking triplets by gain per byte is optimal up
# to the item that no longer fits. Storing it whole breaks that: it gains all that is left for less than a triplet.
# The steps that lead there are bought as one item, which makes the gain concave again.


@dataclass(frozen=True)
class _Steps:
    """What can be bought of one matrix, in order: triplets one by one, then maybe the rest as a whole."""

    gains: Tensor  # per item, float64
    costs: Tensor  # per item, int64
    ends_whole: bool

    @property
    def rates(self) -> Tensor:
        return self.gains / self.costs


def _spend(spectra: Mapping[Key, Spectrum], nbytes: int, fixed_bytes: int) -> dict[Key, "int | Dense"]:
    left = nbytes - fixed_bytes
    if left < 0:
        raise MethodError(
            f"expected a budget above the {fixed_bytes} bytes of what is stored anyway but got {nbytes}. Raise it"
        )
    matrices = list(spectra.values())
    steps = [_steps(spectrum, allow_whole=True) for spectrum in matrices]
    while steps:
        bought, refused = _greedy(steps, left)
        if refused is None:
            return {key: _bought(own, items) for key, own, items in zip(spectra, steps, bought, strict=True)}
        steps[refused] = _steps(matrices[refused], allow_whole=False)
    return {}


def _bought(steps: _Steps, items: int) -> "int | Dense":
    return DENSE if steps.ends_whole and items == len(steps.gains) else items


def _steps(spectrum: Spectrum, *, allow_whole: bool) -> _Steps:
    gains, price = spectrum.energies / spectrum.unit**2, spectrum.rank_bytes
    factored = min(len(gains), (spectrum.whole_bytes - 1) // price)  # ranks cheaper than the whole
    costs = torch.full((factored,), price)
    if factored == len(gains) or not allow_whole:
        return _Steps(gains[:factored], costs, ends_whole=False)
    rest = gains.flip(0).cumsum(0).flip(0)[: factored + 1]  # gained by the whole from each rank on
    rest_costs = spectrum.whole_bytes - price * torch.arange(factored + 1)
    start = int((rest * price >= gains[: factored + 1] * rest_costs).nonzero()[0])  # true of the last at least
    return _Steps(
        torch.cat([gains[:start], rest[start : start + 1]]),
        torch.cat([costs[:start], rest_costs[start : start + 1]]),
        ends_whole=True,
    )


def _greedy(steps: Sequence[_Steps], left: int) -> tuple[list[int], int | None]:
    """How many items of each matrix to buy.

    Returns:
        The counts, and the matrix whose item as a whole was the first that did not fit: it has to be bought in
        smaller steps; None when there is none.
    """
    owners = torch.repeat_interleave(torch.arange(len(steps)), torch.tensor([len(s.gains) for s in steps]))
    costs = torch.cat([s.costs for s in steps])
    order = torch.sort(torch.cat([s.rates for s in steps]), descending=True, stable=True).indices
    fitting = int(torch.searchsorted(costs[order].cumsum(0), left, right=True))
    bought = torch.bincount(owners[order[:fitting]], minlength=len(steps)).tolist()
    left -= int(costs[order[:fitting]].sum())
    return bought, _fill(steps, owners[order[fitting:]].tolist(), bought, left)


def _fill(steps: Sequence[_Steps], owners: Iterable[int], bought: list[int], left: int) -> int | None:
    """Spend what is left on the next items that fit; what they are is told as in `_greedy`."""
    closed: set[int] = set()
    for owner in owners:
        if owner in closed:
            continue
        item, own = bought[owner], steps[owner]
        price = int(own.costs[item])
        if price <= left:
            bought[owner], left = item + 1, left - price
        elif own.ends_whole and item == len(own.gains) - 1:
            return owner
        else:
            closed.add(owner)
            if len(closed) == len(steps):
                break
    return None


__all__ = [
    "DENSE",
    "Budget",
    "Compression",
    "Dense",
    "Energy",
    "Error",
    "FixedRank",
    "Fraction",
    "RankChoice",
    "Spectrum",
    "choose_ranks",
    "pooled",
    "rank_choice",
    "summarize",
]
