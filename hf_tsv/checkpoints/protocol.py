"""The interface of checkpoints: named tensors with headers, read one at a time."""

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
        name: The tensor's key in the checkpoint.
        shape: The tensor's shape.
        dtype: The stored dtype's name in safetensors files, such as `F32` or `BF16`.
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
        """The stored dtype as a torch dtype."""
        return DTYPES[self.dtype].torch

    @property
    def is_float(self) -> bool:
        """True if the tensor takes part in merging: a float of 16 bits or more."""
        return DTYPES[self.dtype].is_float

    @property
    def is_half(self) -> bool:
        """True for a 16-bit float."""
        return DTYPES[self.dtype].is_half

    def part(self, rows: tuple[int, int] | None) -> tuple[int, tuple[int, ...]]:
        """Return the offset in bytes and the shape of a run of rows, [first, end); of the whole tensor for None."""
        if rows is None:
            return 0, self.shape
        first, end = rows
        bytes_per_row = self.nbytes // max(1, self.shape[0])  # a tensor may have no rows
        return first * bytes_per_row, (end - first, *self.shape[1:])


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
        label: The checkpoint's name in messages: a Hub id with its revision, or a path.
    """

    @property
    def label(self) -> str: ...

    def names(self) -> Sequence[str]: ...

    def info(self, name: str) -> TensorInfo: ...

    def read(self, name: str, rows: Rows = None) -> Tensor:
        """Read a tensor, or its rows [first, past-the-last), in its stored dtype, on the CPU. The caller owns it."""
        ...

    def will_need(self, name: str) -> None:
        """Hint that a tensor will be read soon, so that its bytes can start to load."""
        ...

    def fingerprint(self) -> str:
        """Return a hash that changes when the checkpoint's content does. A resumed run compares it."""
        ...


@dataclass(frozen=True)
class LowRank:
    """A task matrix in an adapter's form: scale * b a, with b (m, r) and a (r, n) in the stored dtype.

    The factors may be shared, so they must not be changed.
    """

    b: Tensor
    a: Tensor
    scale: float

    def product(self, dtype: torch.dtype) -> Tensor:
        """Return the task matrix (m, n), computed in `dtype`."""
        product = self.b.to(dtype) @ self.a.to(dtype)  # (m, n)
        return product.mul_(self.scale)


@runtime_checkable
class AdapterCheckpoint(Checkpoint, Protocol):
    """The merge's base with an adapter on top. Its changes are known exactly, most of them as two thin factors.

    `names`, `info` and `read` give the fine-tuned model, rounded to the base's dtypes.

    Attributes:
        notes: Remarks for a person on how the adapter was read.
    """

    @property
    def notes(self) -> Sequence[str]: ...

    def is_changed(self, name: str) -> bool:
        """Return True if the adapter holds anything for one of the base's tensors. Reads no tensors."""
        ...

    def delta(self, name: str, base: Tensor, dtype: torch.dtype, rows: Rows = None) -> Tensor:
        """Return a tensor's change, computed in `dtype`, in the shape of `base`: the base's tensor, or its `rows`."""
        ...

    def low_rank(self, name: str, row: int | None = None) -> LowRank | None:
        """Return a tensor's change as a matrix, kernels flattened; for a stack of matrices, that of matrix `row`.

        None if the adapter holds no factors for it.
        """
        ...

    def nbytes(self, name: str) -> int:
        """Return the number of bytes read to compute a tensor's change."""
        ...
