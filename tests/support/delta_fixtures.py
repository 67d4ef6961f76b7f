"""Deltas of one tensor that many tests share, and how Hypothesis runs."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

# A busy machine is no fault of the code.
# The same examples in every run, so that a change is not blamed for an older mistake. HF_TSV_FUZZ=1 draws new ones.
settings.register_profile(
    "any_machine",
    deadline=None,
    derandomize="HF_TSV_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("any_machine")

# One of each kind while one works: a matrix, one with fewer rows than tasks, a vector, a stack.
QUICK_SHAPES = [(24, 16), (2, 9), (7,), (5, 3, 4)]
FURTHER_SHAPES = [(16, 40), (12, 12)]
SHAPES = [*QUICK_SHAPES, *(pytest.param(shape, marks=pytest.mark.slow) for shape in FURTHER_SHAPES)]


def four_deltas(shape: tuple[int, ...]) -> Tensor:
    """Four full-rank deltas of one tensor, (4, *shape) float32, of unlike size."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1.0, 0.5, 2.0, 0.1]).reshape(4, *[1] * len(shape))
    return torch.randn(4, *shape, generator=generator) * sizes


def name_of(shape: tuple[int, ...]) -> str:
    """As a test's id shows it."""
    return "x".join(map(str, shape))


@pytest.fixture(params=SHAPES, ids=name_of)
def deltas(request: pytest.FixtureRequest) -> Tensor:
    """`four_deltas` of several shapes."""
    return four_deltas(request.param)
