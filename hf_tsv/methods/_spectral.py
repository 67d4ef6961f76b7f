"""What the methods that work on task matrices share."""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from hf_tsv.methods._deltas import Deltas
from hf_tsv.methods._policy import Survey
from hf_tsv.methods._registry import METHODS

Tolerance = Annotated[float, Ge(0), Lt(1)]
Merged = Literal[
    "task_arithmetic", "ties", "consensus_ta", "consensus_ties", "tsv_m", "iso_c", "iso_cts", "cart", "wudi"
]  # methods whose merged delta, with their defaults, another method can work on


def mean_of_rest(deltas: Deltas, rest_scale: float) -> Tensor:
    """Return rest_scale times the weighted deltas' mean, as the spectral methods' authors merge non-matrix tensors."""
    return deltas.weighted_sum().mul_(rest_scale / len(deltas))


def scaled_deltas(deltas: Deltas) -> Iterator[Tensor]:
    """Yield w_t delta_t of the tasks whose weight isn't 0."""
    return (deltas.scaled(t) for t in deltas.active)


def merged_by(of: Merged, deltas: Deltas) -> Tensor:
    """Merge the deltas by another method with its defaults."""
    return METHODS[of].fn(deltas)


def survey_of(dtype: torch.dtype, num_tasks: int, *, of: Merged) -> Survey | None:
    """Make the survey that the other method needs, with its defaults; None if it needs none."""
    return METHODS[of].make_survey(dtype, num_tasks, {})
