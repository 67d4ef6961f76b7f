"""What is true of the methods that go by angles."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hf_tsv import merge_state_dicts
from hf_tsv.errors import HfTsvError, MethodError
from hf_tsv.methods import METHODS, Deltas, Tasks, TensorSource
from tests.support.tolerances import rounding


def merged(
    method: str, base: Tensor, tuned: Sequence[Tensor], base_weight: float = 0.0, **parameters: object
) -> Tensor:
    deltas = Deltas(
        TensorSource(lambda t: tuned[t] - base, base=base.clone),
        replace(Tasks.alike(len(tuned)), base_weight=base_weight),
        shape=base.shape,
        dtype=base.dtype,
        is_matrix=base.ndim == 2,
    )
    return base + METHODS[method](deltas, **parameters)


def turned(degrees: float, length: float = 1.0) -> Tensor:
    angle = math.radians(degrees)
    return length * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)


def test_slerp_turns_by_its_share_of_the_angle() -> None:
    torch.testing.assert_close(merged("slerp", turned(10), [turned(70)], t=0.25), turned(25))


def test_slerp_of_nearly_parallel_weights_is_a_straight_line() -> None:
    a, b = turned(0), turned(1)
    torch.testing.assert_close(
        merged("slerp", a, [b], t=0.25), 0.75 * a + 0.25 * b, rtol=0, atol=rounding(torch.float64, terms=4)
    )


def test_slerp_takes_one_model_beside_the_base() -> None:
    with pytest.raises(HfTsvError, match="at most 1 besides the base but got 2"):
        merge_state_dicts({"w": torch.ones(2)}, {"a": {"w": torch.ones(2)}, "b": {"w": torch.ones(2)}}, method="slerp")


def test_nuslerp_without_a_base_goes_between_the_models() -> None:
    torch.testing.assert_close(merged("nuslerp", turned(10), [turned(70)], base_weight=1.0), turned(40))


def test_nuslerp_needs_two_models() -> None:
    with pytest.raises(MethodError, match="two models, got 3"):
        METHODS["nuslerp"](torch.ones(3, 2))


def test_the_mean_on_a_circle_is_the_mean_angle_and_norm() -> None:
    """On a circle the Karcher mean of points within a half circle is the mean of their angles."""
    tuned = [turned(0, 1.0), turned(20, 2.0), turned(70, 6.0)]
    torch.testing.assert_close(merged("karcher", turned(200), tuned, max_iter=100, tol=1e-12), turned(30, 3.0))


def test_the_mean_minimises_the_squared_angles() -> None:
    tuned = list(torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1)
    mean = merged("karcher", torch.zeros(6, dtype=torch.float64), tuned, max_iter=100, tol=1e-12)

    def spread(point: Tensor) -> float:
        return sum(float(torch.acos(torch.cosine_similarity(point, w, dim=0))) ** 2 for w in tuned)

    nudges = torch.randn(50, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1e-3
    assert spread(mean) < min(spread(mean + nudge) for nudge in nudges)


def test_the_base_counts_in_the_mean_when_it_is_listed() -> None:
    torch.testing.assert_close(
        merged("karcher", turned(0), [turned(60)], base_weight=1.0, max_iter=100, tol=1e-12), turned(30)
    )


def test_weights_that_cancel_have_no_mean() -> None:
    with pytest.raises(MethodError, match="sum to 0"):
        METHODS["karcher"](Deltas.of(torch.ones(2, 3), weights=[1.0, -1.0]))
