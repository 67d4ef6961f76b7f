"""A run's working folder: where it writes, and how it becomes the output."""

import fcntl
import os
import shutil
import time
from pathlib import Path

from hf_tsv.errors import OutputError
from hf_tsv.files.disk import full_disk_told
from hf_tsv.files.names import RECORD_FILE


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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
