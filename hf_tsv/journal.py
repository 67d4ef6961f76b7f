"""A run's working folder: where it writes, what of it is complete, and how it becomes the output.

`.OUT.hf_tsv/` lies beside OUT, on the same file system:

    lock            held by the run; a second run on the same OUT refuses
    journal.jsonl   first line: what the run is; then one line a complete tensor
    out/            becomes OUT by one rename when everything is there
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from hf_tsv.errors import OutputError
from hf_tsv.writers import CheckpointWriter, full_disk_told

RECORD_FILE = "hf_tsv.json"
SYNC_BYTES, SYNC_SECONDS = 256 * 2**20, 1.0  # at most so much is done again after a crash, whichever comes first


class Staging:
    """The working folder of one run.

    Use it in a `with`: leaving it gives the lock back, whatever happened.
    """

    def __init__(self, out: Path) -> None:
        self.final = out
        self.root = out.parent / f".{out.name}.hf_tsv"
        self.out = self.root / "out"
        self._lock: int | None = None

    def __enter__(self) -> "Staging":
        with full_disk_told(self.root):
            self.out.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            self._lock = None
            raise OutputError(
                f"{self.final}: another run is writing it. Wait for it, or choose another folder"
            ) from None
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def discard(self) -> None:
        """Throw away all that was done so far, but stay in charge of the folder."""
        with full_disk_told(self.root):
            (self.root / "journal.jsonl").unlink(missing_ok=True)
            shutil.rmtree(self.out, ignore_errors=True)
            self.out.mkdir()

    def remove(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def publish(self) -> None:
        """Make OUT what was staged; what stood there is gone only after the new is in place."""
        old = self.root / "old"
        with full_disk_told(self.final):
            shutil.rmtree(old, ignore_errors=True)
            _sync_folder(self.out)
            if self.final.exists():
                self.final.rename(old)
            self.out.rename(self.final)
            _sync_folder(self.final.parent)
        self.remove()


def check_output(out: Path, *, overwrite: bool) -> None:
    """Whether OUT may become the output.

    Raises:
        OutputError: something is there that would be lost.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(f"{out}: is no folder. Choose another place")
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise OutputError(f"{out}: exists and is not empty. Pass --overwrite, or choose another folder")
    if not (out / RECORD_FILE).is_file():
        raise OutputError(
            f"{out}: holds no {RECORD_FILE}, so it was not made by hf-tsv and is not overwritten. Choose another folder"
        )


class Journal:
    """Which tensors are complete. A tensor's line is written only after its bytes are on the disk.

    Attributes:
        done: By name, what was noted of each complete tensor: checksum, rank, seconds.
    """

    def __init__(self, staging: Staging, writer: CheckpointWriter, identity: Mapping[str, str]) -> None:
        self._path = staging.root / "journal.jsonl"
        self._writer = writer
        self._pending: list[str] = []
        self._pending_bytes = 0
        self._synced = time.monotonic()
        self._lock = Lock()
        self.done = {name: entry for name, entry in self._entries().items() if name not in writer.made_anew}
        with full_disk_told(self._path):
            self._file = self._path.open("a", encoding="utf-8")
        if not self._path.stat().st_size:
            _sync_folder(staging.out)
            self._append([json.dumps(dict(identity))])

    @staticmethod
    def read_identity(staging: Staging) -> dict[str, str] | None:
        """What the run that left this folder was, or None when there was none."""
        lines = _complete_lines(staging.root / "journal.jsonl")
        return dict(json.loads(lines[0])) if lines else None

    def note(self, entry: Mapping[str, Any], nbytes: int) -> None:
        """Note a written tensor; it counts once the next sync has gone through."""
        with self._lock:
            self.done[entry["name"]] = dict(entry)
            self._pending.append(json.dumps(entry))
            self._pending_bytes += nbytes
            due = self._pending_bytes >= SYNC_BYTES or time.monotonic() - self._synced >= SYNC_SECONDS
        if due:
            self.sync()

    def sync(self) -> None:
        """Data first, then the lines that say it is there."""
        with self._lock:
            lines, self._pending, self._pending_bytes = self._pending, [], 0
            self._synced = time.monotonic()
            if lines:
                self._writer.sync()
                self._append(lines)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.sync()
        finally:
            self._file.close()

    def _append(self, lines: list[str]) -> None:
        with full_disk_told(self._path):
            self._file.write("".join(line + "\n" for line in lines))
            self._file.flush()
            os.fsync(self._file.fileno())

    def _entries(self) -> dict[str, dict[str, Any]]:
        lines = _complete_lines(self._path)
        if self._path.exists():  # a torn last line would swallow the next one
            os.truncate(self._path, sum(len(line) + 1 for line in lines))
        return {entry["name"]: entry for entry in map(json.loads, lines[1:])}


def _complete_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
