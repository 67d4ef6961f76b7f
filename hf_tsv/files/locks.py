"""Locks on files. The operating system releases a lock when its process ends, even if the process is killed."""

import os
import time
from contextlib import suppress
from pathlib import Path

from filelock import lock_descriptor

from hf_tsv.errors import OutputError
from hf_tsv.files.disk import full_disk_told

# A process that checks a lock takes it for a moment. So a lock counts as held only if it can't be taken for a while.
_SECONDS_TO_LOCK, _SECONDS_TO_LOOK, _PAUSE = 0.2, 0.03, 0.01


def lock(path: Path) -> int | None:
    """Lock a file; create it if it doesn't exist.

    Returns:
        The open descriptor, which holds the lock until it is closed; None if another process holds the lock, or has
        removed the file meanwhile.

    Raises:
        OutputError: the file can't be created, or its file system has no locks.
        ResourceError: the disk is full.
    """
    with full_disk_told(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    is_ours = False
    try:
        # A run that ends removes its lock file. A run that waited for it would hold a lock that no other process sees.
        if _is_had(descriptor, path, _SECONDS_TO_LOCK):
            with suppress(FileNotFoundError):
                is_ours = os.path.samestat(path.stat(), os.fstat(descriptor))
    finally:
        if not is_ours:
            os.close(descriptor)
    return descriptor if is_ours else None


def is_locked(path: Path) -> bool:
    """Return True if a process, this one included, holds the lock on a file; False if the file can't be opened.

    Raises:
        OutputError: the file system has no locks.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _is_had(descriptor, path, _SECONDS_TO_LOOK)
    finally:
        os.close(descriptor)


def _is_had(descriptor: int, path: Path, seconds: float) -> bool:
    """Try for some seconds to take the lock on an open file; return True if that worked."""
    deadline = time.monotonic() + seconds
    try:
        while not lock_descriptor(descriptor, blocking=False):
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE)
    except OSError as error:
        raise OutputError(f"{path}: its file system has no locks: {error.strerror}. Choose another path") from error
    return True
