"""TIES-Merging."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from hf_tsv.methods._deltas import Deltas, per_task
from hf_tsv.methods._magnitude import MagnitudeThresholds, surveyed, trimmed
from hf_tsv.methods._registry import PerTask, always, merge_method

Density = Annotated[float | Sequence[float], PerTask(), Ge(0), Le(1)]
Trim = Literal["global", "tensor"]


def _survey(dtype: torch.dtype, num_tasks: int, *, density: float | Sequence[float], trim: Trim) -> MagnitudeThresholds:
    whole = trim == "global"
    scope: Literal["model", "tensor"] = "model" if whole else "tensor"
    return MagnitudeThresholds(per_task(density, num_tasks), dtype, inclusive=whole, scope=scope)


@merge_method("ties", paper="https://arxiv.org/abs/2306.01708", survey=_survey, elementwise=always)
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
    survey = deltas.survey or surveyed(deltas, _survey(deltas.dtype, len(deltas), density=density, trim=trim))
    total, plus = deltas.zeros(), deltas.zeros()
    votes, plus_votes = deltas.zeros(), deltas.zeros()
    for delta, threshold, weight in zip(deltas, survey.thresholds, deltas.weights, strict=True):
        delta = trimmed(delta, threshold)
        if weight != 1:
            delta.mul_(weight)
        total.add_(delta)
        if normalize:
            sign = delta.sign()
            votes.add_(sign, alpha=weight)
            plus_votes.add_(sign.clamp_min_(0), alpha=weight)
        plus.add_(delta.clamp_min_(0))
    minus = total.sign().clamp_max_(0)  # -1 where minus is elected, else 0
    merged = _elected(minus, plus, total - plus)
    if normalize:
        agreeing = _elected(minus, plus_votes, plus_votes - votes)
        merged.div_(agreeing.masked_fill_(agreeing.abs() < 1e-8, 1.0))
    return merged.mul_(scale)


def _elected(minus: Tensor, of_plus: Tensor, of_minus: Tensor) -> Tensor:
    """`of_minus` where minus is elected, else `of_plus`; torch.where takes ten times as long."""
    return torch.addcmul(of_plus, minus, of_plus - of_minus)
