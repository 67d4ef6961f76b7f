"""DARE, Drop And REscale, with a plain sum."""

from torch import Tensor

from hf_tsv.methods import Deltas, Scale, merge_method
from hf_tsv.methods._combine import add_up
from hf_tsv.methods._sparsify import Rescale, Share, draws_by_entry, dropped


@merge_method("dare_linear", paper="https://arxiv.org/abs/2311.03099", elementwise=draws_by_entry)
def dare_linear(
    deltas: Deltas,
    *,
    density: Share = 1.0,
    scale: Scale = 1.0,
    rescale: Rescale = True,
    normalize: bool = False,
    seed: int = 0,
) -> Tensor:
    """Drop random entries of every task vector, rescale the others, then add them up.

    theta = theta_0 + scale * sum_t w_t m_t delta_t / density, with every m_t entry 1 with probability density, else 0
    (Yu et al. 2023, equation 4).

    Args:
        deltas: T deltas of one tensor.
        density: Probability that an entry is kept (1 - p in the paper); 1 keeps all.
        scale: Factor on the merged delta.
        rescale: Divide the kept entries by `density`, which preserves the mean, as in the paper; `norm` instead
            preserves the tensor's sum of magnitudes, as mergekit does.
        normalize: Divide by the sum of the weights.
        seed: Seed of the draw, which depends only on it, the task's name and the tensor's name.

    Raises:
        MethodError: normalize is set and the weights sum to zero.
    """
    sparse = dropped(deltas, density, rescale, seed)
    return add_up(deltas, sparse, normalize=normalize, scale=scale)
