"""A safetensors checkpoint in a folder, read tensor by tensor with plain reads.

Not memory-mapped: the bytes that are read belong to the tensor alone and are freed with it, so resident memory
is the tensors in use, never the sum of the files.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_tsv.checkpoints.dtypes import DTYPES
from hf_tsv.checkpoints.protocol import TensorInfo
from hf_tsv.errors import CheckpointError, some

MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
MAX_DIMENSIONS, MAX_ENTRIES = 64, 2**60  # within the limits of numpy and torch


@dataclass(frozen=True)
class Located:
    """A tensor's header and the place of its bytes: `start` is the absolute offset in `path`."""

    info: TensorInfo
    path: Path
    start: int


class SafetensorsCheckpoint:
    """One file, or shards with their index. Every header is checked when it is opened.

    Raises:
        CheckpointError: a file is missing or cut short, or its header is wrong; reports every such mistake.
    """

    def __init__(self, files: Sequence[Path], *, label: str, index: Mapping[str, str] | None = None) -> None:
        self.label = label
        self._files = tuple(files)
        self._tensors: dict[str, Located] = {}
        problems: list[str] = []
        for file in self._files:
            try:
                for located in read_header(file):
                    name = located.info.name
                    if name in self._tensors:
                        first = self._tensors[name].path.name
                        raise CheckpointError(f"{file}: tensor {name!r} is also in {first}. One of the files is stale")
                    self._tensors[name] = located
            except CheckpointError as error:
                problems.extend(error.problems)
        if index and not problems:
            files_of = {name: located.path.name for name, located in self._tensors.items()}
            lost = sorted(name for name, file in index.items() if files_of.get(name) != file)
            if lost:
                problems.append(
                    f"{label}: the index lists {len(lost)} tensors that its shards don't hold: {some(lost)}"
                )
        if problems:
            raise CheckpointError(problems)

    def names(self) -> Sequence[str]:
        return tuple(self._tensors)

    def info(self, name: str) -> TensorInfo:
        return self._tensors[name].info

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        located = self._tensors[name]
        info = located.info
        offset, shape = info.part(rows)
        start = located.start + offset
        tensor = torch.empty(shape, dtype=info.torch_dtype)
        if tensor.numel():  # an empty tensor can't be viewed as bytes
            _read_into(located.path, start, tensor.view(-1).view(torch.uint8).numpy().data)
        return tensor

    def will_need(self, name: str) -> None:
        if not hasattr(os, "posix_fadvise"):
            return  # macOS and Windows take no such hint
        located = self._tensors[name]
        with suppress(OSError), located.path.open("rb", buffering=0) as file:  # `read` will report any error
            os.posix_fadvise(file.fileno(), located.start, located.info.nbytes, os.POSIX_FADV_WILLNEED)

    def fingerprint(self) -> str:
        """Return a hash of every file's name, size, modification time and header."""
        digest = hashlib.sha256()
        for file in self._files:
            try:
                stat = file.stat()
            except OSError as error:
                raise CheckpointError(f"{file}: can't be read: {error.strerror}") from error
            digest.update(f"{file.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
        for name, located in sorted(self._tensors.items()):
            digest.update(f"{name}\0{located.info.dtype}\0{located.info.shape}\0{located.start}\0".encode())
        return digest.hexdigest()


def read_header(path: Path) -> list[Located]:
    """Read the header of one safetensors file, and check it against the file's size.

    Raises:
        CheckpointError: the file is not a safetensors file, is cut short, or its header contradicts itself.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(f"{path}: not a safetensors file, or cut short ({size} bytes). Download it again")
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the safetensors header is not JSON. Download the file again") from error
    return _checked(header, path, start=8 + length, size=size)


def parse_entry(name: str, entry: Any) -> tuple[TensorInfo, int, int]:
    """Parse one entry of a safetensors header: the tensor, and the first and past-the-last byte of its data.

    Raises:
        ValueError: the entry is malformed, or its size doesn't match its dtype and shape.
    """
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError("has no dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"has dtype {dtype!r}, which isn't read. Known: {', '.join(DTYPES)}")
    if not (_naturals(shape) and _naturals(offsets) and len(offsets) == 2):
        raise ValueError("has a shape or offsets that are not natural numbers")
    # A dimension of 0 would hide all the others in the product.
    if len(shape) > MAX_DIMENSIONS or math.prod(filter(None, shape)) > MAX_ENTRIES:
        raise ValueError("has a shape that no tensor can have")
    if not name.isprintable():
        raise ValueError("has a name that can't be printed")
    info = TensorInfo(name, tuple(shape), dtype)
    if offsets[1] - offsets[0] != info.nbytes:
        raise ValueError(f"has {offsets[1] - offsets[0]} bytes, expected {info.nbytes} for {dtype} {info.shape}")
    return info, offsets[0], offsets[1]


def _naturals(values: Any) -> bool:
    """Return True for a list of natural numbers. JSON's true and false, which Python takes for 1 and 0, are not."""
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _checked(header: Any, path: Path, *, start: int, size: int) -> list[Located]:
    """Return every tensor of a header; check that their data don't overlap and end at the end of the file.

    Args:
        header: The parsed header.
        path: The file.
        start: Offset of the data behind the header.
        size: Size of the file in bytes.
    """
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the safetensors header is not a mapping. Download the file again")
    spans: list[tuple[int, int, TensorInfo]] = []  # first and past-the-last byte, counted from the end of the header
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            info, begin, end = parse_entry(name, entry)
        except ValueError as error:
            raise CheckpointError(f"{path}: tensor {name!r} {error}") from None
        spans.append((begin, end, info))
    spans.sort(key=lambda span: span[:2])
    for (_, end, info), (begin, _, after) in pairwise(spans):
        if begin < end:
            raise CheckpointError(f"{path}: tensors {info.name!r} and {after.name!r} overlap. Download the file again")
    last = start + max((end for _, end, _ in spans), default=0)
    if last != size:
        raise CheckpointError(f"{path}: expected {last} bytes by its header but got {size}. Download the file again")
    return [Located(info, path, start + begin) for begin, _, info in spans]


def _read_into(path: Path, start: int, view: memoryview) -> None:
    """Fill the memory with a file's bytes from `start`. A single read may return fewer bytes than requested."""
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while view:
                read = file.readinto(view)
                if not read:
                    raise CheckpointError(f"{path}: became shorter while it was read. Download it again")
                view = view[read:]
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror}") from error
