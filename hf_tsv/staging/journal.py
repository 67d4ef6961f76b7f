"""A run's working folder: where it writes, what of it is complete, and how it becomes the output.

`.OUT.hf_tsv/` lies beside OUT, on the same file system:

    lock            held by the run; a second run on the same OUT refuses
    journal.jsonl   first line: what the run is; then one line a complete tensor
    scratch/        what only the run itself reads again
    out/            becomes OUT by one rename when everything is there

`processes.py` says what else lies there when several processes write one output.
"""

import json
import os
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from hf_tsv.checkpoints.writer import CheckpointWriter
from hf_tsv.errors import OutputError
from hf_tsv.files.disk import full_disk_told
from hf_tsv.staging.folder import Staging, _sync_folder

MERGED = "merged"  # the stage of a run that writes the model's own files
SYNC_BYTES, SYNC_SECONDS = 256 * 2**20, 1.0  # at most so much is done again after a crash, whichever comes first


class Journal:
    """Which tensors are complete. A tensor's line is written only after its bytes are on the disk.

    Each process of a run has a journal of its own; the first one's takes the others' in. A run with several stages has
    one object for each, on the same file.

    Attributes:
        done: By name, what was noted of each complete tensor: checksum, rank, seconds.
    """

    def __init__(
        self,
        staging: Staging,
        writer: CheckpointWriter,
        identity: Mapping[str, str],
        *,
        rank: int = 0,
        stage: str = MERGED,
    ) -> None:
        self._root, self._stage = staging.root, stage
        self._path = staging.root / (f"journal-{rank}.jsonl" if rank else "journal.jsonl")
        self._writer = writer
        self._pending: list[str] = []
        self._pending_bytes = 0
        self._synced = time.monotonic()
        self._lock = Lock()
        self.done = _but(_entries(self._path, stage), writer.made_anew)
        with full_disk_told(self._path):
            self._file = self._path.open("ab", buffering=0)
        if not self._path.stat().st_size:
            _sync_folder(staging.out)
            self._append([json.dumps(dict(identity))])
        if not rank:
            self.take_in(but=writer.made_anew)

    def take_in(self, but: Collection[str] = ()) -> None:
        """Make what the other processes have noted this journal's own, except for these tensors."""
        for path in sorted(self._root.glob("journal-*.jsonl")):
            entries = _but(_entries(path, self._stage), but)
            self._append(list(map(self._line, entries.values())))
            self.done |= entries
            path.unlink()

    @staticmethod
    def read_identity(staging: Staging) -> dict[str, str] | None:
        """What the run that left this folder was, or None when there was none."""
        lines = _complete_lines(staging.root / "journal.jsonl")
        return _parsed(staging.root / "journal.jsonl", lines[:1])[0] if lines else None

    @staticmethod
    def read_done(staging: Staging, stage: str) -> set[str]:
        """The names noted in one stage of the run that left this folder."""
        return set(_entries(staging.root / "journal.jsonl", stage))

    def note(self, entry: Mapping[str, Any], nbytes: int) -> None:
        """Note a written tensor; it counts once the next sync has gone through."""
        with self._lock:
            self.done[entry["name"]] = dict(entry)
            self._pending.append(self._line(entry))
            self._pending_bytes += nbytes
            due = self._pending_bytes >= SYNC_BYTES or time.monotonic() - self._synced >= SYNC_SECONDS
        if due:
            self.sync()

    def sync(self) -> None:
        """Data first, then the lines that say it is there."""
        with self._lock:
            self._synced = time.monotonic()
            if self._pending:
                self._writer.sync()
                self._append(self._pending)
                self._pending, self._pending_bytes = [], 0

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.sync()
        finally:
            self._file.close()

    def _line(self, entry: Mapping[str, Any]) -> str:
        return json.dumps({**entry, "stage": self._stage})

    def _append(self, lines: Sequence[str]) -> None:
        """All of the lines, or, where the disk is full, none: half a line would spoil the next one."""
        data, end = memoryview("".join(line + "\n" for line in lines).encode()), self._file.seek(0, os.SEEK_END)
        with full_disk_told(self._path):
            try:
                while data:
                    data = data[self._file.write(data) :]
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(end)
                raise


def _but(entries: Mapping[str, dict[str, Any]], names: Collection[str]) -> dict[str, dict[str, Any]]:
    return {name: entry for name, entry in entries.items() if name not in names}


def _entries(path: Path, stage: str) -> dict[str, dict[str, Any]]:
    lines = _complete_lines(path)
    if path.exists():  # a torn last line would swallow the next one
        os.truncate(path, sum(len(line) + 1 for line in lines))
    entries = _parsed(path, lines[1:])
    return {entry.get("name", ""): entry for entry in entries if entry.pop("stage", None) == stage}


def _parsed(path: Path, lines: Sequence[bytes]) -> list[dict[str, Any]]:
    try:
        entries = [json.loads(line) for line in lines]
    except (ValueError, RecursionError):
        entries = [None]
    if not all(isinstance(entry, dict) for entry in entries):
        raise OutputError(f"{path}: is no journal that can be read. Pass --restart to throw the unfinished run away")
    return entries


def _complete_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []
