"""The change that fine-tuning made to one tensor."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hf_tsv.checkpoints.modules import kind_of, matrix_view
from hf_tsv.checkpoints.protocol import TensorInfo
from hf_tsv.linalg import Factors, truncated_svd


@dataclass(frozen=True)
class LowRankChange:
    """A low-rank change that is added to the base's tensor.

    Attributes:
        factors: Factors of the change's matrix view, oriented as the tensor is stored: (m, n), or (out, in * k) for a
            flattened conv kernel. A stack (E, m, n) has one for each matrix.
    """

    factors: Factors | Sequence[Factors]

    @property
    def matrices(self) -> tuple[Factors, ...]:
        return (self.factors,) if isinstance(self.factors, Factors) else tuple(self.factors)


@dataclass(frozen=True)
class WholeChange:
    """A new value that replaces the base's tensor.

    Attributes:
        value: The new tensor, in the dtype it will be stored in.
    """

    value: Tensor


Change = LowRankChange | WholeChange


def factored(change: WholeChange, info: TensorInfo, base: Tensor, rank: int) -> LowRankChange:
    """Return the leading singular triplets of a change.

    Args:
        change: The new value.
        info: The tensor's header.
        base: The base's tensor.
        rank: Maximum number of triplets to keep for each of its matrices.

    Raises:
        ValueError: the tensor is not a matrix.
        MethodError: the change contains NaN or infinity.
    """
    view = matrix_view(info, kind_of(info))
    if view is None:
        raise ValueError(f"{info.name} has no matrix view, so it has no factors")
    delta = change.value.float() - base.float()
    matrices = delta.reshape(view.count, view.m, view.n)
    return LowRankChange([truncated_svd(matrix, rank) for matrix in matrices])
