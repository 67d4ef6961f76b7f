"""Writing to a disk that may be full, and making sure that written data survives."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_tsv.errors import OutputError, ResourceError


def write_text(path: Path, text: str) -> None:
    """Write a small file. Raises the errors of `full_disk_told`."""
    with full_disk_told(path):
        path.write_text(text, encoding="utf-8")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut: a file's own sync doesn't save its name.

    Raises:
        OSError: the folder can't be read.
    """
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows can't open folders, and its file systems save names by themselves
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """Turn the operating system's errors on writing to `path` into errors with a way out.

    Raises:
        ResourceError: the disk or the quota is full, or the file is too large.
        OutputError: the path can't be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"{path}: the disk is full. Free some room and run the same command again") from error
        if error.errno == errno.EFBIG:
            raise ResourceError(
                f"{path}: is larger than its file system or a limit allows (ulimit -f). Raise that, or write elsewhere;"
                " a model also in smaller files, by --max-shard-size"
            ) from error
        raise OutputError(f"{path}: can't be written: {error.strerror}") from error
