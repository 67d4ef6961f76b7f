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
    """True if each entry is independent: only `rescale: norm` needs the whole tensor, for its sum of magnitudes."""
    return bool(parameters.get("rescale", True) != "norm")


def dropped(deltas: Deltas, density: PerTaskShare, rescale: Rescale, seed: int) -> Sparse:
    """Return DARE's step: every entry of a task's delta is kept with probability `density`."""
    densities = per_task(density, len(deltas))

    def sparse(t: int) -> Tensor:
        delta = deltas[t]
        if densities[t] >= 1:
            return delta
        stays = deltas.uniform(t, seed) < densities[t]
        return _thinned(delta, stays, densities[t], rescale)

    return sparse


def magnitude_dropped(
    deltas: Deltas, density: PerTaskShare, epsilon: PerTaskShare, rescale: Rescale, seed: int
) -> Sparse:
    """Return DELLA's step: larger entries of a row are kept with a higher probability, `density` on average."""
    densities, epsilons = per_task(density, len(deltas)), per_task(epsilon, len(deltas))

    def sparse(t: int) -> Tensor:
        delta = deltas[t]
        if densities[t] >= 1:
            return delta
        if densities[t] <= 0:
            return delta.zero_()
        # The probability rises with the rank from density - epsilon to density + epsilon.
        keep = rank_in_row(delta).mul_(2 * epsilons[t]).add_(densities[t] - epsilons[t]).clamp_(0, 1)
        stays = deltas.uniform(t, seed) < keep
        return _thinned(delta, stays, keep, rescale)

    return sparse


def inner_entries(deltas: Deltas, density: PerTaskShare, gamma: PerTaskShare, *, rescale: bool) -> Sparse:
    """Return Breadcrumbs' step: `without_outliers` on a task's delta."""
    densities, gammas = per_task(density, len(deltas)), per_task(gamma, len(deltas))
    return lambda t: without_outliers(deltas[t], densities[t], gammas[t], rescale=rescale)


def without_outliers(delta: Tensor, density: float, gamma: float, *, rescale: bool) -> Tensor:
    """Drop the share `gamma` of the largest magnitudes, then the smallest until the share `density` is left.

    If that would leave less than `density`, fewer of the largest are dropped.
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
    """Return the mask of a vector's `count` smallest entries; among equal ones, the first."""
    if count <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    place = min(count, values.numel()) - 1
    last = float(np.partition(values.cpu().numpy(), place)[place])  # ten times as fast as torch.kthvalue
    mask = values < last
    ties = (values == last).nonzero().flatten()
    mask[ties[: count - int(mask.sum())]] = True
    return mask


def largest(values: Tensor, count: int) -> Tensor:
    """Return the mask of a tensor's `count` largest entries; among equal ones, the first."""
    return smallest(values.neg().flatten(), count).reshape(values.shape)


def rank_in_row(delta: Tensor) -> Tensor:
    """Return every entry's rank by magnitude along dimension 1, from 0 (smallest) to 1; a vector is one row."""
    rows = delta if delta.ndim > 1 else delta.reshape(1, -1)
    ranks = torch.empty_like(rows)
    # Some rows at a time, because the sort takes several times their memory.
    at_once = max(1, RANKED_AT_ONCE * len(rows) // max(1, rows.numel()))
    for start in range(0, len(rows), at_once):
        some = slice(start, start + at_once)
        order = rows[some].abs().argsort(dim=1, stable=True)  # equal entries are ranked by position
        places = torch.arange(order.shape[1], dtype=ranks.dtype)
        places = places.reshape(-1, *[1] * (order.ndim - 2))  # along dimension 1
        ranks[some].scatter_(1, order, places.expand_as(order))
    return ranks.div_(max(1, rows.shape[1] - 1)).reshape(delta.shape)


def _thinned(delta: Tensor, stays: Tensor, probability: float | Tensor, rescale: Rescale) -> Tensor:
    """Zero the other entries in place, and divide the kept ones by their probability or keep the sum of magnitudes."""
    before = delta.abs().sum() if rescale == "norm" else None
    delta.masked_fill_(~stays, 0.0)
    if before is not None:
        after = delta.abs().sum()
        return delta.mul_(before / after) if after else delta
    if rescale:
        delta.div_(probability).masked_fill_(~stays, 0.0)  # again: entries with probability 0 are now 0 / 0 = NaN
    return delta
