"""EMR-Merging: elect one task vector for all, then mask and rescale it for each task."""

from torch import Tensor

from hf_tsv.linalg.masks import EmrRescaler, emr_mask, emr_unified
from hf_tsv.methods import Deltas, Mask, TaskDelta, merge_method


def _mask(task: TaskDelta, merged: Tensor) -> Tensor:
    return emr_mask(task.weighted, merged)


@merge_method(
    "emr",
    paper="https://arxiv.org/abs/2405.17461",
    keeps=Mask(build=_mask, rescaler=EmrRescaler),
    elementwise=True,
    cost="every model is read twice; on the disk one bit a weight and task",
)
def emr(deltas: Deltas) -> Tensor:
    """Elect each entry's sign and largest magnitude, and write a mask and a factor for every task.

    theta_t = theta_0 + lambda_t m_t tau with tau = sgn(sum_t w_t tau_t) max |w_t tau_t| among the tasks of that sign,
    m_t 1 where w_t tau_t tau > 0 and lambda_t = sum |w_t tau_t| / sum |m_t tau| over the whole model (Huang et al.
    2024, section 3.2). The merged model is theta_0 + tau; `hf-tsv restore` builds a task's model from it.
    """
    changes = [deltas.scaled(t) for t in deltas.active]
    return emr_unified(changes) if changes else deltas.zeros()
