"""The methods that mergekit has, against values of its 0.1.5 (`merge_tensors`, float32), its random draws included.

They were computed from the tensors that `model` makes, task t's from model(t + 1), the base's from model(0).
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_tsv.methods import METHODS, Deltas, Tasks, TensorSource
from tests.support.tolerances import rounding

CASES = json.loads((Path(__file__).parents[1] / "fixtures" / "mergekit-0.1.5.json").read_text())


def model(t: int) -> Tensor:
    place = torch.arange(12, dtype=torch.float64)
    return ((place * 1.7).sin() + 0.2 * t * (place * (t + 1.3)).cos()).reshape(3, 4).float()


class Drawn(Deltas):
    """Deltas whose draws are such that what mergekit kept is kept."""

    kept: Tensor

    def uniform(self, t: int, seed: int) -> Tensor:
        return torch.where(self.kept[t].reshape(self.shape) > 0, 0.0, 0.999)


def as_recipe(case: dict[str, Any]) -> dict[str, Any]:
    """mergekit's parameters as they are written here."""
    parameters = dict(case["parameters"])
    if case["method"] == "ties":
        parameters["trim"] = "tensor"
    if case["kept"] and parameters["rescale"]:
        parameters["rescale"] = "norm"
    return parameters


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['method']}-{case['parameters']}")
def test_equals_mergekit(case: dict[str, Any]) -> None:
    base = model(0)
    deltas = Drawn(
        TensorSource(lambda t: model(t + 1) - base, base=base.clone),
        replace(Tasks.alike(case["tasks"]), weights=case["weights"]),
        shape=base.shape,
        dtype=base.dtype,
        is_matrix=True,
    )
    deltas.kept = torch.tensor(case["kept"])
    merged = base + METHODS[case["method"]](deltas, **as_recipe(case))
    # Both are sums over 12 entries in float32, of weights up to 1.
    tolerance = rounding(torch.float32, terms=2 * 12)
    torch.testing.assert_close(merged, torch.tensor(case["merged"]).reshape(3, 4), rtol=tolerance, atol=tolerance)
