"""Settings and the few fixtures that many tests share."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "0")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import pytest
import torch
from torch import Tensor

SHAPES = [(24, 16), (16, 40), (12, 12), (2, 9), (7,), (5, 3, 4)]


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def deltas(request: pytest.FixtureRequest) -> Tensor:
    """Four full-rank deltas of one tensor, (4, *shape) float32, of unlike size."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1.0, 0.5, 2.0, 0.1]).reshape(4, *[1] * len(request.param))
    return torch.randn(4, *request.param, generator=generator) * sizes
