"""Which entries of a delta stay, and how what stays makes up for what goes."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from hf_tsv.methods._combine import Sparse
from hf_tsv.methods._deltas import Deltas, per_task
from hf_tsv.methods._parameters import PerTask

PerTaskShare = float | Sequence[float]
Share = Annotated[PerTaskShare, PerTask(), Ge(0), Le(1)]
Rescale = bool | Literal["norm"]
RANKED_AT_ONCE = 2**18  # entries: a sort needs three times their memory


def draws_by_entry(parameters: Mapping[str, Any]) -> bool:
    """Whether an entry's fate doesn't depend on the others: only the sum of magnitudes is the whole tensor's."""
    return bool(parameters.get("rescale", True) != "norm")


def dropped(deltas: Deltas, density: PerTaskShare, rescale: Rescale, seed: int) -> Sparse:
    """DARE's step: every entry of a task's delta stays with probability `density`."""
    densities = per_task(density, len(deltas))

    def sparse(t: int) -> Tensor:
        delta = deltas[t]
        if densities[t] >= 1:
            return delta
        return _thinned(delta, deltas.uniform(t, seed) < densities[t], densities[t], rescale)

    return sparse


def magnitude_dropped(
    deltas: Deltas, density: PerTaskShare, epsilon: PerTaskShare, rescale: Rescale, seed: int
) -> Sparse:
    """DELLA's step: larger entries of a row stay with a higher probability, `density` on average."""
    densities, epsilons = per_task(density, len(deltas)), per_task(epsilon, len(deltas))
    return lambda t: _magnitude_dropped(deltas, t, densities[t], epsilons[t], rescale, seed)


def inner_entries(deltas: Deltas, density: PerTaskShare, gamma: PerTaskShare, *, rescale: bool) -> Sparse:
    """Breadcrumbs' step, as `without_outliers` takes it in one delta."""
    densities, gammas = per_task(density, len(deltas)), per_task(gamma, len(deltas))
    return lambda t: without_outliers(deltas[t], densities[t], gammas[t], rescale=rescale)


def _magnitude_dropped(deltas: Deltas, t: int, density: float, epsilon: float, rescale: Rescale, seed: int) -> Tensor:
    delta = deltas[t]
    if density >= 1:
        return delta
    if density <= 0:
        return delta.zero_()
    keep = rank_in_row(delta).mul_(2 * epsilon).add_(density - epsilon).clamp_(0, 1)
    return _thinned(delta, deltas.uniform(t, seed) < keep, keep, rescale)


def without_outliers(delta: Tensor, density: float, gamma: float, *, rescale: bool) -> Tensor:
    """The share `gamma` of the largest magnitudes goes, then the smallest until `density` is left.

    Where that would leave less than `density`, fewer of the largest go.
    """
    if density >= 1:
        return delta
    numel = delta.numel()
    count = int(density * numel)
    below = max(0, numel - count - int(gamma * numel))
    magnitude = delta.abs().flatten()
    stays = smallest(magnitude, below + count) ^ smallest(magnitude, below)  # neither the smallest nor the outliers
    del magnitude
    return _thinned(delta, stays.reshape(delta.shape), 1.0, "norm" if rescale else False)


def smallest(values: Tensor, count: int) -> Tensor:
    """Mask of the `count` smallest of a vector; among equals the first ones."""
    if count <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    place = min(count, values.numel()) - 1
    last = float(np.partition(values.cpu().numpy(), place)[place])  # ten times as fast as torch.kthvalue
    mask = values < last
    ties = (values == last).nonzero().flatten()
    mask[ties[: count - int(mask.sum())]] = True
    return mask


def largest(values: Tensor, count: int) -> Tensor:
    """Mask of the `count` largest of a tensor; among equals the first ones."""
    return smallest(values.neg().flatten(), count).reshape(values.shape)


def rank_in_row(delta: Tensor) -> Tensor:
    """Every entry's rank by magnitude along dimension 1, from 0, the smallest, to 1; a vector is one row."""
    rows = delta if delta.ndim > 1 else delta.reshape(1, -1)
    ranks = torch.empty_like(rows)
    # Some rows at a time: the sort's own memory is several times theirs.
    at_once = max(1, RANKED_AT_ONCE * len(rows) // max(1, rows.numel()))
    for start in range(0, len(rows), at_once):
        _rank(rows[start : start + at_once].abs(), ranks[start : start + at_once])
    return ranks.div_(max(1, rows.shape[1] - 1)).reshape(delta.shape)


def _rank(magnitudes: Tensor, ranks: Tensor) -> None:
    """Fill in the ranks along dimension 1; equals have those of their places."""
    order = magnitudes.argsort(dim=1, stable=True)
    places = torch.arange(order.shape[1], dtype=ranks.dtype).reshape(-1, *[1] * (order.ndim - 2))
    ranks.scatter_(1, order, places.expand_as(ranks))


def _thinned(delta: Tensor, stays: Tensor, probability: float | Tensor, rescale: Rescale) -> Tensor:
    """What stays of a delta, in place: divided by its probability, or scaled to the same sum of magnitudes."""
    before = delta.abs().sum() if rescale == "norm" else None
    delta.masked_fill_(~stays, 0.0)
    if before is not None:
        after = delta.abs().sum()
        return delta.mul_(before / after) if after else delta
    if rescale:
        delta.div_(probability).masked_fill_(~stays, 0.0)  # nothing stays with probability 0, and 0 / 0 isn't 0
    return delta
