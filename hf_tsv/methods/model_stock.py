"""Model Stock: between the base and the mean, as far as the fine-tuned models agree."""

import torch
from torch import Tensor

from hf_tsv.methods import Deltas, Inputs, merge_method
from hf_tsv.methods._geometry import cosine, inner, inner_along


@merge_method(
    "model_stock",
    paper="https://arxiv.org/abs/2403.19522",
    cost="every tensor is read T / 2 + 2 times",
    inputs=Inputs(min_tasks=2),
)
def model_stock(deltas: Deltas, *, filter_wise: bool = False) -> Tensor:
    """Move from the base towards the mean, as far as the angle between the fine-tuned models suggests.

    theta = theta_0 + r * mean_t(delta_t) with r = T cos / (1 + (T - 1) cos) and cos the mean cosine between two
    tasks' deltas (Jang et al. 2024, equation 7), one tensor at a time.

    Args:
        deltas: T >= 2 deltas of one tensor. A recipe's `weight` is a factor on a task's change; 0 leaves it out.
        filter_wise: Use one ratio for each vector along the last dimension instead of one for the tensor.
    """
    tasks = deltas.active
    if not tasks:
        return deltas.zeros()
    mean = deltas.zeros()
    for t in tasks:
        mean.add_(deltas.scaled(t), alpha=1 / len(tasks))
    if len(tasks) == 1:
        return mean  # one task has no angle to another
    by_row = filter_wise and bool(deltas.shape)
    cos = _mean_cosine(deltas, tasks, by_row)
    denominator = 1 + (len(tasks) - 1) * cos
    is_singular = denominator.abs() < 1e-6  # the deltas cancel and the ratio is undefined: keep the base
    ratio = torch.where(is_singular, 0.0, len(tasks) * cos / denominator.masked_fill(is_singular, 1.0))
    return mean.mul_(ratio)


def _mean_cosine(deltas: Deltas, tasks: list[int], by_row: bool) -> Tensor:
    """Return the mean cosine over all pairs of tasks, of whole deltas or of each vector along the last dimension."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        return inner_along(a, b, -1) if by_row else inner(a, b)

    squares = {}
    for t in tasks:
        delta = deltas.scaled(t)
        squares[t] = product(delta, delta)
    total, pairs = torch.zeros((), dtype=torch.float64), 0
    for i, t in enumerate(tasks):
        delta = deltas.scaled(t)
        for other in tasks[i + 1 :]:
            total = total + cosine(product(delta, deltas.scaled(other)), squares[t], squares[other])
            pairs += 1
    return total / pairs
