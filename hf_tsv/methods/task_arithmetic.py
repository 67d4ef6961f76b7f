"""Task Arithmetic."""

from torch import Tensor

from hf_tsv.errors import MethodError
from hf_tsv.methods import Deltas, Scale, merge_method


@merge_method("task_arithmetic", paper="https://arxiv.org/abs/2212.04089", elementwise=True)
def task_arithmetic(deltas: Deltas, *, scale: Scale = 1.0, normalize: bool = False) -> Tensor:
    """Add up the task vectors: theta = theta_0 + scale * sum_t w_t (theta_t - theta_0).

    Args:
        deltas: T deltas of one tensor.
        scale: Factor on the sum (the paper's lambda). 0.3 to 0.5 is usual; 1 is the plain sum.
        normalize: Divide by the sum of the weights.

    Raises:
        MethodError: normalize is set and the weights sum to zero.
    """
    weight = sum(deltas.weights) if normalize else 1.0
    if weight == 0:
        raise MethodError("the weights sum to 0, so they can't be normalized. Set normalize: false")
    return deltas.weighted_sum().mul_(scale / weight)
