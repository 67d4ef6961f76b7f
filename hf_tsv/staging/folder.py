"""A run's working folder, in which it writes its output until that is complete.

`.OUT.hf_tsv/` is beside OUT, on the same file system:

    lock            locked by the run; a second run on the same OUT refuses to start
    journal.jsonl   list of complete tensors, see `journal.py`
    scratch/        files that only the run itself reads again
    out/            the output; becomes OUT by one rename when it is complete

`processes.py` describes the other files that are there when several processes write one output.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from hf_tsv.errors import OutputError
from hf_tsv.files.disk import full_disk_told, sync_folder
from hf_tsv.files.locks import lock
from hf_tsv.files.names import RECORD_FILE


class Staging:
    """The working folder of one run.

    Use it in a `with`: leaving it always releases the lock, and removes the folder if there is no journal yet. Of
    several processes that write one output, only the first locks the folder.

    Attributes:
        final: The output folder.
        leads: True if this process is the first or only process of the run.
        root: The working folder.
        out: The folder that becomes the output folder.
        scratch: The folder for files that only the run itself reads again.
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
            self._lock = lock(self.root / "lock")
            if self._lock is None:
                raise OutputError(f"{self.final}: another run is writing it. Wait for it, or choose another folder")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lock is None:
            return
        if not self._is_removed and not (self.root / "journal.jsonl").exists():
            self.remove()
        # Windows doesn't remove an open file, so the lock file is still there. Elsewhere the folder is gone by now.
        # Check before the lock is released, because afterwards another run may have made the folder again.
        is_left = self._is_removed and self.root.exists()
        os.close(self._lock)
        if is_left:
            with suppress(OSError):
                (self.root / "lock").unlink()
                self.root.rmdir()

    def discard(self) -> None:
        """Throw away all work done so far, but keep the folder and its lock."""
        with full_disk_told(self.root):
            for journal in self.root.glob("journal*.jsonl"):
                journal.unlink()
            for folder in (self.out, self.scratch):
                shutil.rmtree(folder, ignore_errors=True)
            self.out.mkdir()

    def remove(self) -> None:
        """Remove the working folder, while its lock is held so that no other run can begin in it."""
        self._is_removed = True
        shutil.rmtree(self.root, ignore_errors=True)

    def publish(self) -> None:
        """Make the staged folder the output. An earlier output is removed only after the new one is in place."""
        old = self.root / "old"
        with full_disk_told(self.final):
            shutil.rmtree(old, ignore_errors=True)
            sync_folder(self.out)
            if self.final.exists():
                # A folder can't be renamed onto one that isn't empty.
                self.final.rename(old)
            self.out.rename(self.final)
            sync_folder(self.final.parent)
        self.remove()


def check_output(out: Path, *, overwrite: bool) -> None:
    """Check that a folder can become the output.

    Raises:
        OutputError: it holds something that would be lost, or is not a folder.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(f"{out}: is not a folder. Choose another path")
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise OutputError(f"{out}: exists and is not empty. Pass --overwrite, or choose another folder")
    if not (out / RECORD_FILE).is_file():
        raise OutputError(
            f"{out}: holds no {RECORD_FILE}, so it was not made by hf-tsv and is not overwritten. Choose another folder"
        )
