"""A run's working folder: where it writes, and how it becomes the output.

`.OUT.hf_tsv/` lies beside OUT, on the same file system:

    lock            held by the run; a second run on the same OUT refuses
    journal.jsonl   what is complete, see `journal.py`
    scratch/        what only the run itself reads again
    out/            becomes OUT by one rename when everything is there

`processes.py` says what else lies there when several processes write one output.
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

    Use it in a `with`: leaving it gives the lock back, whatever happened, and leaves nothing behind where nothing
    was begun. Of several processes that write one output, only the first locks the folder.

    Attributes:
        final: The output folder.
        leads: Whether this process is the first, or the only one, of the run.
        root: The working folder.
        out: What becomes the output folder.
        scratch: What only the run itself reads again.
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
        # Windows doesn't remove a file that is open, so the lock file is still there. Elsewhere the folder is gone by
        # now, and must not be looked for after the lock is given back: another run may have made it again.
        is_left = self._is_removed and self.root.exists()
        os.close(self._lock)
        if is_left:
            with suppress(OSError):
                (self.root / "lock").unlink()
                self.root.rmdir()

    def discard(self) -> None:
        """Throw away all that was done so far, but stay in charge of the folder."""
        with full_disk_told(self.root):
            for journal in self.root.glob("journal*.jsonl"):
                journal.unlink()
            for folder in (self.out, self.scratch):
                shutil.rmtree(folder, ignore_errors=True)
            self.out.mkdir()

    def remove(self) -> None:
        """Throw the working folder away. It is removed under its lock, so that no other run has begun in it yet."""
        self._is_removed = True
        shutil.rmtree(self.root, ignore_errors=True)

    def publish(self) -> None:
        """Make what was staged the output; what stood there is removed only after the new one is in place."""
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
    """Check that a folder may become the output.

    Raises:
        OutputError: something is there that would be lost.
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
