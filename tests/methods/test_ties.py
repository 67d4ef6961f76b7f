"""TIES against a transcription of the paper's algorithm, and exact thresholds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_tsv.methods import METHODS, Deltas
from hf_tsv.methods._magnitude import MagnitudeThresholds
from tests.support.oracles import ties as paper
from tests.support.tolerances import rounding

ties = METHODS["ties"]


@pytest.mark.parametrize("density", [0.05, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("normalize", [True, False])
def test_agrees_with_the_paper(deltas: Tensor, density: float, normalize: bool) -> None:
    want = paper(deltas, density, mean=normalize)
    tolerance = rounding(torch.float32, terms=2 * len(deltas))
    got = ties(deltas, density=density, normalize=normalize)
    torch.testing.assert_close(got, want.float(), rtol=tolerance, atol=tolerance)


def test_trimming_each_tensor_keeps_exactly_its_share() -> None:
    delta = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    assert int(ties(delta, density=0.13, trim="tensor").count_nonzero()) == 130


def test_density_may_differ_from_task_to_task() -> None:
    deltas = torch.zeros(2, 100)
    deltas[0, :50] = torch.arange(1.0, 51)
    deltas[1, 50:] = torch.arange(1.0, 51)
    kept = ties(deltas, density=(0.1, 0.3), trim="tensor").count_nonzero
    assert int(kept()) == 10 + 30


def test_a_tie_of_signs_goes_to_plus() -> None:
    deltas = torch.tensor([[1.0, -2.0, -3.0], [-1.0, -5.0, -1.0]])
    assert ties(deltas, density=1.0).tolist() == [1.0, -3.5, -2.0]


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=200),
    density=st.floats(0, 1),
    cut=st.integers(0, 200),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_thresholds_are_exact_however_the_vector_is_split(
    values: list[float], density: float, cut: int, dtype: torch.dtype
) -> None:
    vector = torch.tensor(values, dtype=dtype)
    found = MagnitudeThresholds([density], dtype, inclusive=False)
    while found.share:
        for part in (vector[cut:], vector[:cut]):
            found.observe(0, part)
        found.advance()
    rank = max(0, min(len(values) - int(len(values) * density), len(values) - 1))
    smallest = float(vector.abs().sort().values[rank])
    assert found.thresholds == (0.0 if density == 1 else smallest,)  # to keep all, nothing need be looked at


@pytest.mark.parametrize("seen", [slice(500), slice(-500, None)], ids=["too small", "too large"])
def test_a_sample_that_misleads_does_no_harm(seen: slice) -> None:
    vector = torch.arange(1.0, 10_001)
    found = MagnitudeThresholds([0.2], torch.float32, inclusive=False)
    found.observe(0, vector[seen])
    found.advance()
    passes = 0
    while found.share:
        assert found.share == 1
        found.observe(0, -vector)
        found.advance()
        passes += 1
    assert found.thresholds == (8001.0,)
    assert passes > 1  # the first finds that it looks in the wrong place


def test_one_vector_in_two_tensors_is_trimmed_as_one() -> None:
    """The survey over both tensors decides, not each tensor's own share."""
    large, small = torch.full((1, 10), 5.0), torch.full((1, 10), 1.0)
    survey = ties.make_survey(torch.float32, 1, {"density": 0.4})
    assert survey is not None
    while survey.share:
        survey.observe(0, large[0])
        survey.observe(0, small[0])
        survey.advance()
    merged = [ties(_with(Deltas.of(d), survey), density=0.4) for d in (large, small)]
    assert merged[0].count_nonzero() == 10
    assert not merged[1].any()


def _with(deltas: Deltas, survey: object) -> Deltas:
    deltas.survey = survey
    return deltas
