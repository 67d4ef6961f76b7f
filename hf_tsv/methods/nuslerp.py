"""NuSLERP: spherical interpolation between two models' changes, or between two models."""

import torch
from torch import Tensor

from hf_tsv.errors import MethodError
from hf_tsv.methods import Deltas, Inputs, merge_method
from hf_tsv.methods._geometry import cosine, inner, inner_along, slerp_coefficients


@merge_method(
    "nuslerp",
    paper="https://doi.org/10.1145/325334.325242",
    inputs=Inputs(min_tasks=2, max_tasks=2, base="either", weights="shares"),
)
def nuslerp(deltas: Deltas, *, nuslerp_flatten: bool = True, nuslerp_row_wise: bool = False) -> Tensor:
    """Interpolate along the arc between two task vectors, or between two models where there is no base.

    sin((1-t) phi) / sin(phi) v_1 + sin(t phi) / sin(phi) v_2 with t = w_2 / (w_1 + w_2) and phi the angle between the
    two (Shoemake 1985); a straight line if they are parallel. The recipe's weights set t.

    Args:
        deltas: Two deltas of one tensor; or one, with the base as the first model.
        nuslerp_flatten: Use one angle for the tensor. Without it, one for each vector along the last dimension.
        nuslerp_row_wise: Without `nuslerp_flatten`, take the vectors along the first dimension instead.

    Raises:
        MethodError: the number of models isn't two.
    """
    if not 1 <= len(deltas) <= 2:
        raise MethodError(f"it takes two models, got {len(deltas)}")
    if len(deltas) == 2:
        return _between(deltas[0], deltas[1], _share(*deltas.weights), nuslerp_flatten, nuslerp_row_wise)
    base = deltas.base
    share = _share(deltas.base_weight, deltas.weights[0])
    return _between(base, deltas[0].add_(base), share, nuslerp_flatten, nuslerp_row_wise).sub_(base)


def _share(first: float, second: float) -> float:
    total = first + second
    return 0.5 if abs(total) < 1e-6 else second / total


def _between(a: Tensor, b: Tensor, t: float, flatten: bool, row_wise: bool) -> Tensor:
    def product(x: Tensor, y: Tensor) -> Tensor:
        if flatten or not x.ndim:
            return inner(x, y)
        return inner_along(x, y, 0 if row_wise else -1)

    cos = cosine(product(a, b), product(a, a), product(b, b))
    is_parallel = 1 - cos.square() <= torch.finfo(a.dtype).eps ** 2
    first, second = slerp_coefficients(cos, t, is_parallel)
    return a * first.to(a.dtype) + b.mul_(second.to(b.dtype))
