"""A checkpoint on the Hub, read by byte range: headers for a plan, single tensors for a run with little disk."""

import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
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
KEPT_RUNS = 4

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
    """Tensors on the Hub, at one commit, read by byte range when they are asked for.

    Small neighbours come in one request, and the last few such runs are kept: who reads in the order of the file asks
    for each byte once. Safe to use from several threads.
    """

    def __init__(self, headers: Headers, fetch: Fetch, *, label: str, fingerprint: str) -> None:
        self.label = label
        self._tensors = {name: found for file in headers.values() for name, found in file.items()}
        self._runs = {name: run for file in headers.values() for name, run in _runs(file)}
        self._kept: OrderedDict[int, _Run] = OrderedDict()
        self._lock = Lock()
        self._fetch = fetch
        self._fingerprint = fingerprint

    def names(self) -> Sequence[str]:
        return tuple(self._tensors)

    def info(self, name: str) -> TensorInfo:
        return self._tensors[name].info

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        found = self._tensors[name]
        begin, shape = found.begin, found.info.shape
        if rows:
            begin += rows[0] * (found.info.nbytes // max(1, shape[0]))
            shape = (rows[1] - rows[0], *shape[1:])
        tensor = torch.empty(shape, dtype=found.info.torch_dtype)
        if tensor.numel():
            view = tensor.view(-1).view(torch.uint8).numpy().data
            run = self._runs.get(name) if rows is None else None
            if run:
                data = memoryview(self._fetched(run))
                view[:] = data[begin - run.begin : begin - run.begin + len(view)]
            else:
                self._fetch(found.file, begin, view)
        return tensor

    def _fetched(self, run: _Run) -> bytearray:
        """The run's bytes, fetched by the first who asks while the others wait."""
        with run.lock:
            if run.data is None:
                run.data = _read(self._fetch, run.file, run.begin, run.end - run.begin)
            data = run.data
        with self._lock:
            self._kept[id(run)] = run
            self._kept.move_to_end(id(run))
            if len(self._kept) > KEPT_RUNS:
                self._kept.popitem(last=False)[1].data = None
        return data

    def will_need(self, name: str) -> None:
        """Ranges are asked for when they are read."""

    def fingerprint(self) -> str:
        """Repository and commit: a commit's content can't change."""
        return self._fingerprint


def _runs(tensors: Mapping[str, Slice]) -> Iterator[tuple[str, _Run]]:
    """The run of each tensor of a file that shares one with others; the rest are fetched alone."""
    group: list[Slice] = []
    for found in sorted(tensors.values(), key=lambda found: found.begin):
        if group and found.end - group[0].begin > RUN_BYTES:
            yield from _shared(group)
            group = []
        group.append(found)
    yield from _shared(group)


def _shared(group: Sequence[Slice]) -> Iterator[tuple[str, _Run]]:
    if len(group) > 1:
        run = _Run(group[0].file, group[0].begin, group[-1].end)
        yield from ((found.info.name, run) for found in group)


def read_header(fetch: Fetch, file: str, size: int, label: str) -> dict[str, Slice]:
    """The tensors of one remote safetensors file of `size` bytes, in the order of their data.

    Raises:
        CheckpointError: it is no safetensors file, or its header contradicts itself or the file's size.
    """
    where = f"{label}/{file}"
    head = _read(fetch, file, 0, min(size, FIRST_READ_BYTES))
    length = int.from_bytes(head[:8], "little")
    if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(f"{where}: not a safetensors file, or cut short ({size} bytes). Use another revision")
    if len(head) < 8 + length:
        head += _read(fetch, file, len(head), 8 + length - len(head))
    try:
        header = json.loads(head[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: the safetensors header is no JSON. Use another revision") from error
    return _checked(header, file, where, data=8 + length, size=size)


def check_index(headers: Headers, weight_map: Mapping[str, str], label: str) -> None:
    """Shards and index must tell the same.

    Raises:
        CheckpointError: a tensor lies in two shards, or isn't in the shard that the index names.
    """
    counts = Counter(name for tensors in headers.values() for name in tensors)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise CheckpointError(f"{label}: {len(twice)} tensors are in two shards: {some(twice)}. One file is stale")
    lost = sorted(name for name, file in weight_map.items() if name not in headers[file])
    if lost:
        raise CheckpointError(f"{label}: the index lists {len(lost)} tensors that its shards don't hold: {some(lost)}")


def _read(fetch: Fetch, file: str, begin: int, length: int) -> bytearray:
    data = bytearray(length)
    fetch(file, begin, memoryview(data))
    return data


def _checked(header: Any, file: str, where: str, *, data: int, size: int) -> dict[str, Slice]:
    """Every entry of the header; their data must fill the file to its end and not overlap."""
    if not isinstance(header, dict):
        raise CheckpointError(f"{where}: the safetensors header is no mapping. Use another revision")
    slices = [_slice(name, entry, file, where, data) for name, entry in header.items() if name != "__metadata__"]
    slices.sort(key=lambda found: (found.begin, found.end))
    for one, other in pairwise(slices):
        if other.begin < one.end:
            names = f"{one.info.name!r} and {other.info.name!r}"
            raise CheckpointError(f"{where}: tensors {names} overlap. Use another revision")
    end = max((found.end for found in slices), default=data)
    if end != size:
        raise CheckpointError(f"{where}: expected {end} bytes by its header but got {size}. Use another revision")
    return {found.info.name: found for found in slices}


def _slice(name: str, entry: Any, file: str, where: str, data: int) -> Slice:
    try:
        info, begin, end = parse_entry(name, entry)
    except ValueError as error:
        raise CheckpointError(f"{where}: tensor {name!r} {error}") from None
    return Slice(info, file, data + begin, data + end)
