"""Checkpoints of which only the headers are there."""

from collections.abc import Mapping, Sequence
from typing import NoReturn

from hf_tsv.checkpoints.protocol import TensorInfo


class Headers:
    """A checkpoint whose tensors can't be read."""

    def __init__(self, tensors: Mapping[str, tuple[tuple[int, ...], str]], label: str = "base") -> None:
        self.label = label
        self._tensors = {name: TensorInfo(name, shape, dtype) for name, (shape, dtype) in tensors.items()}

    def names(self) -> Sequence[str]:
        return tuple(self._tensors)

    def info(self, name: str) -> TensorInfo:
        return self._tensors[name]

    def read(self, name: str, rows: object = None) -> NoReturn:
        raise AssertionError(f"{name} was read")

    def will_need(self, name: str) -> None: ...

    def fingerprint(self) -> str:
        return self.label
