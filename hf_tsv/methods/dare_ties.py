"""DARE, Drop And REscale, with TIES' election of signs."""

from torch import Tensor

from hf_tsv.methods import Deltas, Scale, merge_method
from hf_tsv.methods._combine import elect_and_merge
from hf_tsv.methods._sparsify import Rescale, Share, draws_by_entry, dropped


@merge_method("dare_ties", paper="https://arxiv.org/abs/2311.03099", elementwise=draws_by_entry)
def dare_ties(
    deltas: Deltas,
    *,
    density: Share = 1.0,
    scale: Scale = 1.0,
    rescale: Rescale = True,
    normalize: bool = False,
    seed: int = 0,
) -> Tensor:
    """Drop random entries of every task vector, rescale the others, then merge by sign as TIES does.

    Of m_t delta_t / density, with every entry of m_t 1 with probability density, else 0, TIES' elected sign and
    disjoint merge (Yu et al. 2023, section 3).

    Args:
        deltas: T deltas of one tensor.
        density: Probability with which an entry stays (1 - p in the paper); 1 keeps all.
        scale: Factor on the merged delta.
        rescale: Divide what stays by `density`, which keeps the mean, as the paper; `norm` scales it to the tensor's
            sum of magnitudes before, as mergekit.
        normalize: Average the entries that agree instead of adding them up.
        seed: Which draw; what is dropped depends on it, the task's name and the tensor's name alone.
    """
    sparse = dropped(deltas, density, rescale, seed)
    return elect_and_merge(deltas, sparse, normalize=normalize, scale=scale)
