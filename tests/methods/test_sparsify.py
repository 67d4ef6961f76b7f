"""Which entries the sparsifying methods keep, and that draws depend on nothing but seed, task, tensor and place."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import hf_tsv.merging.plan
from hf_tsv import merge_state_dicts
from hf_tsv.methods import METHODS, Deltas
from hf_tsv.methods._deltas import DRAWN_AT_ONCE
from hf_tsv.methods._sparsify import rank_in_row, smallest, without_outliers


def ones(*shape: int, tasks: int = 1) -> Deltas:
    return Deltas.of(torch.ones(tasks, *shape))


class TestDraws:
    def test_a_piece_draws_what_the_whole_draws_there(self) -> None:
        whole, piece = ones(DRAWN_AT_ONCE * 2 + 7), ones(DRAWN_AT_ONCE + 3)
        piece.offset = DRAWN_AT_ONCE - 5
        assert torch.equal(piece.uniform(0, 0), whole.uniform(0, 0)[piece.offset :][: DRAWN_AT_ONCE + 3])

    def test_every_key_matters(self) -> None:
        deltas = ones(9, tasks=2)
        drawn = [deltas.uniform(0, 0), deltas.uniform(0, 1), deltas.uniform(1, 0)]
        deltas.name = "layers.0.weight"
        drawn.append(deltas.uniform(0, 0))
        assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])

    def test_float64_draws_the_same(self) -> None:
        both = [Deltas.of(torch.ones(1, 50, dtype=dtype)).uniform(0, 5) for dtype in (torch.float32, torch.float64)]
        assert torch.equal(*both)

    @pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
    def test_no_shape_is_too_small(self, shape: tuple[int, ...]) -> None:
        assert ones(*shape).uniform(0, 0).shape == shape

    @pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
    def test_the_pieces_of_a_merge_do_not_show(self, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def merged() -> Tensor:
            base = {"w": torch.zeros(30, 10)}
            tasks = {name: {"w": torch.full((30, 10), value)} for name, value in (("a", 1.0), ("b", -2.0))}
            return merge_state_dicts(base, tasks, method=method, density=0.5)["w"]

        whole = merged()
        monkeypatch.setattr(hf_tsv.merging.plan, "PIECE", 70)
        assert torch.equal(merged(), whole)


class TestDare:
    def test_keeps_the_share_and_the_mean(self) -> None:
        merged = METHODS["dare_linear"](torch.full((1, 20_000), 3.0), density=0.2)
        kept = merged != 0
        deviation = math.sqrt(0.2 * 0.8 / 20_000)  # of a share of so many draws
        assert float(kept.float().mean()) == pytest.approx(0.2, abs=4 * deviation)
        torch.testing.assert_close(merged[kept], torch.full_like(merged[kept], 15.0))

    def test_norm_keeps_the_sum_of_magnitudes(self) -> None:
        delta = torch.randn(1, 500, generator=torch.Generator().manual_seed(0))
        merged = METHODS["dare_linear"](delta, density=0.3, rescale="norm")
        torch.testing.assert_close(merged.abs().sum(), delta.abs().sum())

    def test_another_task_does_not_change_a_tasks_draw(self) -> None:
        alone = METHODS["dare_linear"](torch.ones(1, 100), density=0.5)
        both = METHODS["dare_linear"](torch.stack([torch.ones(100), torch.zeros(100)]), density=0.5)
        assert torch.equal(alone, both)

    @pytest.mark.parametrize("rescale", [True, False, "norm"])
    @pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
    def test_density_0_keeps_nothing(self, method: str, rescale: Any) -> None:
        assert METHODS[method](torch.ones(2, 6), density=0.0, rescale=rescale).tolist() == [0.0] * 6


class TestDella:
    def test_keeps_entries_by_rank_and_rescales_each_by_its_own_probability(self) -> None:
        """Over many rows alike: the paper's p_i from density - epsilon to density + epsilon, and the mean is kept."""
        delta = torch.tensor([1.0, -4.0, 2.0, 3.0, -5.0]).expand(1, 20_000, 5)
        merged = METHODS["della_linear"](delta, density=0.5, epsilon=0.4)
        kept = (merged != 0).double().mean(0)
        want = torch.tensor([0.1, 0.7, 0.3, 0.5, 0.9], dtype=torch.float64)
        deviation = (want * (1 - want) / 20_000).sqrt()  # of shares of so many draws
        assert ((kept - want).abs() < 4 * deviation).all()
        torch.testing.assert_close(merged[:, 1].min(), torch.tensor(-4 / 0.7))
        mean = delta[0, 0].double()
        assert ((merged.double().mean(0) - mean).abs() < 4 * deviation * (mean / want).abs()).all()

    def test_ranks_of_equals_are_those_of_their_places(self) -> None:
        assert rank_in_row(torch.tensor([2.0, -2.0, 0.0, 2.0, 1.0])).tolist() == [0.5, 0.75, 0.0, 1.0, 0.25]

    def test_a_row_of_one_entry_has_rank_0(self) -> None:
        assert rank_in_row(torch.ones(3, 1)).tolist() == [[0.0]] * 3


# A parameter's value for each task: the first task's would do neither of the others right.
OWN = {
    "dare_linear": {"density": (0.9, 0.5, 0.2)},
    "dare_ties": {"density": (0.9, 0.5, 0.2)},
    "della": {"density": (0.8, 0.5, 0.3), "epsilon": (0.2, 0.5, 0.05)},
    "della_linear": {"density": (0.8, 0.5, 0.3), "epsilon": (0.2, 0.5, 0.05)},
    "breadcrumbs": {"density": (0.9, 0.5, 0.2), "gamma": (0.05, 0.3, 0.6)},
    "breadcrumbs_ties": {"density": (0.9, 0.5, 0.2), "gamma": (0.05, 0.3, 0.6)},
}


@pytest.mark.parametrize(("method", "name"), [(m, name) for m, own in OWN.items() for name in own])
def test_every_task_has_parameters_of_its_own(method: str, name: str) -> None:
    deltas, merge = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(0)), METHODS[method]
    own, first = OWN[method], {key: values[0] for key, values in OWN[method].items()}
    for t in range(3):
        alone = Deltas.of(deltas, weights=[float(other == t) for other in range(3)])
        wanted = merge(alone, **{key: values[t] for key, values in own.items()})
        assert torch.equal(merge(alone, **own), wanted)
        assert t == 0 or not torch.equal(merge(alone, **{**own, name: first[name]}), wanted)


class TestBreadcrumbs:
    def test_both_tails_go(self) -> None:
        delta = torch.arange(1.0, 11)
        assert without_outliers(delta, 0.5, 0.2, rescale=False).tolist() == [0, 0, 0, 4, 5, 6, 7, 8, 0, 0]

    def test_density_comes_before_gamma(self) -> None:
        delta = torch.arange(1.0, 11)
        assert without_outliers(delta, 0.9, 0.5, rescale=False).tolist() == [*range(1, 10), 0]

    def test_rescaling_keeps_the_sum_of_magnitudes(self) -> None:
        assert float(without_outliers(torch.arange(1.0, 11), 0.5, 0.2, rescale=True).sum()) == pytest.approx(55)


@given(values=st.lists(st.integers(0, 5), min_size=1, max_size=30), count=st.integers(0, 30))
def test_the_smallest_are_those_that_a_stable_sort_puts_first(values: list[int], count: int) -> None:
    count = min(count, len(values))
    want = sorted(range(len(values)), key=lambda i: values[i])[:count]
    mask = smallest(torch.tensor(values, dtype=torch.float32), count)
    assert mask.nonzero().flatten().tolist() == sorted(want)
