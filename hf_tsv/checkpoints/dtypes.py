"""The dtypes of stored tensors: the one table of their names, sizes and kinds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch

ArithmeticWord = Literal["float32", "float64"]  # what a merge may compute in
FactorWord = Literal["float32", "bfloat16", "float16"]  # what an adapter's factors may be stored in
FloatWord = Literal["float32", "float64", "bfloat16", "float16"]  # what a merged model may be stored in
ARITHMETIC: tuple[ArithmeticWord, ...] = get_args(ArithmeticWord)


@dataclass(frozen=True)
class StoredDType:
    """A dtype that safetensors files can hold.

    Attributes:
        name: What safetensors calls it, such as `BF16`.
        torch: What torch reads it as.
    """

    name: str
    torch: torch.dtype

    @property
    def word(self) -> str:
        """What recipes, flags and torch call it, such as `bfloat16`."""
        return str(self.torch).removeprefix("torch.")

    @property
    def nbytes(self) -> int:
        """Bytes of one entry."""
        return self.torch.itemsize

    @property
    def is_float(self) -> bool:
        """Whether tensors of it take part in merging. An 8-bit float doesn't: it is a code that needs a scale."""
        return self.torch.is_floating_point and self.nbytes > 1

    @property
    def is_half(self) -> bool:
        """Whether it is a float of 16 bits, whose rounding shows in a delta."""
        return self.torch.is_floating_point and self.nbytes == 2


# In the order in which the safetensors library writes them: wide entries first, so that every tensor starts at a
# multiple of its entries' size. The writer depends on this order.
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
