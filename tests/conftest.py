"""The few fixtures that many tests share."""

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

# A busy machine is no fault of the code.
settings.register_profile("any_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_machine")

pytest_plugins = ["tests.support.hub_fixtures"]

SHAPES = [(24, 16), (16, 40), (12, 12), (2, 9), (7,), (5, 3, 4)]


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def deltas(request: pytest.FixtureRequest) -> Tensor:
    """Four full-rank deltas of one tensor, (4, *shape) float32, of unlike size."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1.0, 0.5, 2.0, 0.1]).reshape(4, *[1] * len(request.param))
    return torch.randn(4, *request.param, generator=generator) * sizes
