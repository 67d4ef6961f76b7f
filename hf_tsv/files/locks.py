"""Locks on files. The operating system gives a lock back when its process ends, even when it is killed."""

import os
import time
from contextlib import suppress
from pathlib import Path

from filelock import lock_descriptor

from hf_tsv.errors import OutputError
from hf_tsv.files.disk import full_disk_told

# Whoever looks at whether a lock is held takes it for a moment. So it counts as held only when it can't be had for a
# while.
_SECONDS_TO_LOCK, _SECONDS_TO_LOOK, _PAUSE = 0.2, 0.03, 0.01


def lock(path: Path) -> int | None:
    """Lock a file, which is created where it doesn't exist.

    Returns:
        The open descriptor that holds the lock until it is closed; None when another process holds the lock, or has
        removed the file meanwhile.

    Raises:
        OutputError: the file can't be created, or its file system has no locks.
        ResourceError: the disk is full.
    """
    with full_disk_told(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    is_ours = False
    try:
        # A run that ends removes its lock file. One that has waited for it would hold a lock that nobody else sees.
        if _is_had(descriptor, path, _SECONDS_TO_LOCK):
            with suppress(FileNotFoundError):
                is_ours = os.path.samestat(path.stat(), os.fstat(descriptor))
    finally:
        if not is_ours:
            os.close(descriptor)
    return descriptor if is_ours else None


def is_locked(path: Path) -> bool:
    """Whether some process, this one included, holds the lock on a file; False where there is no such file.

    Raises:
        OutputError: its file system has no locks.
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
    """Whether the lock on an open file could be taken within some seconds."""
    deadline = time.monotonic() + seconds
    try:
        while not lock_descriptor(descriptor, blocking=False):
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE)
    except OSError as error:
        raise OutputError(f"{path}: its file system has no locks: {error.strerror}. Choose another path") from error
    return True
