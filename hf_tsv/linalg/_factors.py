"""The result of a truncated singular value decomposition."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hf_tsv.errors import MethodError


@dataclass(frozen=True)
class Factors:
    """Leading singular triplets of a matrix: u (m, k), s (k,) descending, vh (k, n).

    u has orthonormal columns and vh orthonormal rows. The largest entry of each column of u is positive.

    Attributes:
        energy: Squared Frobenius norm of the whole matrix; None if unknown.
        values: All singular values of the matrix, float64, if the solver computes them anyway; else None.
    """

    u: Tensor
    s: Tensor
    vh: Tensor
    energy: float | None = None
    values: Tensor | None = None


class Cut(NamedTuple):
    """A rule for the triplets to keep: at most `rank`, and of these the ones above rtol * s[0] and above floor."""

    rank: int
    rtol: float
    floor: float

    @property
    def drops_zeros(self) -> bool:
        return self.rtol > 0 or self.floor > 0

    def rank_of(self, s: Tensor) -> int:
        """Return how many of the singular values s, descending, are kept: all `rank` of them if nothing is cut."""
        if not self.drops_zeros:
            return min(self.rank, len(s))
        return int((s[: self.rank] > max(self.rtol * float(s[0]), self.floor)).sum())


class Triplets(NamedTuple):
    """A solver's result for a matrix (p, q): left (p, k), s (k,), right (q, k), in any float dtypes and with any signs.

    `energy` and `values` are as in `Factors`.
    """

    left: Tensor
    s: Tensor
    right: Tensor
    energy: float = 0.0
    values: Tensor | None = None

    @property
    def transposed(self) -> "Triplets":
        return self._replace(left=self.right, right=self.left)


def factors_of(triplets: Triplets, a: Tensor) -> Factors:
    """Return the triplets with their signs fixed, in a's dtype on a's device.

    Raises:
        MethodError: a singular value overflows that dtype.
    """
    u = triplets.left.to(a.dtype).contiguous()  # (p, k)
    s = triplets.s.to(a.dtype).contiguous()  # (k,)
    vh = triplets.right.T.to(a.dtype).contiguous()  # (k, q)
    if not s.isfinite().all():
        largest = float(triplets.s[0])
        raise MethodError(f"a singular value of {largest:.2g} is too large for {a.dtype}. Set dtype: float64")
    # LAPACK's signs are arbitrary: make the largest entry of each column of u positive, the first of equal ones.
    largest_at = u.abs().argmax(dim=0, keepdim=True)  # (1, k)
    signs = torch.where(u.gather(0, largest_at) < 0, -1.0, 1.0).to(u.dtype)
    u.mul_(signs)
    vh.mul_(signs.T)
    return Factors(u.to(a.device), s.to(a.device), vh.to(a.device), triplets.energy, triplets.values)
