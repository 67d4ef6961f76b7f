"""Weight averaging."""

from torch import Tensor

from hf_tsv.errors import MethodError
from hf_tsv.methods import Deltas, Inputs, merge_method


@merge_method(
    "linear",
    paper="https://arxiv.org/abs/2203.05482",
    inputs=Inputs(base="model", weights="shares", unchanged=True),
    elementwise=True,
)
def linear(deltas: Deltas, *, normalize: bool = True) -> Tensor:
    """Average the fine-tuned weights: theta = sum_t w_t theta_t / sum_t w_t.

    Args:
        deltas: T deltas of one tensor.
        normalize: Divide by the sum of the weights, so that they are shares. Without it
            theta = sum_t w_t theta_t, as in mergekit.

    Raises:
        MethodError: normalize is set and the weights sum to zero.
    """
    total = deltas.weighted_sum()
    weight = sum(deltas.weights) + deltas.base_weight
    if not normalize:  # sum_t w_t theta_t = theta_0 + sum_t w_t delta_t + (sum_t w_t - 1) theta_0
        return total if weight == 1 else total.add_(deltas.base, alpha=weight - 1)
    if weight == 0:
        raise MethodError("the weights sum to 0, so they can't be normalized. Set normalize: false")
    return total.div_(weight)
