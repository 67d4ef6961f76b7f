"""Model Breadcrumbs: mask both tails of the magnitudes."""

from torch import Tensor

from hf_tsv.methods import Deltas, Scale, merge_method
from hf_tsv.methods._combine import add_up
from hf_tsv.methods._sparsify import Share, inner_entries


@merge_method(
    "breadcrumbs",
    paper="https://arxiv.org/abs/2312.06795",
    cost="every model is read once; a selection in every tensor",
)
def breadcrumbs(
    deltas: Deltas,
    *,
    density: Share = 1.0,
    gamma: Share = 0.01,
    scale: Scale = 1.0,
    rescale: bool = False,
    normalize: bool = False,
) -> Tensor:
    """Drop each tensor's largest and smallest entries, then add up what is left.

    theta = theta_0 + scale * sum_t w_t m_t delta_t, with m_t 0 at both tails of |delta_t| (Davari & Belilovsky 2023).

    Args:
        deltas: T deltas of one tensor.
        density: Share of the entries that is kept; 1 keeps all, including outliers.
        gamma: Share of the entries dropped as outliers, the largest; fewer if `density` leaves no room.
        scale: Factor on the merged delta (the paper's alpha).
        rescale: Scale the kept entries so that the tensor's sum of magnitudes stays the same.
        normalize: Divide by the sum of the weights.

    Raises:
        MethodError: normalize is set and the weights sum to zero.
    """
    sparse = inner_entries(deltas, density, gamma, rescale=rescale)
    return add_up(deltas, sparse, normalize=normalize, scale=scale)
