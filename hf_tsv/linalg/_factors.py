"""What a truncated singular value decomposition yields."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """Leading singular triplets of a matrix: u (m, k), s (k,) descending, vh (k, n).

    u has orthonormal columns and vh orthonormal rows. The largest entry of each column of u is positive.

    Attributes:
        energy: Squared Frobenius norm of the whole matrix; None where it isn't known.
        values: All singular values of the matrix, float64, where they came for nothing.
        fell_back: Whether the mode asked for could not keep its promise here, so that `exact` was used.
    """

    u: Tensor
    s: Tensor
    vh: Tensor
    energy: float | None = None
    values: Tensor | None = None
    fell_back: bool = False


class Cut(NamedTuple):
    """Which triplets to keep: at most `rank`, and of these the ones above rtol * s[0] and above floor."""

    rank: int
    rtol: float
    floor: float

    def kept(self, s: Tensor) -> int:
        """How many of the singular values s, descending, are kept: all `rank` of them where nothing is cut."""
        if self.rtol == self.floor == 0:
            return min(self.rank, len(s))
        return int((s[: self.rank] > max(self.rtol * float(s[0]), self.floor)).sum())


class Triplets(NamedTuple):
    """What a solver found of a tall matrix (p, q): left (p, k), s (k,), right (q, k) in any float dtypes."""

    left: Tensor
    s: Tensor
    right: Tensor
    energy: float
    values: Tensor | None = None
    fell_back: bool = False
