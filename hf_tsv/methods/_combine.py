"""The last step of the sparsifying methods: add the tasks up, or elect a sign for every entry and merge what agrees."""

from collections.abc import Callable

import torch
from torch import Tensor

from hf_tsv.errors import MethodError
from hf_tsv.methods._deltas import Deltas

Sparse = Callable[[int], Tensor]  # a task's delta after the method's first step, the caller's to change


def add_up(deltas: Deltas, sparse: Sparse, *, normalize: bool, scale: float) -> Tensor:
    """scale * sum_t w_t sparse(t), divided by sum_t w_t when normalised.

    Raises:
        MethodError: the weights sum to zero and are to be normalised.
    """
    weight = sum(deltas.weights) if normalize else 1.0
    if weight == 0:
        raise MethodError("the weights sum to 0, so they can't be normalized. Set normalize: false")
    total = deltas.zeros()
    for t in deltas.active:
        total.add_(sparse(t), alpha=deltas.weights[t])
    return total.mul_(scale / weight)


def elect_and_merge(deltas: Deltas, sparse: Sparse, *, normalize: bool, scale: float) -> Tensor:
    """Per entry the sign of sum_t w_t sparse(t), then the sum (or mean by weight) of the tasks that agree with it."""
    election = Election(deltas, normalize=normalize)
    for t in deltas.active:
        election.add(sparse(t), deltas.weights[t], deltas.weights[t])
    return election.merged().mul_(scale)


class Election:
    """TIES' last two steps in one pass: what speaks for plus and what speaks for minus is summed apart.

    Where the votes cancel exactly, plus is elected, as in mergekit.
    """

    def __init__(self, deltas: Deltas, *, normalize: bool) -> None:
        self._votes, self._up, self._down = deltas.zeros(), deltas.zeros(), deltas.zeros()
        self._weights = (deltas.zeros(), deltas.zeros()) if normalize else None

    def add(self, delta: Tensor, weight: float, vote: float) -> None:
        """A task's delta, which counts `weight` times in the mean and `vote` times in the election."""
        self._votes.add_(delta, alpha=vote)
        delta.mul_(weight)
        for total, counted, agrees in zip(
            (self._up, self._down), self._weights or (None, None), (delta > 0, delta < 0), strict=True
        ):
            total.add_(delta * agrees)
            if counted is not None:
                counted.add_(agrees, alpha=weight)

    def merged(self) -> Tensor:
        plus = self._votes >= 0
        total = torch.where(plus, self._up, self._down)
        if self._weights:
            counted = torch.where(plus, *self._weights)
            total.div_(counted.masked_fill_(counted == 0, 1.0))
        return total
