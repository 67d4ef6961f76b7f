"""TIES-Merging."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from hf_tsv.methods import Deltas, PerTask, Scale, merge_method, per_task
from hf_tsv.methods._combine import Election
from hf_tsv.methods._magnitude import MagnitudeThresholds, surveyed, trimmed

Density = Annotated[float | Sequence[float], PerTask(), Ge(0), Le(1)]
Trim = Literal["global", "tensor"]


def _survey(dtype: torch.dtype, num_tasks: int, *, density: float | Sequence[float], trim: Trim) -> MagnitudeThresholds:
    whole = trim == "global"
    scope: Literal["model", "tensor"] = "model" if whole else "tensor"
    return MagnitudeThresholds(per_task(density, num_tasks), dtype, inclusive=whole, scope=scope)


@merge_method(
    "ties",
    paper="https://arxiv.org/abs/2306.01708",
    survey=_survey,
    elementwise=True,
    cost="every model is read a little more than twice, first for the thresholds",
)
def ties(
    deltas: Deltas,
    *,
    density: Density = 0.2,
    scale: Scale = 1.0,
    trim: Trim = "global",
    normalize: bool = True,
) -> Tensor:
    """Trim each task vector to its largest entries, elect a sign for every entry, merge what agrees with it.

    Args:
        deltas: T deltas of one tensor.
        density: Share of the entries that is kept, the largest by magnitude (the paper's top 20 %).
        scale: Factor on the merged delta (the paper's lambda).
        trim: `global` trims over the task's whole vector, as in the paper; `tensor` over each tensor, as in mergekit.
        normalize: Average the entries that agree (the paper's disjoint mean) instead of adding them up.

    If the trimmed entries cancel exactly, plus is elected, as in mergekit.
    """
    survey = deltas.survey or surveyed(deltas, _survey(deltas.dtype, len(deltas), density=density, trim=trim))
    election = Election(deltas, normalize=normalize)
    for delta, threshold, weight in zip(deltas, survey.thresholds, deltas.weights, strict=True):
        election.add(trimmed(delta, threshold), weight)
    return election.merged().mul_(scale)
