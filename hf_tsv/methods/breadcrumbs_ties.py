"""Model Breadcrumbs: mask both tails of the magnitudes, with TIES' election of signs."""

from torch import Tensor

from hf_tsv.methods import Deltas, Scale, merge_method
from hf_tsv.methods._combine import elect_and_merge
from hf_tsv.methods._sparsify import Share, inner_entries


@merge_method(
    "breadcrumbs_ties",
    paper="https://arxiv.org/abs/2312.06795",
    cost="every model is read once; a selection in every tensor",
)
def breadcrumbs_ties(
    deltas: Deltas,
    *,
    density: Share = 1.0,
    gamma: Share = 0.01,
    scale: Scale = 1.0,
    rescale: bool = False,
    normalize: bool = False,
) -> Tensor:
    """Drop each tensor's largest and smallest entries, then merge by sign as TIES does.

    Breadcrumbs' masks (Davari & Belilovsky 2023) instead of TIES' trimming, as in mergekit.

    Args:
        deltas: T deltas of one tensor.
        density: Share of the entries that is kept; 1 keeps all, including outliers.
        gamma: Share of the entries dropped as outliers, the largest; fewer if `density` leaves no room.
        scale: Factor on the merged delta (the paper's alpha).
        rescale: Scale the kept entries so that the tensor's sum of magnitudes stays the same.
        normalize: Average the entries that agree instead of adding them up.
    """
    sparse = inner_entries(deltas, density, gamma, rescale=rescale)
    return elect_and_merge(deltas, sparse, normalize=normalize, scale=scale)
