"""Writing to a disk that may be full."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_tsv.errors import OutputError, ResourceError


def write_text(path: Path, text: str) -> None:
    """Write a small file, telling a full disk."""
    with full_disk_told(path):
        path.write_text(text, encoding="utf-8")


@contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """Turn what the operating system says of a write into a told error.

    Raises:
        ResourceError: the disk or the quota is full, or the file too large.
        OutputError: the place can't be written.
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
