"""DELLA: drop by magnitude, elect, fuse."""

from torch import Tensor

from hf_tsv.methods import Deltas, Scale, merge_method
from hf_tsv.methods._combine import elect_and_merge
from hf_tsv.methods._sparsify import Rescale, Share, magnitude_dropped


@merge_method("della", paper="https://arxiv.org/abs/2406.11617", cost="every model is read once; every row is sorted")
def della(
    deltas: Deltas,
    *,
    density: Share = 1.0,
    epsilon: Share = 0.15,
    scale: Scale = 1.0,
    rescale: Rescale = True,
    normalize: bool = True,
    seed: int = 0,
) -> Tensor:
    """Drop random entries, a row's small ones more often, rescale the others, then merge by sign as TIES does.

    MagPrune, elect, fuse (Deep et al. 2024, section 2).

    Args:
        deltas: T deltas of one tensor.
        density: Probability that an entry is kept, on average over a row; 1 keeps all.
        epsilon: Spread of the probability: a row's smallest entry is kept with density - epsilon, its largest with
            density + epsilon, the others in between by rank.
        scale: Factor on the merged delta (the paper's lambda).
        rescale: Divide each kept entry by its own probability, which preserves the mean, as in the paper; `norm`
            instead preserves the tensor's sum of magnitudes, as mergekit does.
        normalize: Average the entries that agree instead of adding them up.
        seed: Seed of the draw, which depends only on it, the task's name and the tensor's name.
    """
    sparse = magnitude_dropped(deltas, density, epsilon, rescale, seed)
    return elect_and_merge(deltas, sparse, normalize=normalize, scale=scale)
