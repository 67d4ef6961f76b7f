"""TSV-Merge against a float64 transcription of the paper, and what is true of this method alone."""

import pytest
import torch
from torch import Tensor

from hf_tsv.linalg import rounding_edge
from hf_tsv.methods import METHODS, Deltas
from tests.support.oracles import tsv_m as paper
from tests.support.tensors import error
from tests.support.tolerances import factorisation, rounding

tsv_m = METHODS["tsv_m"]

# Each polar factor amplifies the rounding of these tasks' vectors to float32 by at most 5, and four roundings follow.
EXACT = rounding(torch.float32, condition=4 + 5 + 5)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_rank(tasks: int, m: int, n: int, rank: int) -> Tensor:
    return random(tasks, m, rank, seed=1) @ random(tasks, rank, n, seed=2) / rank


@pytest.mark.parametrize(
    "shape", [(4, 64, 48), (4, 48, 96), (3, 50, 50), (8, 33, 65), (1, 20, 30)], ids=lambda s: "x".join(map(str, s))
)
def test_agrees_with_the_paper(shape: tuple[int, ...]) -> None:
    deltas = random(*shape)
    assert error(tsv_m(deltas), paper(deltas)) < EXACT


@pytest.mark.parametrize("shape", [(4, 64, 48), (3, 50, 50)], ids=lambda s: "x".join(map(str, s)))
def test_paper_parity_agrees_with_the_paper(shape: tuple[int, ...]) -> None:
    deltas = random(*shape)
    assert error(tsv_m(deltas, parity="paper"), paper(deltas)) < EXACT


def test_float64_is_computed_in_float64() -> None:
    deltas = random(4, 64, 48).double()
    assert error(tsv_m(deltas), paper(deltas)) < factorisation(torch.float64, 64 + 48, condition=5)


def test_its_spectrum_is_the_tasks_leading_singular_values() -> None:
    deltas = random(4, 64, 48)
    leading = torch.linalg.svdvals(deltas.double())[:, :12].flatten().sort(descending=True).values
    # The values of a product of 48 terms in float32, beside the largest.
    tolerance = rounding(torch.float32, terms=48) * float(leading[0])
    torch.testing.assert_close(torch.linalg.svdvals(tsv_m(deltas).double()), leading, rtol=0, atol=tolerance)


def test_one_task_comes_back_as_it_is() -> None:
    delta = random(1, 30, 20)
    torch.testing.assert_close(tsv_m(delta), delta[0], rtol=0, atol=factorisation(torch.float32, 30 + 20))


def test_orthogonal_low_rank_tasks_add() -> None:
    left, right = (torch.linalg.qr(random(n, 12)).Q for n in (40, 30))
    deltas = torch.stack([left[:, i : i + 3] @ right[:, i : i + 3].T for i in (0, 3, 6, 9)])
    torch.testing.assert_close(tsv_m(deltas), deltas.sum(0), rtol=0, atol=factorisation(torch.float32, 40 + 30))


def test_duplicate_tasks_give_their_common_task() -> None:
    delta = low_rank(1, 40, 30, 5)[0]
    assert error(tsv_m(torch.stack([delta, delta])), delta) < EXACT


def test_low_rank_deltas_are_cut_at_their_rank() -> None:
    deltas = Deltas.of(low_rank(4, 64, 64, 3))
    merged = tsv_m(deltas)
    assert deltas.notes["rank"] == [3, 3, 3, 3]
    assert error(merged, paper(torch.stack(list(deltas)), rank=3)) < EXACT


def test_a_task_that_changed_nothing_is_left_out_and_still_counts() -> None:
    """Its vectors would be arbitrary; its share of the rank stays its own, as in the paper."""
    deltas = random(4, 40, 40)
    deltas[2] = 0
    assert error(tsv_m(deltas), paper(deltas[[0, 1, 3]], rank=10)) < EXACT


def test_more_tasks_than_rows_keep_rank_one_each() -> None:
    deltas = Deltas.of(random(6, 3, 50))
    merged = tsv_m(deltas)
    assert deltas.notes["rank"] == [1] * 6
    assert merged.norm() > 0
    assert torch.linalg.matrix_rank(merged) == 3


def test_paper_parity_drops_what_has_fewer_rows_than_there_are_tasks() -> None:
    assert not tsv_m(random(6, 3, 50), parity="paper").any()


def test_weights_scale_the_task_before_it_is_merged() -> None:
    deltas = random(3, 40, 30)
    weights = [1.0, 0.25, -2.0]
    scaled = deltas * torch.tensor(weights).reshape(3, 1, 1)
    assert error(tsv_m(Deltas.of(deltas, weights=weights)), paper(scaled)) < EXACT


def test_what_is_no_matrix_is_averaged_with_its_own_scale() -> None:
    deltas = random(4, 7)
    torch.testing.assert_close(tsv_m(deltas, scale=3.0, rest_scale=2.0), 2 * deltas.mean(0))
    torch.testing.assert_close(tsv_m(deltas, scale=3.0, parity="paper"), 3 * deltas.mean(0))


def test_rotating_the_tasks_rotates_the_merge() -> None:
    deltas = random(4, 40, 30)
    q, r = (torch.linalg.qr(random(n, n, seed=n)).Q for n in (40, 30))
    assert error(tsv_m(q @ deltas @ r), q @ tsv_m(deltas) @ r) < factorisation(torch.float32, 40 + 30, condition=3)


def test_the_noise_cut_finds_the_rank_below_bf16_rounding() -> None:
    base = (random(96, 96, seed=3) * 0.02).bfloat16().float()
    stored = (base + low_rank(1, 96, 96, 4)[0] * 0.002).bfloat16()
    delta = stored.float() - base
    deltas = Deltas.of([delta], noise=lambda t: rounding_edge(stored, torch.bfloat16))
    tsv_m(deltas, cut="noise")
    assert deltas.notes["rank"] == [4]
    tsv_m(deltas, cut="numerical")
    assert deltas.notes["rank"] == [96]


@pytest.mark.parametrize(("half", "rank"), [(True, 4), (False, 96)])
def test_half_precision_is_cut_at_its_noise_unless_told_otherwise(half: bool, rank: int) -> None:
    base = (random(96, 96, seed=3) * 0.02).bfloat16().float()
    stored = (base + low_rank(1, 96, 96, 4)[0] * 0.002).bfloat16()
    deltas = Deltas.of([stored.float() - base], noise=lambda t: rounding_edge(stored, torch.bfloat16), half=half)
    tsv_m(deltas)
    assert deltas.notes["rank"] == [rank]


def test_sketch_is_the_same_each_time_and_leaves_the_global_generator_alone() -> None:
    deltas = Deltas.of(random(4, 200, 96))
    deltas.svd = "sketch"
    before = torch.get_rng_state()
    assert torch.equal(tsv_m(deltas), tsv_m(deltas))
    assert torch.equal(torch.get_rng_state(), before)
