"""Write a checkpoint in which the place of every byte is fixed before the first tensor is computed.

Headers are planned, so files are laid out first and filled in any order, by any number of threads, and a written
tensor never moves. The bytes depend on the plan and the tensors, not on the order of writing.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from hf_tsv.checkpoints.dtypes import FILE_ORDER
from hf_tsv.checkpoints.protocol import Shard, TensorInfo
from hf_tsv.files.disk import full_disk_told, write_text

METADATA = {"format": "pt"}  # transformers requires it
ALIGNMENT = 8  # bytes; the header's length is padded to a multiple


class CheckpointWriter:
    """The files of one checkpoint in a folder, written in place.

    A file that already exists with the planned size and header is continued; any other is created anew.

    Attributes:
        made_anew: Tensors of the files that were created anew.
    """

    def __init__(
        self, folder: Path, shards: Sequence[Shard], metadata: Mapping[str, str] = METADATA, *, is_shared: bool = False
    ) -> None:
        """
        Args:
            folder: The folder of the files.
            shards: Files and the headers of their tensors.
            metadata: The `__metadata__` of each file.
            is_shared: True if other processes, perhaps on other machines, write into the same files.

        Raises:
            ResourceError: the disk is full.
            OutputError: the folder can't be written.
        """
        self._folder = folder
        self._flags = os.O_RDWR | os.O_CREAT | _BINARY
        if is_shared:
            # Without this, NFS may write back a whole page, part of which another machine has changed.
            self._flags |= _SYNCED
        self._shards = tuple(shards)
        self._starts: dict[str, tuple[Path, int]] = {}
        self._open: dict[Path, int] = {}
        self._dirty: set[Path] = set()
        self._lock = Lock()
        self.made_anew: set[str] = set()
        for shard in self._shards:
            self._lay_out(shard, metadata)

    def write(self, name: str, tensor: Tensor) -> str:
        """Write a tensor in its place; return the SHA-256 of its bytes. Safe to call from several threads."""
        path, start = self._starts[name]
        data = bytes_of(tensor)
        with self._lock:
            self._dirty.add(path)
        with full_disk_told(path):
            _write_at(self._open[path], data, start)
        return hashlib.sha256(data).hexdigest()

    def sync(self) -> None:
        """Make everything written so far survive a power cut."""
        with self._lock:
            dirty, self._dirty = self._dirty, set()
        for path in dirty:
            with full_disk_told(path):
                _sync(self._open[path])

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open = {}

    def write_index(self) -> None:
        """Write the index beside the shards, if there are several."""
        if len(self._shards) == 1:
            return
        weight_map: dict[str, str] = {}
        for shard in self._shards:
            for info in shard.tensors:
                weight_map[info.name] = shard.file
        total = sum(shard.nbytes for shard in self._shards)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        stem = self._shards[0].file.split("-", 1)[0]
        write_text(self._folder / f"{stem}.safetensors.index.json", json.dumps(index, indent=2) + "\n")

    def _lay_out(self, shard: Shard, metadata: Mapping[str, str]) -> None:
        header, starts = layout(shard.tensors, metadata)
        path = self._folder / shard.file
        size = len(header) + shard.nbytes
        with full_disk_told(path):
            descriptor = os.open(path, self._flags, 0o644)
            self._open[path] = descriptor
            if os.fstat(descriptor).st_size != size or os.read(descriptor, len(header)) != header:
                os.ftruncate(descriptor, 0)
                _reserve(descriptor, size)
                _write_at(descriptor, memoryview(header), 0)
                self.made_anew |= starts.keys()
        self._dirty.add(path)  # its name and size aren't on the disk yet
        self._starts |= {name: (path, len(header) + start) for name, start in starts.items()}


def bytes_of(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes, without a copy if it is contiguous."""
    if not tensor.numel():
        return memoryview(b"")  # an empty tensor can't be viewed as bytes
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data  # (nbytes,)


def layout(tensors: Sequence[TensorInfo], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """Return a safetensors header with its length in front, and the offset of each tensor's bytes behind it.

    Order and padding are those of the safetensors library: wide dtypes first, then by name.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    starts: dict[str, int] = {}
    end = 0
    for info in sorted(tensors, key=lambda info: (FILE_ORDER[info.dtype], info.name)):
        start = end
        end = start + info.nbytes
        starts[info.name] = start
        entries[info.name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, starts


# Not every system has all of these: macOS has no fdatasync and no posix_fallocate, Windows only O_BINARY.
_sync = getattr(os, "fdatasync", os.fsync)
_BINARY = getattr(os, "O_BINARY", 0)
_SYNCED = getattr(os, "O_DSYNC", 0)
_seeking = Lock()


def _reserve(descriptor: int, size: int) -> None:
    """Reserve a file's disk space: a full disk should stop a run before hours of work."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def _write_at(descriptor: int, data: memoryview, start: int) -> None:
    """Write all of the data into a file at offset `start`. Safe to call from several threads."""
    if hasattr(os, "pwrite"):
        while data:
            written = os.pwrite(descriptor, data, start)
            data, start = data[written:], start + written
        return
    with _seeking:  # without pwrite, all threads share the file's position
        os.lseek(descriptor, start, os.SEEK_SET)
        while data:
            data = data[os.write(descriptor, data) :]
