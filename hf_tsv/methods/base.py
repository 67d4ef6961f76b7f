"""Keep the base model's weight."""

from torch import Tensor

from hf_tsv.methods import Deltas, Inputs, merge_method


@merge_method("base", paper="", inputs=Inputs(ignores_tasks=True))
def base(deltas: Deltas) -> Tensor:
    """Keep the base model's weight: theta = theta_0."""
    return deltas.zeros()
