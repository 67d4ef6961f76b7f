"""Keep the base model's weight."""

from torch import Tensor

from hf_tsv.methods._deltas import Deltas
from hf_tsv.methods._registry import merge_method


@merge_method("base", paper="")
def base(deltas: Deltas) -> Tensor:
    """Keep the base model's weight: theta = theta_0."""
    return deltas.zeros()
