"""Truncated singular value decomposition, in three degrees of care."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from hf_tsv.errors import MethodError
from hf_tsv.linalg import _exact
from hf_tsv.linalg._factors import Cut, Factors, Triplets
from hf_tsv.linalg._gram import computable, tall

SvdMode = Literal["exact", "fast", "sketch"]


def truncated_svd(a: Tensor, rank: int, *, mode: SvdMode = "exact", rtol: float = 1e-6, floor: float = 0.0) -> Factors:
    """The leading singular triplets of a matrix, as far as they stand above its noise.

    Args:
        a: Matrix (m, n), float32 or float64, on any device and of any layout.
        rank: Most triplets to keep.
        mode: `exact` is at least as good as an SVD in a's dtype.
        rtol: Triplets with s <= rtol * s[0] are dropped: float32 holds nothing there, and their directions
            are arbitrary.
        floor: Triplets with s <= floor are dropped; `rounding_edge` gives one. With rtol = floor = 0
            exactly min(rank, m, n) triplets are kept, whatever they are.

    Returns:
        Factors in a's dtype on a's device. A zero matrix has none.

    Raises:
        MethodError: a holds NaN or infinity, or nothing could factor it.
    """
    x = computable(a)
    cut = Cut(min(rank, *a.shape), rtol, floor)
    if cut.rank <= 0:
        return Factors(a.new_empty(a.shape[0], 0), a.new_empty(0), a.new_empty(0, a.shape[1]))
    found = _SOLVERS[mode](tall(x), cut)
    u, v = (found.left, found.right) if x.shape[0] >= x.shape[1] else (found.right, found.left)
    u, s, vh = (part.to(a.dtype).contiguous() for part in (u, found.s, v.T))
    if not s.isfinite().all():
        raise MethodError(f"expected singular values that fit {a.dtype} but got {found.s[0]:.2g}. Set dtype: float64")
    _fix_signs(u, vh)
    u, s, vh = (part.to(a.device) for part in (u, s, vh))
    return Factors(u, s, vh, found.energy, found.values, found.fell_back)


def singular_values(a: Tensor) -> Tensor:
    """All singular values of a matrix (m, n), (min(m, n),) float64, descending; without any vector.

    Raises:
        MethodError: a holds NaN or infinity, or nothing could factor it.
    """
    if not a.numel():
        return torch.empty(0, dtype=torch.float64)
    return _exact.singular_values(tall(computable(a)))


def _fix_signs(u: Tensor, vh: Tensor) -> None:
    """Make the largest entry of each column of u positive, the first of them where several are: the signs that
    LAPACK leaves are arbitrary."""
    largest = u.abs().argmax(dim=0, keepdim=True)
    signs = torch.where(u.gather(0, largest) < 0, -1.0, 1.0).to(u.dtype)
    u.mul_(signs)
    vh.mul_(signs.T)


_SOLVERS: dict[str, Callable[[Tensor, Cut], Triplets]] = {
    "exact": _exact.exact_svd,
    "fast": _exact.exact_svd,
    "sketch": _exact.exact_svd,
}
