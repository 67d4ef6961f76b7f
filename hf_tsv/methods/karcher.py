"""Karcher mean of the models' directions."""

import math
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from hf_tsv.errors import MethodError
from hf_tsv.methods import Deltas, Inputs, merge_method
from hf_tsv.methods._geometry import inner


@merge_method(
    "karcher",
    paper="https://doi.org/10.1002/cpa.3160300502",
    cost="every tensor is read T / 2 + 2 times",
    inputs=Inputs(base="model", weights="shares"),
)
def karcher(deltas: Deltas, *, max_iter: Annotated[int, Ge(0)] = 10, tol: Annotated[float, Ge(0)] = 1e-5) -> Tensor:
    """Average the models' directions on the sphere, and multiply by the mean of their norms.

    mean = argmin_m sum_t w_t angle(m, theta_t)^2 over unit vectors m (Karcher 1977), one tensor at a time, found
    by steps along the mean tangent. It stays in the span of the models, so it needs only their inner products.

    Args:
        deltas: T deltas of one tensor. The weights are shares of the mean; the base counts where the recipe lists it.
        max_iter: Maximum number of steps.
        tol: Step length, in radians, below which the search stops.

    Raises:
        MethodError: the weights sum to zero.
    """
    weights = torch.tensor([deltas.base_weight, *deltas.weights], dtype=torch.float64)  # (1 + T,), the base first
    if not weights.sum():
        raise MethodError("the weights sum to 0, so there is no mean. Leave them out, or make them positive")
    models = [model for model, weight in enumerate(weights) if weight]
    weights = weights[models] / weights.sum()
    gram = torch.zeros(len(models), len(models), dtype=torch.float64)  # (M, M) for M models with a weight
    for i, model in enumerate(models):
        tensor = _model(deltas, model)
        gram[i, i] = inner(tensor, tensor)
        for j in range(i):  # two tensors are held at a time
            gram[i, j] = gram[j, i] = inner(tensor, _model(deltas, models[j]))
    del tensor  # as large as the merged tensor below
    norms = gram.diag().sqrt()
    on_sphere = norms > 0  # a tensor of zeros has no direction; its norm still counts in the mean of the norms
    if not on_sphere.any():
        return deltas.zeros()
    factors = torch.zeros_like(norms)
    unit = gram[on_sphere][:, on_sphere] / torch.outer(norms[on_sphere], norms[on_sphere])
    factors[on_sphere] = _mean(unit, weights[on_sphere], max_iter, tol) / norms[on_sphere]
    factors.mul_(weights @ norms)
    # sum_i f_i theta_i - theta_0, from the deltas.
    merged = deltas.base.mul_(float(factors.sum()) - 1)
    for model, factor in zip(models, factors, strict=True):
        if model:
            merged.add_(deltas[model - 1], alpha=float(factor))
    return merged


def _mean(gram: Tensor, weights: Tensor, max_iter: int, tol: float) -> Tensor:
    """Return the mean's coefficients over unit vectors with these inner products."""

    def norm(coefficients: Tensor) -> float:
        return math.sqrt(max(0.0, float(coefficients @ gram @ coefficients)))

    weights = weights / weights.sum()
    first = torch.eye(len(gram), dtype=gram.dtype)[0]
    length = norm(weights)
    mean = weights / length if length >= tol else first  # models that cancel have no mean: start from the first
    for _ in range(max_iter):
        cos = (gram @ mean).clamp(-1, 1)
        angle = torch.acos(cos)
        pull = torch.where(angle < tol, 0.0, weights * angle / torch.sin(angle).clamp(min=1e-300))
        tangent = pull - (pull @ cos) * mean
        step = norm(tangent)
        if step < tol:
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        mean /= norm(mean)
    return mean


def _model(deltas: Deltas, model: int) -> Tensor:
    """Read a model's tensor: model 0 is the base, model t + 1 is task t's."""
    return deltas.base if model == 0 else deltas[model - 1].add_(deltas.base)
