"""Rank rules: how many singular triplets of each task matrix to keep (TSV-Compress, https://arxiv.org/abs/2412.00081).

A matrix stored as factors of rank k takes k (m + n) numbers; its squared error is the energy of the triplets left out.
Every choice is made from singular values alone, before any vector is computed.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Annotated, Any, ClassVar, Final, Generic, Literal, Self, TypeAlias, TypeVar

import torch
from annotated_types import Ge, Gt, Le
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from hf_tsv.errors import MethodError, parse_bytes
from hf_tsv.linalg._knapsack import Goods, spend

Key = TypeVar("Key", bound=Hashable)
Share = Annotated[float, Gt(0), Le(1)]


class Dense(Enum):
    """Marks a matrix that is stored whole, because its factors would take at least as many bytes."""

    DENSE = "dense"

    def __repr__(self) -> str:
        return "DENSE"


DENSE: Final[Literal[Dense.DENSE]] = Dense.DENSE


@dataclass(frozen=True)
class Spectrum:
    """The spectrum and sizes of a task matrix (m, n), from which its rank is chosen.

    Attributes:
        values: Singular values, float64, descending.
        m: Rows.
        n: Columns.
        noise: Values up to this one are rounding noise: they have no energy and are never kept.
        unit: Unit of the singular values when matrices compete for a budget. 1 counts plain energy; the root mean
            square of the base matrix's weights counts change relative to the layer, which gave better results.
        factor_item: Bytes per number in a factor.
        whole_item: Bytes per number of the matrix stored whole.
        rank_numbers: Numbers stored per triplet; None for m + n.
        whole_numbers: Numbers of the matrix stored whole; None for m n.
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
        numbers = self.m + self.n if self.rank_numbers is None else self.rank_numbers
        return self.factor_item * numbers

    @property
    def whole_bytes(self) -> int:
        """Bytes of the matrix stored whole."""
        numbers = self.m * self.n if self.whole_numbers is None else self.whole_numbers
        return self.whole_item * numbers

    @cached_property
    def energies(self) -> Tensor:
        """Squares of the singular values above the noise, (k,) float64."""
        return self.values[self.values > self.noise].double().square()

    @cached_property
    def kept(self) -> Tensor:
        """Energy of the first j triplets, for j = 0, ..., k: (k + 1,) float64."""
        return torch.cat([torch.zeros(1, dtype=torch.float64), self.energies.cumsum(0)])

    @property
    def full_rank(self) -> int:
        """Number of triplets above the noise."""
        return len(self.energies)

    def capped(self, rank: int) -> int | Dense:
        """Return the rank, at most `full_rank`, or DENSE if it takes at least the bytes of the whole matrix."""
        rank = min(rank, self.full_rank)
        is_whole = rank > 0 and rank * self.rank_bytes >= self.whole_bytes
        return DENSE if is_whole else rank

    def bytes_at(self, rank: int | Dense) -> int:
        return self.whole_bytes if isinstance(rank, Dense) else rank * self.rank_bytes

    def energy_at(self, rank: int | Dense) -> float:
        """Return the energy kept, above the noise."""
        k = self.full_rank if isinstance(rank, Dense) else min(rank, self.full_rank)
        return float(self.kept[k])

    def error_at(self, rank: int | Dense) -> float:
        """Return the left-out part's Frobenius norm over the whole's, above the noise; 0 for a zero matrix."""
        total = float(self.kept[-1])
        if not total:
            return 0.0
        left_out = 1 - self.energy_at(rank) / total
        return math.sqrt(max(0.0, left_out))  # rounding can make it slightly negative


@dataclass(frozen=True)
class RankRule(ABC):
    """A rule for the number of triplets to keep. A new rule is one class here and its place in RULES.

    Attributes:
        word: The rule's name in recipes and on the command line.
        value: Type and range of the rule's value, as pydantic reads them.
        about: Description for help texts.
        example: An example value, as typed on the command line.
    """

    word: ClassVar[str]
    value: ClassVar[Any]
    about: ClassVar[str]
    example: ClassVar[str]

    @classmethod
    @abstractmethod
    def of(cls, value: Any, checkpoint_bytes: int) -> Self:
        """Build the rule from the value that was written; a size in per cent is a share of `checkpoint_bytes`.

        Raises:
            MethodError: the value isn't valid.
        """

    @abstractmethod
    def choose(self, spectra: Mapping[Key, Spectrum], fixed_bytes: int) -> dict[Key, int | Dense]:
        """Choose the ranks. See `choose_ranks`."""


@dataclass(frozen=True)
class _OneByOne(RankRule):
    """A rule that considers one matrix at a time. Its only field is the value that was written for it."""

    @classmethod
    def of(cls, value: Any, checkpoint_bytes: int) -> Self:
        return cls(value)  # type: ignore[call-arg]  # a dataclass of one field

    def choose(self, spectra: Mapping[Key, Spectrum], fixed_bytes: int) -> dict[Key, int | Dense]:
        return {key: spectrum.capped(self.triplets(spectrum)) for key, spectrum in spectra.items()}

    @abstractmethod
    def triplets(self, spectrum: Spectrum) -> int:
        """Return how many triplets of one matrix to keep, if that many are above its noise."""


@dataclass(frozen=True)
class FixedRank(_OneByOne):
    """The same number of triplets of every matrix."""

    rank: int

    word = "rank"
    value = Annotated[int, Ge(1)]
    about = "Triplets kept."
    example = "16"

    def triplets(self, spectrum: Spectrum) -> int:
        return self.rank


@dataclass(frozen=True)
class Fraction(_OneByOne):
    """A share of min(m, n), at least one triplet. The paper's choice is 1 / (number of tasks)."""

    share: float

    word = "fraction"
    value = Share
    about = "Share of min(m, n) kept."
    example = "0.5"

    def triplets(self, spectrum: Spectrum) -> int:
        # Slightly more, or 1/49 of 49 would become 0 because 1/49 is rounded.
        return max(1, int(min(spectrum.m, spectrum.n) * self.share + 1e-9))


@dataclass(frozen=True)
class Energy(_OneByOne):
    """The fewest triplets with this share of the matrix's energy."""

    share: float

    word = "energy"
    value = Share
    about = "The fewest triplets with this share of the squared change."
    example = "0.9"

    def triplets(self, spectrum: Spectrum) -> int:
        return _fewest(spectrum, self.share)


@dataclass(frozen=True)
class Error(_OneByOne):
    """The fewest triplets with at most this relative error in the Frobenius norm."""

    most: float

    word = "error"
    value = Share
    about = "The fewest triplets with at most this relative error."
    example = "0.1"

    def triplets(self, spectrum: Spectrum) -> int:
        return _fewest(spectrum, 1 - self.most**2)


@dataclass(frozen=True)
class Budget(RankRule):
    """As much energy as fits into this many bytes for all matrices together, including what is stored beside them."""

    nbytes: int

    word = "budget"
    value = str
    about = "As much as fits into a size such as 10MB, or a share of the model such as 10%, for the whole adapter."
    example = "10%"

    @classmethod
    def of(cls, value: Any, checkpoint_bytes: int) -> Self:
        text = str(value)
        try:
            if text.endswith("%"):
                share = float(text.removesuffix("%")) / 100
                if 0 < share <= 1:
                    return cls(int(share * checkpoint_bytes))
            elif (nbytes := parse_bytes(text)) > 0:
                return cls(nbytes)
        except ValueError:
            pass  # not a number: refused below, like one out of range
        raise MethodError(f"{text!r} is not a budget. Write a size such as 10MB, or a share such as 10%")

    def choose(self, spectra: Mapping[Key, Spectrum], fixed_bytes: int) -> dict[Key, int | Dense]:
        left = self.nbytes - fixed_bytes
        if left < 0:
            raise MethodError(
                f"a budget of {self.nbytes} bytes is less than the {fixed_bytes} bytes that are stored anyway. Raise it"
            )
        goods = []
        for spectrum in spectra.values():
            gains = spectrum.energies / spectrum.unit**2  # (k,)
            goods.append(Goods(gains, spectrum.rank_bytes, spectrum.whole_bytes))
        ranks: dict[Key, int | Dense] = {}
        for key, rank in zip(spectra, spend(goods, left), strict=True):
            ranks[key] = DENSE if rank is None else rank
        return ranks


RULES: dict[str, type[RankRule]] = {rule.word: rule for rule in (FixedRank, Fraction, Energy, Error, Budget)}
RankChoice: TypeAlias = RankRule  # the rule by which ranks are chosen
# Forms accepted after --keep. A budget is written without its word.
KEEP_FORMS = ("10%", "10MB", *(f"{word}={rule.example}" for word, rule in RULES.items() if rule is not Budget))


def rank_choice(given: Mapping[str, Any], *, num_tasks: int, checkpoint_bytes: int) -> RankChoice:
    """Return the rule that a recipe's parameters name; the paper's 1 / T if they name none.

    Args:
        given: The value written for each word of RULES; None if nothing is.
        num_tasks: T.
        checkpoint_bytes: Bytes of the model that a budget in per cent is a share of.

    Raises:
        MethodError: several rules are given, or the budget isn't a size or share.
    """
    written = {word: value for word, value in given.items() if value is not None}
    if len(written) > 1:
        raise MethodError(f"several rules for the ranks: {', '.join(written)}. Keep one")
    for word, value in written.items():
        return RULES[word].of(value, checkpoint_bytes)
    return Fraction(1 / num_tasks)


def parse_keep(text: str) -> dict[str, Any]:
    """Parse `--keep TEXT`: a budget, or a rule's word, `=`, and its value.

    Returns:
        The recipe parameter that it sets, as `rank_choice` takes it, such as `{"budget": "10%"}` or `{"rank": 16}`.

    Raises:
        MethodError: the text is neither, or the value is outside the rule's range.
    """
    way_out = f"Write one of {', '.join(KEEP_FORMS)}"
    before, equals, after = text.partition("=")
    word, written = before.strip(), after.strip()
    if not equals:  # a budget is written without its word
        word, written = Budget.word, before.strip()
    if word not in RULES:
        raise MethodError(f"--keep {text}: there is no rule '{word}'. {way_out}")
    rule = RULES[word]
    try:
        value = TypeAdapter(rule.value).validate_strings(written)
        rule.of(value, checkpoint_bytes=1)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise MethodError(f"--keep {text}: {word}: {problem[:1].lower()}{problem[1:]}. {way_out}") from error
    except MethodError as error:
        raise MethodError(f"--keep {text}: '{written}' is neither a size nor a share. {way_out}") from error
    return {word: value}


def choose_ranks(spectra: Mapping[Key, Spectrum], how: RankChoice, *, fixed_bytes: int = 0) -> dict[Key, int | Dense]:
    """Choose how many triplets of each matrix to keep.

    Args:
        spectra: The matrices of one task, or of all tasks together if they share a budget.
        how: The rule. Under a budget, ties go to the matrix that comes first.
        fixed_bytes: Bytes stored whatever the ranks are; they count towards a budget.

    Returns:
        The rank for each key: 0 if nothing is kept, DENSE if the whole matrix takes no more bytes than its factors.

    Raises:
        MethodError: the budget is smaller than fixed_bytes.
    """
    return how.choose(spectra, fixed_bytes)


def pooled(spectra: Sequence[Spectrum]) -> Spectrum:
    """Combine matrices that must have the same rank, such as a layer's experts, into one spectrum.

    Its j-th energy is the sum of their j-th energies, in their own units; its triplet costs one of each of theirs.
    """
    if len(spectra) == 1:
        return spectra[0]
    # Shorter spectra are padded with zeros.
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
    """Cost and error of a choice of ranks.

    Attributes:
        nbytes: Bytes of all factors, of the matrices stored whole, and of the fixed part.
        energy: Share of the squared singular values above the noise that is kept, over all matrices; 1 if there
            are none.
        errors: Relative error of each matrix in the Frobenius norm.
    """

    nbytes: int
    energy: float
    errors: Mapping[Key, float] = field(repr=False)


def summarize(
    spectra: Mapping[Key, Spectrum], ranks: Mapping[Key, int | Dense], *, fixed_bytes: int = 0
) -> Compression[Key]:
    """Compute the bytes, energy and errors of a choice of ranks."""
    total = sum(float(spectrum.kept[-1]) for spectrum in spectra.values())
    kept = sum(spectrum.energy_at(ranks[key]) for key, spectrum in spectra.items())
    return Compression(
        nbytes=fixed_bytes + sum(spectrum.bytes_at(ranks[key]) for key, spectrum in spectra.items()),
        energy=kept / total if total else 1.0,
        errors={key: spectrum.error_at(ranks[key]) for key, spectrum in spectra.items()},
    )


def _fewest(spectrum: Spectrum, share: float) -> int:
    """Return the smallest k with that share of the energy; a share of 1 stops where float64 sums can't tell."""
    wanted = min(share, 1 - 1e-14) * spectrum.kept[-1]  # kept[k] is the energy of k triplets, so an index is a rank
    return int(torch.searchsorted(spectrum.kept, wanted))


__all__ = [
    "DENSE",
    "KEEP_FORMS",
    "RULES",
    "Budget",
    "Compression",
    "Dense",
    "Energy",
    "Error",
    "FixedRank",
    "Fraction",
    "RankChoice",
    "RankRule",
    "Spectrum",
    "choose_ranks",
    "parse_keep",
    "pooled",
    "rank_choice",
    "summarize",
]
