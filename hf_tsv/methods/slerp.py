"""Spherical linear interpolation between the base and one model."""

from torch import Tensor

from hf_tsv.methods import Deltas, Inputs, merge_method
from hf_tsv.methods._geometry import cosine, inner, slerp_coefficients

STRAIGHT = 0.9995  # |cos| above which the path is a straight line, as in mergekit


@merge_method(
    "slerp",
    paper="https://doi.org/10.1145/325334.325242",
    cost="the model is read once",
    inputs=Inputs(max_tasks=1),
)
def slerp(deltas: Deltas, *, t: float = 0.5) -> Tensor:
    """Interpolate along the arc from the base's weight to the fine-tuned one, not along the straight line.

    theta = sin((1-t) phi) / sin(phi) theta_0 + sin(t phi) / sin(phi) theta_1, phi the angle between the two tensors
    (Shoemake 1985); a straight line where |cos(phi)| > 0.9995, which fine-tunes of one base rarely fall below.

    Args:
        deltas: One delta of one tensor. A recipe's `weight` is a factor on the change.
        t: Position on the arc: 0 is the base model, 1 the fine-tuned one.
    """
    base, change = deltas.base, deltas.scaled(0)
    # |theta_1|^2 and <theta_0, theta_1> follow from the change: theta_1 itself would take the memory of another tensor.
    square, product = inner(base, base), inner(base, change)
    cos = cosine(square + product, square, square + 2 * product + inner(change, change))
    first, second = map(float, slerp_coefficients(cos, t, cos.abs() > STRAIGHT))
    return change.mul_(second).add_(base, alpha=first + second - 1)
