"""Magnitude masking: TALL-masks' baseline, which goes by the size of each task's own change."""

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from hf_tsv.linalg import masks
from hf_tsv.methods import Deltas, Mask, PerTask, TaskDelta, merge_method, per_task
from hf_tsv.methods._magnitude import MagnitudeThresholds
from hf_tsv.methods._sparsify import PerTaskShare


def _survey(dtype: torch.dtype, num_tasks: int, *, density: PerTaskShare) -> MagnitudeThresholds:
    return MagnitudeThresholds(per_task(density, num_tasks), dtype, inclusive=True)


def _mask(task: TaskDelta, merged: Tensor) -> Tensor:
    threshold = task.survey.thresholds[task.task]
    return masks.magnitude_mask(task.delta, threshold)  # the delta without its weight, as it was surveyed


@merge_method(
    "magnitude_mask",
    paper="https://arxiv.org/abs/2405.07813",
    keeps=Mask(build=_mask, survey=_survey),
    elementwise=True,
    cost="every model is read a little more than four times; on the disk one bit a weight and task",
)
def magnitude_mask(deltas: Deltas, *, density: Annotated[PerTaskShare, PerTask(), Ge(0), Le(1)] = 0.1) -> Tensor:
    """Add up the task vectors, and write for every task where its own is largest.

    theta_t = theta_0 + m_t tau, tau = sum_t w_t tau_t, with m_t 1 at the largest |tau_t| of the whole vector, ties at
    the threshold included (the baseline `mag_masking` of Wang et al. 2024, after their code). A task's mask never holds
    entries it didn't change. The merged model is theta_0 + tau; `hf-tsv restore` builds a task's model from it.

    Args:
        deltas: T deltas of one tensor.
        density: Share of the entries in a task's mask, by magnitude (the authors' top 10 %).
    """
    return deltas.weighted_sum()
