"""The dtypes of stored tensors: the one table of their names, sizes and kinds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch

ArithmeticWord = Literal["float32", "float64"]  # dtypes that a merge can compute in
FactorWord = Literal["float32", "bfloat16", "float16"]  # dtypes that an adapter's factors can be stored in
FloatWord = Literal["float32", "float64", "bfloat16", "float16"]  # dtypes that a merged model can be stored in
ARITHMETIC: tuple[ArithmeticWord, ...] = get_args(ArithmeticWord)


@dataclass(frozen=True)
class StoredDType:
    """A dtype that safetensors files can hold.

    Attributes:
        name: The dtype's name in safetensors files, such as `BF16`.
        torch: The torch dtype.
    """

    name: str
    torch: torch.dtype

    @property
    def word(self) -> str:
        """The dtype's name in recipes, flags and torch, such as `bfloat16`."""
        return str(self.torch).removeprefix("torch.")

    @property
    def nbytes(self) -> int:
        """The size of one entry in bytes."""
        return self.torch.itemsize

    @property
    def is_float(self) -> bool:
        """True if tensors of this dtype take part in merging. 8-bit floats don't: they are codes that need a scale."""
        return self.torch.is_floating_point and self.nbytes > 1

    @property
    def is_half(self) -> bool:
        """True for a 16-bit float, whose rounding is noticeable in a delta."""
        return self.torch.is_floating_point and self.nbytes == 2


# In the order in which the safetensors library writes them: wide entries first, so that every tensor starts at a
# multiple of its entry size. The writer depends on this order.
_IN_FILE_ORDER = (
    StoredDType("U64", torch.uint64),
    StoredDType("I64", torch.int64),
    StoredDType("F64", torch.float64),
    StoredDType("F32", torch.float32),
    StoredDType("U32", torch.uint32),
    StoredDType("I32", torch.int32),
    StoredDType("BF16", torch.bfloat16),
    StoredDType("F16", torch.float16),
    StoredDType("U16", torch.uint16),
    StoredDType("I16", torch.int16),
    StoredDType("F8_E4M3", torch.float8_e4m3fn),
    StoredDType("F8_E5M2", torch.float8_e5m2),
    StoredDType("I8", torch.int8),
    StoredDType("U8", torch.uint8),
    StoredDType("BOOL", torch.bool),
)
DTYPES: Mapping[str, StoredDType] = {dtype.name: dtype for dtype in _IN_FILE_ORDER}
BY_TORCH: Mapping[torch.dtype, StoredDType] = {dtype.torch: dtype for dtype in _IN_FILE_ORDER}
BY_WORD: Mapping[str, StoredDType] = {dtype.word: dtype for dtype in _IN_FILE_ORDER}
FILE_ORDER: Mapping[str, int] = {dtype.name: place for place, dtype in enumerate(_IN_FILE_ORDER)}
