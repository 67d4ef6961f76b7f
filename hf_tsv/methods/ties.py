"""TIES-Merging."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from hf_tsv.methods._deltas import Deltas, per_task
from hf_tsv.methods._magnitude import MagnitudeThresholds, trim
from hf_tsv.methods._registry import PerTask, merge_method

Density = Annotated[float | Sequence[float], PerTask(), Ge(0), Le(1)]
Trim = Literal["global", "tensor"]


def _survey(
    dtype: torch.dtype, num_tasks: int, *, density: float | Sequence[float], trim: Trim
) -> MagnitudeThresholds | None:
    if trim == "tensor":
        return None
    return MagnitudeThresholds(per_task(density, num_tasks), dtype, inclusive=True)


def _by_entry(parameters: Mapping[str, Any]) -> bool:
    return bool(parameters.get("trim", "global") == "global")


@merge_method("ties", paper="https://arxiv.org/abs/2306.01708", survey=_survey, elementwise=_by_entry)
def ties(
    deltas: Deltas,
    *,
    density: Density = 0.2,
    scale: float = 1.0,
    trim: Trim = "global",
    normalize: bool = True,
) -> Tensor:
    """Trim each task vector to its largest entries, elect a sign for every entry, merge what agrees with it.

    Args:
        deltas: T deltas of one tensor.
        density: Share of the entries that stays, by magnitude (the paper's top 20 %).
        scale: Factor on the merged delta (the paper's lambda).
        trim: `global` trims over the task's whole vector, as the paper; `tensor` over each tensor, as mergekit.
        normalize: Average the entries that agree (the paper's disjoint mean) instead of adding them up.

    Where the trimmed entries cancel exactly, plus is elected, as in mergekit.
    """
    densities = per_task(density, len(deltas))
    thresholds = (deltas.survey or _thresholds(deltas, densities, inclusive=trim == "global")).thresholds
    sign = _elected_sign(deltas, thresholds)
    total, weight = deltas.zeros(), deltas.zeros()
    for t in range(len(deltas)):
        delta = _trimmed(deltas, t, thresholds)
        disagrees = (delta * sign) <= 0
        total.add_(delta.masked_fill_(disagrees, 0.0))
        if normalize:
            weight.add_(~disagrees, alpha=deltas.weights[t])
    if normalize:
        total.div_(weight.masked_fill_(weight.abs() < 1e-8, 1.0))
    return total.mul_(scale)


def _trimmed(deltas: Deltas, t: int, thresholds: Sequence[float]) -> Tensor:
    return trim(deltas[t], thresholds[t]).mul_(deltas.weights[t])


def _elected_sign(deltas: Deltas, thresholds: Sequence[float]) -> Tensor:
    total = deltas.zeros()
    for t in range(len(deltas)):
        total.add_(_trimmed(deltas, t, thresholds))
    return total.sign_().masked_fill_(total == 0, 1.0)


def _thresholds(deltas: Deltas, densities: Sequence[float], *, inclusive: bool) -> MagnitudeThresholds:
    found = MagnitudeThresholds(densities, deltas.dtype, inclusive=inclusive)
    for _ in range(found.passes):
        for t, delta in enumerate(deltas):
            found.observe(t, delta)
        found.advance()
    return found
