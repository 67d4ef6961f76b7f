"""What a checkpoint is to the rest of the package: named tensors with a header, read one at a time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from hf_tsv.checkpoints.dtypes import DTYPES

Rows = tuple[int, int] | None  # [first, past-the-last) along the first axis; None for all


@dataclass(frozen=True)
class TensorInfo:
    """The header of one tensor.

    Attributes:
        name: Its key in the checkpoint.
        shape: Its shape.
        dtype: Its stored dtype as safetensors writes it, such as `F32` or `BF16`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * DTYPES[self.dtype].nbytes

    @property
    def torch_dtype(self) -> torch.dtype:
        """What torch reads it as."""
        return DTYPES[self.dtype].torch

    @property
    def is_float(self) -> bool:
        """Whether it takes part in merging: a float of 16 bits or more."""
        return DTYPES[self.dtype].is_float

    @property
    def is_half(self) -> bool:
        """Whether it is a float of 16 bits."""
        return DTYPES[self.dtype].is_half


@dataclass(frozen=True)
class Shard:
    """One output file and the headers of its tensors."""

    file: str
    tensors: tuple[TensorInfo, ...]

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.tensors)


class Checkpoint(Protocol):
    """Named tensors. `names` and `info` read headers only; `read` reads one tensor's bytes.

    Attributes:
        label: What a message calls it: a Hub id with its revision, or a path.
    """

    @property
    def label(self) -> str: ...

    def names(self) -> Sequence[str]: ...

    def info(self, name: str) -> TensorInfo: ...

    def read(self, name: str, rows: Rows = None) -> Tensor:
        """The tensor, or rows [first, past-the-last) of it, in its stored dtype, on the CPU, owned by the caller."""
        ...

    def will_need(self, name: str) -> None:
        """A hint that a tensor is read soon; its bytes may begin to move now."""
        ...

    def fingerprint(self) -> str:
        """A hash that changes when the checkpoint's content does: what a resumed run compares."""
        ...


@dataclass(frozen=True)
class LowRank:
    """A task matrix as an adapter holds it: scale * b a, with b (m, r) and a (r, n) in the stored dtype.

    The factors may be shared: they are not to be changed.
    """

    b: Tensor
    a: Tensor
    scale: float

    def product(self, dtype: torch.dtype) -> Tensor:
        """The task matrix (m, n), computed in dtype."""
        product = self.b.to(dtype) @ self.a.to(dtype)  # (m, n)
        return product.mul_(self.scale)


@runtime_checkable
class AdapterCheckpoint(Checkpoint, Protocol):
    """The merge's base with an adapter on top: what it changes is known exactly, and most of it as two thin factors.

    `names`, `info` and `read` give the fine-tuned model, rounded to the base's dtypes.

    Attributes:
        notes: What a person should know of how it was read.
    """

    @property
    def notes(self) -> Sequence[str]: ...

    def is_changed(self, name: str) -> bool:
        """Whether the adapter holds anything for one of the base's tensors. Reads nothing."""
        ...

    def delta(self, name: str, base: Tensor, dtype: torch.dtype, rows: Rows = None) -> Tensor:
        """The tensor's change, computed in dtype, in the shape of `base`: that tensor of the base, or those rows."""
        ...

    def low_rank(self, name: str, row: int | None = None) -> LowRank | None:
        """The change of a tensor as a matrix, kernels flattened; of one matrix where it stacks several.

        None where the adapter holds no factors of it.
        """
        ...

    def nbytes(self, name: str) -> int:
        """Bytes that are read to make a tensor's change."""
        ...
