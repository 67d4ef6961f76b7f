"""Model Stock: between the base and the mean, as far as the fine-tuned models agree."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_tsv.methods._deltas import Deltas
from hf_tsv.methods._geometry import inner, inner_along
from hf_tsv.methods._registry import merge_method


@merge_method("model_stock", paper="https://arxiv.org/abs/2403.19522", min_tasks=2, cost="every model is read twice")
def model_stock(deltas: Deltas, *, filter_wise: bool = False) -> Tensor:
    """Go from the base towards the mean as far as the angle between the fine-tuned models says.

    theta = theta_0 + r * mean_t(delta_t) with r = T cos / (1 + (T - 1) cos) and cos the mean cosine between two
    tasks' deltas (Jang et al. 2024, equation 7), a tensor at a time.

    Args:
        deltas: T >= 2 deltas of one tensor. A recipe's `weight` is a factor on a task's change, and 0 leaves it out.
        filter_wise: One ratio for each vector along the last dimension instead of one for the tensor.
    """
    tasks = deltas.active
    if not tasks:
        return deltas.zeros()
    by_row = filter_wise and bool(deltas.shape)
    mean, norms = deltas.zeros(), []
    for t in tasks:
        delta = deltas.scaled(t)
        norms.append(_square(delta, by_row).sqrt())
        mean.add_(delta, alpha=1 / len(tasks))
    if len(tasks) > 1:
        mean.mul_(_ratio(_mean_cosine(deltas, tasks, norms, by_row), len(tasks)))
    return mean


def _square(delta: Tensor, by_row: bool) -> Tensor:
    return inner_along(delta, delta, -1) if by_row else inner(delta, delta)


def _mean_cosine(deltas: Deltas, tasks: Sequence[int], norms: Sequence[Tensor], by_row: bool) -> Tensor:
    """Over all pairs, from the length of the sum of unit vectors: |sum_t u_t|^2 = T + 2 sum_s<t cos_st. In float64,
    because the cosines may be small. A delta of length 0 has cosine 0 with all others."""
    total = torch.zeros(deltas.shape, dtype=torch.float64)
    for t, norm in zip(tasks, norms, strict=True):
        total.addcdiv_(deltas.scaled(t).double(), norm.masked_fill(norm == 0, 1.0))
    own = sum((norm > 0).double() for norm in norms)
    return (_square(total, by_row) - own) / (len(tasks) * (len(tasks) - 1))


def _ratio(cos: Tensor, num_tasks: int) -> Tensor:
    """How far towards the mean; 0 where the deltas cancel and there is no answer."""
    denominator = 1 + (num_tasks - 1) * cos
    is_singular = denominator.abs() < 1e-6
    return torch.where(is_singular, 0.0, num_tasks * cos / denominator.masked_fill(is_singular, 1.0))
