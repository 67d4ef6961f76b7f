"""A checkpoint on the Hub, read by byte range: headers for a plan, single tensors for a run with little disk space."""

import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from hf_tsv.checkpoints.protocol import TensorInfo
from hf_tsv.checkpoints.safetensors import MAX_HEADER_BYTES, parse_entry
from hf_tsv.errors import CheckpointError, some

FIRST_READ_BYTES = 100_000  # holds the header of most files, so that one request suffices
RUN_BYTES = 8 << 20  # of neighbouring tensors in one request
KEPT_RUNS = 4  # in memory: a few threads read neighbouring places at a time

Fetch = Callable[[str, int, memoryview], None]  # (file, first byte, view to fill)


@dataclass(frozen=True)
class Slice:
    """One tensor of a remote file: its header, and the bytes [begin, end) of the file that hold its data."""

    info: TensorInfo
    file: str
    begin: int
    end: int


Headers = Mapping[str, Mapping[str, Slice]]  # file to tensor's name to its place


@dataclass
class _Run:
    """Neighbouring tensors of a file that are fetched together: its bytes [begin, end), once they are here."""

    file: str
    begin: int
    end: int
    data: bytearray | None = None
    lock: Lock = field(default_factory=Lock, repr=False)


class RemoteCheckpoint:
    """Tensors on the Hub, at one commit, each fetched by byte range when it is read.

    Small neighbours come in one request, and the last few such runs stay in memory: reading in the order of the file
    fetches each byte once. Safe to use from several threads.
    """

    def __init__(self, headers: Headers, fetch: Fetch, *, label: str, fingerprint: str) -> None:
        self.label = label
        self._tensors: dict[str, Slice] = {}
        self._runs: dict[str, _Run] = {}  # only of the tensors that share one with others
        for slices in headers.values():
            self._tensors |= slices
            self._runs |= _runs(slices)
        self._recent: OrderedDict[int, _Run] = OrderedDict()  # the last used at the end
        self._lock = Lock()
        self._fetch = fetch
        self._fingerprint = fingerprint

    def names(self) -> Sequence[str]:
        return tuple(self._tensors)

    def info(self, name: str) -> TensorInfo:
        return self._tensors[name].info

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        stored = self._tensors[name]
        begin, shape = stored.begin, stored.info.shape
        if rows:
            row_bytes = stored.info.nbytes // max(1, shape[0])
            begin += rows[0] * row_bytes
            shape = (rows[1] - rows[0], *shape[1:])
        tensor = torch.empty(shape, dtype=stored.info.torch_dtype)
        if not tensor.numel():
            return tensor
        # The tensor's own memory, as bytes (numel * itemsize,): nothing is copied but what the network brings.
        view = tensor.view(-1).view(torch.uint8).numpy().data
        # Single rows of a tensor are read because the whole is too large: its neighbours don't come along.
        run = self._runs.get(name) if rows is None else None
        if run is None:
            self._fetch(stored.file, begin, view)
        else:
            data = memoryview(self._run_data(run))
            offset = begin - run.begin
            view[:] = data[offset : offset + len(view)]
        return tensor

    def _run_data(self, run: _Run) -> bytearray:
        """The run's bytes, fetched by the first thread that needs them while the others wait."""
        with run.lock:
            if run.data is None:
                run.data = _read(self._fetch, run.file, run.begin, run.end - run.begin)
            data = run.data
        with self._lock:
            self._recent[id(run)] = run
            self._recent.move_to_end(id(run))
            if len(self._recent) > KEPT_RUNS:
                # Threads that still read it hold a reference of their own to the bytes.
                _, oldest = self._recent.popitem(last=False)
                oldest.data = None
        return data

    def will_need(self, name: str) -> None:
        """Do nothing: ranges are fetched when they are read."""

    def fingerprint(self) -> str:
        """Repository and commit: a commit's content can't change."""
        return self._fingerprint


def _runs(tensors: Mapping[str, Slice]) -> dict[str, _Run]:
    """The run of each tensor of a file that shares one with others; the rest are fetched alone."""
    groups: list[list[Slice]] = []
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.begin):
        fits = groups and tensor.end - groups[-1][0].begin <= RUN_BYTES
        if fits:
            groups[-1].append(tensor)
        else:
            groups.append([tensor])
    runs: dict[str, _Run] = {}
    for group in groups:
        if len(group) > 1:
            run = _Run(group[0].file, group[0].begin, group[-1].end)
            runs |= {tensor.info.name: run for tensor in group}
    return runs


def read_header(fetch: Fetch, file: str, size: int, label: str) -> dict[str, Slice]:
    """The tensors of one remote safetensors file of `size` bytes, in the order of their data.

    Raises:
        CheckpointError: it isn't a safetensors file, or its header contradicts itself or the file's size.
    """
    where = f"{label}/{file}"
    # A safetensors file: the header's length (8 bytes), the header as JSON, the tensors' data.
    head = _read(fetch, file, 0, min(size, FIRST_READ_BYTES))
    length = int.from_bytes(head[:8], "little")
    if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(f"{where}: not a safetensors file, or cut short ({size} bytes). Use another revision")
    if len(head) < 8 + length:
        head += _read(fetch, file, len(head), 8 + length - len(head))
    try:
        header = json.loads(head[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: the safetensors header isn't JSON. Use another revision") from error
    return _checked(header, file, where, data=8 + length, size=size)


def check_index(headers: Headers, weight_map: Mapping[str, str], label: str) -> None:
    """Check that shards and index agree.

    Raises:
        CheckpointError: a tensor lies in two shards, or isn't in the shard that the index names.
    """
    counts: Counter[str] = Counter()
    for tensors in headers.values():
        counts.update(tensors.keys())
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise CheckpointError(f"{label}: {len(twice)} tensors are in two shards: {some(twice)}. One file is stale")
    lost = sorted(name for name, file in weight_map.items() if name not in headers[file])
    if lost:
        raise CheckpointError(f"{label}: the index lists {len(lost)} tensors that its shards lack: {some(lost)}")


def _read(fetch: Fetch, file: str, begin: int, length: int) -> bytearray:
    """`length` bytes of a file from `begin` on."""
    data = bytearray(length)
    fetch(file, begin, memoryview(data))
    return data


def _checked(header: Any, file: str, where: str, *, data: int, size: int) -> dict[str, Slice]:
    """The tensors of a header, checked to fill the file to its end and not to overlap.

    Args:
        header: The header as JSON: a stranger wrote it.
        file: The file's path in the repository.
        where: What messages call the file.
        data: Where in the file the tensors' data begin.
        size: The file's size in bytes.

    Raises:
        CheckpointError: the header contradicts itself or the file's size.
    """
    if not isinstance(header, dict):
        raise CheckpointError(f"{where}: the safetensors header isn't a mapping. Use another revision")
    slices: list[Slice] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            info, begin, end = parse_entry(name, entry)
        except ValueError as error:
            raise CheckpointError(f"{where}: tensor {name!r} {error}") from None
        slices.append(Slice(info, file, data + begin, data + end))
    slices.sort(key=lambda tensor: (tensor.begin, tensor.end))
    for one, other in pairwise(slices):
        if other.begin < one.end:
            names = f"{one.info.name!r} and {other.info.name!r}"
            raise CheckpointError(f"{where}: tensors {names} overlap. Use another revision")
    end = max((tensor.end for tensor in slices), default=data)
    if end != size:
        raise CheckpointError(f"{where}: expected {end} bytes by its header but got {size}. Use another revision")
    return {tensor.info.name: tensor for tensor in slices}
