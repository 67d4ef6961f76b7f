"""SCE: select, calculate, erase."""

from typing import Annotated

from annotated_types import Ge, Le
from torch import Tensor

from hf_tsv.methods import Deltas, Scale, merge_method
from hf_tsv.methods._combine import Election
from hf_tsv.methods._geometry import inner
from hf_tsv.methods._sparsify import largest


@merge_method(
    "sce",
    paper="https://arxiv.org/abs/2408.07990",
    cost="every model is read twice, and twice more with `select_topk` below 1",
)
def sce(deltas: Deltas, *, select_topk: Annotated[float, Ge(0), Le(1)] = 1.0, scale: Scale = 1.0) -> Tensor:
    """Select the entries that vary most between tasks, weight tasks by how much they changed, erase minority signs.

    Every task's weight in a tensor is its share of the selected entries' squares; entries whose sign differs from
    the sum's are left out of the mean (Wan et al. 2024, section 3.3).

    Args:
        deltas: T deltas of one tensor. A recipe's `weight` is a factor on a task's change.
        select_topk: Share of a tensor's entries that are selected, by variance over the tasks; 1 selects all.
        scale: Factor on the merged delta.
    """
    selected = _selected(deltas, select_topk) if select_topk < 1 else None

    def delta(t: int) -> Tensor:
        return deltas.scaled(t) if selected is None else deltas.scaled(t).mul_(selected)

    squares = [float(inner(d, d)) for d in map(delta, deltas.active)]
    election, votes = Election(deltas, normalize=True), deltas.zeros()
    for t, square in zip(deltas.active, squares, strict=True):
        if square:
            own = delta(t)
            votes.add_(own)  # signs are elected by the plain sum; the mean uses the tasks' shares
            election.add(own, square / sum(squares))
    return election.merged(votes).mul_(scale)


def _selected(deltas: Deltas, share: float) -> Tensor:
    """Return the mask of the entries that vary most: a share of those that differ between tasks."""
    mean = deltas.zeros()
    for t in deltas.active:
        mean.add_(deltas.scaled(t), alpha=1 / len(deltas.active))
    variance = deltas.zeros().double()  # squares of float32 values need float64's exponents
    for t in deltas.active:
        variance.add_(deltas.scaled(t).sub_(mean).double().square_())
    varying = int(variance.count_nonzero())
    return largest(variance, int(varying * share))
