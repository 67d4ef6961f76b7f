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

    TIES' elected sign and disjoint merge, of m_t delta_t / density, with every entry of m_t 1 with probability density,
    else 0 (Yu et al. 2023, section 3).

    Args:
        deltas: T deltas of one tensor.
        density: Probability that an entry is kept (1 - p in the paper); 1 keeps all.
        scale: Factor on the merged delta.
        rescale: Divide the kept entries by `density`, which preserves the mean, as in the paper; `norm` instead
            preserves the tensor's sum of magnitudes, as mergekit does.
        normalize: Average the entries that agree instead of adding them up.
        seed: Seed of the draw, which depends only on it, the task's name and the tensor's name.
    """
    sparse = dropped(deltas, density, rescale, seed)
    return elect_and_merge(deltas, sparse, normalize=normalize, scale=scale)
