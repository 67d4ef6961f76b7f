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

FIRST_READ_BYTES = 100_000  # contains the header of most files, so that one request suffices
RUN_BYTES = 8 << 20  # size limit of neighbouring tensors fetched in one request
KEPT_RUNS = 4  # runs kept in memory, because a few threads read neighbouring tensors at a time

Fetch = Callable[[str, int, memoryview], None]  # (file, first byte, view to fill)


@dataclass(frozen=True)
class Slice:
    """One tensor of a remote file: its header, and the bytes [begin, end) of its data in the file."""

    info: TensorInfo
    file: str
    begin: int
    end: int


Headers = Mapping[str, Mapping[str, Slice]]  # by file and tensor's name


@dataclass
class _Run:
    """Neighbouring tensors that are fetched together: bytes [begin, end) of a file, and `data` once fetched."""

    file: str
    begin: int
    end: int
    data: bytearray | None = None
    lock: Lock = field(default_factory=Lock, repr=False)


class RemoteCheckpoint:
    """A checkpoint on the Hub at one commit, whose tensors are fetched by byte range when they are read.

    Small neighbours are fetched in one request, and the last few such runs stay in memory: reading in the order of the
    file fetches each byte once. Safe to use from several threads.
    """

    def __init__(self, headers: Headers, fetch: Fetch, *, label: str, fingerprint: str) -> None:
        self.label = label
        self._tensors: dict[str, Slice] = {}
        self._runs: dict[str, _Run] = {}  # by tensor's name; only tensors that share a run
        for slices in headers.values():
            self._tensors |= slices
            self._runs |= _runs(slices)
        self._recent: OrderedDict[int, _Run] = OrderedDict()  # by id; the last used at the end
        self._lock = Lock()
        self._fetch = fetch
        self._fingerprint = fingerprint

    def names(self) -> Sequence[str]:
        return tuple(self._tensors)

    def info(self, name: str) -> TensorInfo:
        return self._tensors[name].info

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        stored = self._tensors[name]
        offset, shape = stored.info.part(rows)
        begin = stored.begin + offset
        tensor = torch.empty(shape, dtype=stored.info.torch_dtype)
        if not tensor.numel():
            return tensor
        # The tensor's own memory as bytes (numel * itemsize,), filled without another copy.
        view = tensor.view(-1).view(torch.uint8).numpy().data
        # Single rows are read if the whole tensor is too large, so its neighbours aren't fetched with them.
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
                # Threads that still read this run have their own reference to the bytes.
                _, oldest = self._recent.popitem(last=False)
                oldest.data = None
        return data

    def will_need(self, name: str) -> None:
        """Do nothing: ranges are fetched when they are read."""

    def fingerprint(self) -> str:
        """Repository and commit, because a commit's content can't change."""
        return self._fingerprint


def _runs(tensors: Mapping[str, Slice]) -> dict[str, _Run]:
    """The runs of a file, by tensor's name. Tensors that share no run with others have none, and are fetched alone."""
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
    """Read the header of a remote safetensors file of `size` bytes: its tensors, in the order of their data.

    Raises:
        CheckpointError: the file isn't safetensors, or its header contradicts itself or the file's size.
    """
    where = f"{label}/{file}"
    # A safetensors file has the header's length (8 bytes), the header as JSON, and the tensors' data.
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
        CheckpointError: a tensor is in two shards, or isn't in the shard that the index names.
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
    """Read `length` bytes of a file from `begin` on."""
    data = bytearray(length)
    fetch(file, begin, memoryview(data))
    return data


def _checked(header: Any, file: str, where: str, *, data: int, size: int) -> dict[str, Slice]:
    """Return the tensors of a header, checked to end where the file ends and not to overlap.

    Args:
        header: The header's JSON value, written by a stranger.
        file: The file's path in the repository.
        where: The file's name in messages.
        data: Offset of the tensors' data in the file, in bytes.
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
