"""The last step of the sparsifying methods: add the tasks up, or elect a sign for every entry and merge what agrees."""

from collections.abc import Callable

from torch import Tensor

from hf_tsv.errors import MethodError
from hf_tsv.methods._deltas import Deltas

Sparse = Callable[[int], Tensor]  # returns a task's delta after the method's first step; the caller may change it


def add_up(deltas: Deltas, sparse: Sparse, *, normalize: bool, scale: float) -> Tensor:
    """Return scale * sum_t w_t sparse(t), divided by sum_t w_t if normalize is set.

    Raises:
        MethodError: normalize is set and the weights sum to zero.
    """
    weight = sum(deltas.weights) if normalize else 1.0
    if weight == 0:
        raise MethodError("the weights sum to 0, so they can't be normalized. Set normalize: false")
    total = deltas.zeros()
    for t in deltas.active:
        total.add_(sparse(t), alpha=deltas.weights[t])
    return total.mul_(scale / weight)


def elect_and_merge(deltas: Deltas, sparse: Sparse, *, normalize: bool, scale: float) -> Tensor:
    """Elect each entry's sign by sum_t w_t sparse(t), then add up (or average by weight) the tasks that agree."""
    election = Election(deltas, normalize=normalize)
    for t in deltas.active:
        election.add(sparse(t), deltas.weights[t])
    return election.merged().mul_(scale)


class Election:
    """TIES' last two steps, elect and disjoint merge, in one pass: positive entries are also summed separately.

    If the votes cancel exactly, plus is elected, as in mergekit.
    """

    def __init__(self, deltas: Deltas, *, normalize: bool) -> None:
        self._total, self._plus = deltas.zeros(), deltas.zeros()
        self._weights = (deltas.zeros(), deltas.zeros()) if normalize else None

    def add(self, delta: Tensor, weight: float) -> None:
        """Count a task's delta. Changes the delta in place."""
        if weight != 1:
            delta.mul_(weight)
        self._total.add_(delta)
        if self._weights:  # the same sums over weights instead of entries: the divisors of the mean
            total, plus = self._weights
            sign = delta.sign()
            total.add_(sign, alpha=weight)
            plus.add_(sign.clamp_min_(0), alpha=weight)
        self._plus.add_(delta.clamp_min_(0))

    def merged(self, votes: Tensor | None = None) -> Tensor:
        """Return the sum, or the mean by weight, of the entries with the elected sign: that of `votes`, or of the sum.

        Overwrites what was counted, so it can be called only once.
        """
        minus = (self._total if votes is None else votes).sign().clamp_max_(0)  # -1 where minus is elected, else 0
        merged = _elected(minus, self._plus, self._total.sub_(self._plus))
        if self._weights:
            total, plus = self._weights
            agreeing = _elected(minus, plus, total.sub_(plus).neg_())
            merged.div_(agreeing.masked_fill_(agreeing.abs() < 1e-8, 1.0))
        return merged


def _elected(minus: Tensor, of_plus: Tensor, of_minus: Tensor) -> Tensor:
    """Return `of_minus` where minus is elected, else `of_plus`. Overwrites both; ten times as fast as torch.where."""
    return of_plus.addcmul_(minus, of_minus.sub_(of_plus), value=-1)
