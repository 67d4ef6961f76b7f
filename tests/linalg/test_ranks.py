"""Ranks: each rule does what it says, and a budget is spent as well as it can be."""

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_tsv.errors import MethodError
from hf_tsv.linalg import singular_values, truncated_svd
from hf_tsv.linalg.ranks import (
    DENSE,
    KEEP_FORMS,
    RULES,
    Budget,
    Dense,
    Energy,
    Error,
    FixedRank,
    Fraction,
    RankRule,
    Spectrum,
    choose_ranks,
    parse_keep,
    pooled,
    rank_choice,
    summarize,
)
from hf_tsv.methods import METHODS
from hf_tsv.recipe._schema import Residuals

Ranks = Mapping[str, int | Dense]


def spectrum(*values: float, m: int = 40, n: int = 60, **options: Any) -> Spectrum:
    return Spectrum(torch.tensor(values, dtype=torch.float64), m, n, **options)


def one(spectrum: Spectrum, how: RankRule) -> int | Dense:
    return choose_ranks({"a": spectrum}, how)["a"]


class TestRules:
    def test_a_fixed_rank_ends_where_the_noise_begins(self) -> None:
        assert one(spectrum(5, 4, 3, 2, 1), FixedRank(3)) == 3
        assert one(spectrum(5, 4, 3, 2, 1, noise=3.5), FixedRank(3)) == 2
        assert one(spectrum(5, 4, 3, 2, 1, noise=5), FixedRank(3)) == 0

    def test_a_fraction_is_of_the_short_side_and_at_least_one(self) -> None:
        values = torch.ones(40, dtype=torch.float64)
        assert choose_ranks({"a": Spectrum(values, 40, 600)}, Fraction(1 / 4))["a"] == 10
        assert choose_ranks({"a": Spectrum(values, 40, 600)}, Fraction(1 / 50))["a"] == 1

    def test_energy_is_reached_by_the_fewest(self) -> None:
        a = spectrum(3, 2, 1)  # energies 9, 4, 1 of 14
        assert [one(a, Energy(share)) for share in (9 / 14, 0.65, 13 / 14, 0.95, 1.0)] == [1, 2, 2, 3, 3]
        assert one(a, Energy(0)) == 0

    def test_energy_counts_above_the_noise(self) -> None:
        assert one(spectrum(3, 2, *[1] * 30, noise=1.0), Energy(1.0)) == 2

    def test_error_is_kept_by_the_fewest(self) -> None:
        a = spectrum(3, 2, 1)
        assert one(a, Error(1 / math.sqrt(14) + 1e-9)) == 2
        assert one(a, Error(1 / math.sqrt(14) - 1e-9)) == 3
        assert one(a, Error(1.0)) == 0

    @pytest.mark.parametrize(("m", "n"), [(12, 30), (30, 12), (16, 16)])
    def test_the_error_told_is_the_error_made(self, m: int, n: int) -> None:
        delta = torch.randn(m, n, generator=torch.Generator().manual_seed(m), dtype=torch.float64)
        a = Spectrum(singular_values(delta), m, n, factor_item=1)
        for wanted in (0.9, 0.5, 0.2):
            rank = one(a, Error(wanted))
            assert isinstance(rank, int)
            for k in (rank, rank - 1):
                factors = truncated_svd(delta, k)
                made = float((delta - (factors.u * factors.s) @ factors.vh).norm() / delta.norm())
                assert made == pytest.approx(a.error_at(k), abs=1e-9)
            assert a.error_at(rank) <= wanted < a.error_at(rank - 1)

    def test_what_costs_as_much_as_the_whole_is_stored_whole(self) -> None:
        values = torch.ones(40, dtype=torch.float64)
        for k, expected in [(23, 23), (24, DENSE), (40, DENSE)]:  # 40 * 60 = 24 * (40 + 60)
            assert choose_ranks({"a": Spectrum(values, 40, 60)}, FixedRank(k))["a"] == expected
        halves = Spectrum(values, 40, 60, factor_item=2, whole_item=4)
        assert choose_ranks({"a": halves}, FixedRank(40))["a"] == 40

    def test_no_change_has_rank_zero_and_no_error(self) -> None:
        for values in ([], [0.0, 0.0]):
            a = Spectrum(torch.tensor(values, dtype=torch.float64), 4, 4)
            for how in (FixedRank(3), Fraction(0.5), Energy(0.9), Error(0.1)):
                assert one(a, how) == 0
            assert a.error_at(0) == 0
            assert choose_ranks({"a": a}, Budget(100)) == {"a": 0}


class TestWords:
    """A rule is one class; recipe, `tsv_c` and command line have its word from it."""

    def test_every_rule_is_taken_everywhere(self) -> None:
        assert list(RULES) == ["rank", "fraction", "energy", "error", "budget"]
        assert METHODS["tsv_c"].parameters.keys() == Residuals.model_fields.keys() == RULES.keys()
        assert [f"{parameter.name}: {parameter.type_name}" for parameter in METHODS["tsv_c"].parameters.values()] == [
            "rank: int | none",
            "fraction: float | none",
            "energy: float | none",
            "error: float | none",
            "budget: str | none",
        ]

    def test_the_rule_that_is_written(self) -> None:
        def chosen(**given: Any) -> RankRule:
            return rank_choice(given, num_tasks=4, checkpoint_bytes=1000)

        assert chosen(rank=3, energy=None) == FixedRank(3)
        assert chosen(fraction=0.5) == Fraction(0.5)
        assert chosen(energy=0.9) == Energy(0.9)
        assert chosen(error=0.1) == Error(0.1)
        assert chosen(budget="10%") == Budget(100)
        assert chosen(budget="2kB") == Budget(2000)
        assert chosen() == Fraction(0.25)
        with pytest.raises(MethodError, match="several rules for the ranks: rank, error. Keep one"):
            chosen(rank=3, error=0.1)

    @pytest.mark.parametrize("text", ["0%", "101%", "-1MB", "0", "lots", "%", "nan%"])
    def test_what_is_not_a_budget(self, text: str) -> None:
        with pytest.raises(MethodError, match=f"'{text}' is not a budget. Write a size such as 10MB, or a share"):
            rank_choice({"budget": text}, num_tasks=1, checkpoint_bytes=1000)

    def test_keep_sets_the_recipes_parameter(self) -> None:
        found = [parse_keep(form) for form in ("10%", " 10MB ", "rank=16", "fraction = 0.5", "energy=0.9", "error=0.1")]
        assert found == [
            {"budget": "10%"},
            {"budget": "10MB"},
            {"rank": 16},
            {"fraction": 0.5},
            {"energy": 0.9},
            {"error": 0.1},
        ]
        assert type(found[2]["rank"]) is int
        assert KEEP_FORMS == ("10%", "10MB", "rank=16", "fraction=0.5", "energy=0.9", "error=0.1")
        assert all(rank_choice(parse_keep(form), num_tasks=1, checkpoint_bytes=10**9) for form in KEEP_FORMS)

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("lots", "'lots' is neither a size nor a share"),
            ("", "'' is neither a size nor a share"),
            ("200%", "'200%' is neither a size nor a share"),
            ("ranks=16", "there is no rule 'ranks'"),
            ("=16", "there is no rule ''"),
            ("rank=", "rank: input should be a valid integer, unable to parse string as an integer"),
            ("rank=0", "rank: input should be greater than or equal to 1"),
            ("rank=1.5", "rank: input should be a valid integer, unable to parse string as an integer"),
            ("energy=1.5", "energy: input should be less than or equal to 1"),
            ("error=0", "error: input should be greater than 0"),
            ("fraction=nan", "fraction: input should be less than or equal to 1"),
        ],
    )
    def test_what_keep_does_not_take(self, text: str, problem: str) -> None:
        with pytest.raises(MethodError) as caught:
            parse_keep(text)
        assert str(caught.value) == (
            f"--keep {text}: {problem}. Write one of 10%, 10MB, rank=16, fraction=0.5, energy=0.9, error=0.1"
        )


def gain(a: Spectrum, rank: int | Dense) -> float:
    """What a rank gains of a matrix, in the currency of a budget: written down anew, from the definition."""
    above = a.values[a.values > a.noise].square() / a.unit**2
    return float(above.sum() if isinstance(rank, Dense) else above[:rank].sum())


def cost(a: Spectrum, rank: int | Dense) -> int:
    return a.whole_item * a.m * a.n if isinstance(rank, Dense) else a.factor_item * rank * (a.m + a.n)


def total(of: Callable[[Spectrum, int | Dense], float], spectra: Mapping[str, Spectrum], ranks: Ranks) -> float:
    return sum(of(spectra[key], rank) for key, rank in ranks.items())


def choices(spectra: Mapping[str, Spectrum]) -> list[list[tuple[float, int]]]:
    """(gain, bytes) of every rank of every matrix."""
    return [[(gain(a, k), cost(a, k)) for k in (*range(len(a.values) + 1), DENSE)] for a in spectra.values()]


def sums(chosen: Iterable[tuple[float, int]]) -> tuple[float, int]:
    gains, costs = zip(*chosen, strict=True)
    return sum(gains), sum(costs)


def best(spectra: Mapping[str, Spectrum], budget: int) -> float:
    """The most that can be gained, by trying everything."""
    everything = map(sums, product(*choices(spectra)))
    return max(gained for gained, paid in everything if paid <= budget)


def by_price(table: list[list[tuple[float, int]]], price: float) -> tuple[float, int]:
    """What maximises gain - price * bytes, matrix by matrix: no allocation of its bytes gains more."""
    return sums(max(of_one, key=lambda choice: choice[0] - price * choice[1]) for of_one in table)


matrices = st.builds(
    lambda values, m, n, unit, item: Spectrum(
        torch.tensor(sorted(values, reverse=True)[: min(m, n)], dtype=torch.float64), m, n, unit=unit, factor_item=item
    ),
    st.lists(st.floats(0.01, 10) | st.sampled_from([1.0, 2.0]), min_size=1, max_size=5),
    st.integers(2, 6),
    st.integers(2, 6),
    st.sampled_from([1.0, 0.3, 2.0]),
    st.sampled_from([1, 2, 4]),
)


PRICES = [10 ** (exponent / 10) for exponent in range(-50, 40)]


class TestBudget:
    @pytest.mark.slow
    @settings(max_examples=60)
    @given(st.lists(matrices, min_size=1, max_size=4), st.integers(0, 1200))
    def test_no_allocation_beats_it_by_more_than_the_item_left_out(self, found: list[Spectrum], budget: int) -> None:
        """Its gain is at least that of every allocation which is optimal for the bytes it takes and fits; the one
        after these exceeds the optimum. Between the two lies one item: a triplet, or what is left of a matrix."""
        spectra = {str(i): a for i, a in enumerate(found)}
        got = choose_ranks(spectra, Budget(budget))
        assert total(cost, spectra, got) <= budget
        optimum = best(spectra, budget)
        assert total(gain, spectra, got) <= optimum * (1 + 1e-9)
        priced = [by_price(choices(spectra), price) for price in PRICES]
        assert total(gain, spectra, got) >= max(g for g, paid in priced if paid <= budget) * (1 - 1e-9)
        assert optimum <= min((g for g, paid in priced if paid > budget), default=optimum) * (1 + 1e-9)

    @settings(max_examples=100)
    @given(st.lists(matrices, min_size=1, max_size=4), st.integers(0, 1200))
    def test_without_wholes_what_is_missed_is_less_than_one_triplet(self, found: list[Spectrum], budget: int) -> None:
        spectra = {str(i): Spectrum(a.values, a.m, a.n, whole_item=100) for i, a in enumerate(found)}
        got = choose_ranks(spectra, Budget(budget))
        following = [
            gain(a, rank + 1) - gain(a, rank)
            for a, rank in ((spectra[key], rank) for key, rank in got.items())
            if isinstance(rank, int)
        ]
        assert best(spectra, budget) - total(gain, spectra, got) <= max(following) + 1e-9

    @settings(max_examples=50)
    @given(st.lists(matrices, min_size=1, max_size=4), st.integers(0, 600), st.integers(0, 600))
    def test_more_bytes_never_keep_less(self, found: list[Spectrum], budget: int, more: int) -> None:
        """Up to the item that did not fit: what is kept of a smaller budget is at most one item above."""
        spectra = {str(i): a for i, a in enumerate(found)}
        everything = sum(cost(a, DENSE) + cost(a, len(a.values)) for a in found)
        assert total(gain, spectra, choose_ranks(spectra, Budget(everything))) == pytest.approx(
            sum(gain(a, DENSE) for a in found)
        )
        less, most = (choose_ranks(spectra, Budget(b)) for b in (budget, budget + more))
        assert total(gain, spectra, most) >= total(gain, spectra, less) - max(gain(a, DENSE) for a in found)

    def test_a_flat_spectrum_is_stored_whole_before_it_is_factored(self) -> None:
        """Half the values of a square matrix cost as much as all of it."""
        flat, steep = spectrum(*[1.0] * 8, m=8, n=8), spectrum(3, 0.1, m=8, n=8)
        assert choose_ranks({"flat": flat, "steep": steep}, Budget(64 + 4 * 64)) == {"flat": DENSE, "steep": 1}
        assert choose_ranks({"flat": flat, "steep": steep}, Budget(64 + 3 * 64)) == {"flat": 3, "steep": 1}

    def test_a_whole_is_bought_for_all_that_it_gains(self) -> None:
        """Its last step alone, from rank 3 on, gains more a byte than anything; the steps before it gain less."""
        flat, other = spectrum(*[1.0] * 8, m=8, n=8), spectrum(*[1.2] * 8, m=8, n=8, whole_item=100)
        assert choose_ranks({"flat": flat, "other": other}, Budget(256)) == {"flat": DENSE, "other": 0}

    def test_what_is_left_goes_to_what_still_fits(self) -> None:
        wide, small = spectrum(3, 2, 1, whole_item=100), spectrum(0.2, 0.1, m=2, n=8, whole_item=100)
        assert choose_ranks({"wide": wide, "small": small}, Budget(499)) == {"wide": 1, "small": 2}
        assert choose_ranks({"wide": wide, "small": small}, Budget(440)) == {"wide": 1, "small": 1}

    def test_the_currency_is_the_unit(self) -> None:
        a, b = spectrum(2, 2, 2), spectrum(1, 1, 1)
        assert choose_ranks({"a": a, "b": b}, Budget(3 * 400)) == {"a": 3, "b": 0}
        small = spectrum(1, 1, 1, unit=0.1)
        assert choose_ranks({"a": a, "b": small}, Budget(3 * 400)) == {"a": 0, "b": 3}

    def test_ties_go_to_the_first(self) -> None:
        spectra = {key: spectrum(1, 1, 1) for key in range(500, 0, -1)}
        ranks = choose_ranks(spectra, Budget(301 * 400))
        assert list(ranks.values()) == [3] * 100 + [1] + [0] * 399

    def test_noise_is_not_bought(self) -> None:
        assert choose_ranks({"a": spectrum(3, 2, 1, noise=1.5)}, Budget(10**6)) == {"a": 2}

    def test_what_is_stored_anyway_counts(self) -> None:
        a = {"a": spectrum(3, 2, 1)}
        assert choose_ranks(a, Budget(1000), fixed_bytes=200) == {"a": 2}
        with pytest.raises(MethodError, match="of 1000 bytes is less than the 1001 bytes that are stored anyway"):
            choose_ranks(a, Budget(1000), fixed_bytes=1001)

    def test_nothing_to_spend_on(self) -> None:
        assert choose_ranks({}, Budget(10)) == {}

    def test_a_model_takes_no_time(self) -> None:
        """Seven tasks of a model with 200 matrices of 1000 values: sorted, not looped over."""
        values = torch.logspace(0, -3, 1000, dtype=torch.float64)
        spectra = {i: Spectrum(values * (1 + i / 1400), 1000, 4000) for i in range(1400)}
        nbytes = 4 * 5000 * 100 * 1400
        ranks = choose_ranks(spectra, Budget(nbytes))
        assert nbytes - 4 * 5000 < summarize(spectra, ranks).nbytes <= nbytes


class TestSummary:
    def test_bytes_energy_and_errors(self) -> None:
        spectra = {"a": spectrum(3, 2, 1), "b": spectrum(2, 1, m=2, n=2, factor_item=2), "c": spectrum(1)}
        found = summarize(spectra, {"a": 2, "b": DENSE, "c": 0}, fixed_bytes=7)
        assert found.nbytes == 7 + 2 * 400 + 16
        assert found.energy == pytest.approx((13 + 5) / (14 + 5 + 1))
        assert found.errors == pytest.approx({"a": math.sqrt(1 / 14), "b": 0, "c": 1})

    def test_no_change_is_kept_entirely(self) -> None:
        assert summarize({}, {}).energy == 1.0

    def test_pooled_matrices_have_one_rank(self) -> None:
        a, b = spectrum(3, 2, 1, noise=1.5, unit=2.0), spectrum(4, 2, 1)
        both = pooled([a, b])
        torch.testing.assert_close(both.energies, torch.tensor([9 / 4 + 16, 1 + 4.0, 1.0], dtype=torch.float64))
        assert (both.rank_bytes, both.whole_bytes) == (2 * 400, 2 * 4 * 2400)
        assert choose_ranks({"both": both}, Budget(1700)) == {"both": 2}
