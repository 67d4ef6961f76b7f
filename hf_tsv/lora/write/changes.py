"""What a fine-tune did to one tensor."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hf_tsv.checkpoints.modules import kind_of, matrix_view
from hf_tsv.checkpoints.protocol import TensorInfo
from hf_tsv.linalg import Factors, truncated_svd


@dataclass(frozen=True)
class LowRankChange:
    """What is added to the base's tensor.

    Attributes:
        factors: Of its matrix view in the orientation it is stored in, (m, n) or a conv kernel flattened to
            (out, in * k); one for each matrix of a stack (E, m, n).
    """

    factors: Factors | Sequence[Factors]

    @property
    def matrices(self) -> tuple[Factors, ...]:
        return (self.factors,) if isinstance(self.factors, Factors) else tuple(self.factors)


@dataclass(frozen=True)
class WholeChange:
    """What stands in the base's place.

    Attributes:
        value: The new tensor, in the dtype it is to be stored in.
    """

    value: Tensor


Change = LowRankChange | WholeChange


def factored(change: WholeChange, info: TensorInfo, base: Tensor, rank: int) -> LowRankChange:
    """The leading singular triplets of a change.

    Args:
        change: The new value.
        info: The tensor's header.
        base: The base's value.
        rank: The most triplets to keep of each of its matrices.

    Raises:
        ValueError: the tensor is not a matrix.
        MethodError: NaN or infinity in the change.
    """
    view = matrix_view(info, kind_of(info))
    if view is None:
        raise ValueError(f"{info.name} has no matrix view, so it has no factors")
    delta = change.value.float() - base.float()
    matrices = delta.reshape(view.count, view.m, view.n)
    return LowRankChange([truncated_svd(matrix, rank) for matrix in matrices])
