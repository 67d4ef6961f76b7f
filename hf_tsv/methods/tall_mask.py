"""TALL-masks: one merged task vector for all tasks, and one bit a weight for each."""

from typing import Literal

import torch
from torch import Tensor

from hf_tsv.linalg import masks
from hf_tsv.methods import Deltas, Mask, Survey, TaskDelta, merge_method
from hf_tsv.methods._consensus import MaskLambda
from hf_tsv.methods.ties import Density, Trim, ties

Of = Literal["task_arithmetic", "ties"]


def _survey(dtype: torch.dtype, num_tasks: int, *, of: Of, density: float, trim: Trim) -> Survey | None:
    return ties.make_survey(dtype, num_tasks, {"density": density, "trim": trim}) if of == "ties" else None


def _mask(task: TaskDelta, merged: Tensor, *, mask_lambda: float) -> Tensor:
    return masks.tall_mask(task.weighted, merged, mask_lambda)


@merge_method(
    "tall_mask",
    paper="https://arxiv.org/abs/2405.07813",
    keeps=Mask(build=_mask, tuned="mask_lambda"),
    survey=_survey,
    elementwise=True,
    cost="every model is read twice, with TIES three times; on the disk one bit a weight and task",
)
def tall_mask(
    deltas: Deltas,
    *,
    of: Of = "task_arithmetic",
    mask_lambda: MaskLambda = 0.4,
    density: Density = 0.2,
    trim: Trim = "global",
) -> Tensor:
    """Add up the task vectors, and write for every task which entries of the sum are its own.

    theta_t = theta_0 + m_t tau, with tau = sum_t w_t tau_t, or TIES' disjoint sum, and m_t 1 where
    |w_t tau_t| > mask_lambda_t |tau - w_t tau_t| (Wang et al. 2024, section 3). The merged model is theta_0 + tau;
    `hf-tsv restore` builds a task's model from it, the base and the task's mask.

    Args:
        deltas: T deltas of one tensor.
        of: The merge of the tasks: their sum, or TIES.
        mask_lambda: The masks' lambda_t: the larger it is, the fewer entries a task uses. The paper chooses one per
            task from 0.2 to 0.6 on validation data.
        density: TIES' share of the entries that is kept, the largest by magnitude.
        trim: The range of that share, the task's whole vector (`global`) or each tensor (`tensor`), as for `ties`.
    """
    if of == "ties":
        return ties.fn(deltas, density=density, trim=trim, normalize=False)
    return deltas.weighted_sum()
