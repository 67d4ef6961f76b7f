"""A run's working folder: where it writes, what of it is complete, and how it becomes the output.

`.OUT.hf_tsv/` lies beside OUT, on the same file system:

    lock            held by the run; a second run on the same OUT refuses
    journal.jsonl   first line: what the run is; then one line a complete tensor
    scratch/        what only the run itself reads again
    out/            becomes OUT by one rename when everything is there

`processes.py` says what else lies there when several processes write one output.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from hf_tsv.errors import OutputError
from hf_tsv.outputs import RECORD_FILE
from hf_tsv.writers import CheckpointWriter, full_disk_told

MERGED = "merged"  # the stage of a run that writes the model's own files
SYNC_BYTES, SYNC_SECONDS = 256 * 2**20, 1.0  # at most so much is done again after a crash, whichever comes first


class Staging:
    """The working folder of one run.

    Use it in a `with`: leaving it gives the lock back, whatever happened, and leaves nothing behind where nothing
    was begun. Of several processes that write one output, only the first locks the folder.
    """

    def __init__(self, out: Path, *, leads: bool = True) -> None:
        self.final = out
        self.leads = leads
        self.root = out.parent / f".{out.name}.hf_tsv"
        self.out = self.root / "out"
        self.scratch = self.root / "scratch"
        self._lock: int | None = None
        self._is_removed = False

    def __enter__(self) -> "Staging":
        with full_disk_told(self.root):
            self.out.mkdir(parents=True, exist_ok=True)
            if self.leads:
                self._lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        if self._lock is not None and not _locked(self._lock, self.root / "lock"):
            os.close(self._lock)
            self._lock = None
            raise OutputError(f"{self.final}: another run is writing it. Wait for it, or choose another folder")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lock is not None:
            if not self._is_removed and not (self.root / "journal.jsonl").exists():
                self.remove()
            os.close(self._lock)

    def discard(self) -> None:
        """Throw away all that was done so far, but stay in charge of the folder."""
        with full_disk_told(self.root):
            for journal in self.root.glob("journal*.jsonl"):
                journal.unlink()
            for folder in (self.out, self.scratch):
                shutil.rmtree(folder, ignore_errors=True)
            self.out.mkdir()

    def remove(self) -> None:
        self._is_removed = True
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


def _locked(descriptor: int, path: Path) -> bool:
    """Whether the lock could be had, on the file that still is at that path: a run that ends removes its own.

    Another process may hold it for the moment of a look at whether it is held.
    """
    for _ in range(20):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        except OSError as error:
            raise OutputError(f"the output's file system has no locks: {error.strerror}. Choose another") from error
        else:
            return path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def _complete_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
