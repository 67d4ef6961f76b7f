"""What the machine has: processor cores, memory, disk."""

import ctypes
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from hf_tsv.errors import ResourceError, size

SHARE_OF_FREE_MEMORY = 0.7
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def usable_cores() -> int:
    """Processor cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_memory() -> int | None:
    """Bytes that a run may take unless told otherwise: most of what is free; None where that can't be known."""
    known = [free for free in (_available(), _cgroup_room()) if free is not None]
    return int(min(known) * SHARE_OF_FREE_MEMORY) if known else None


def reuse_freed_memory() -> None:
    """Keep up to 64 MB of freed memory, in blocks below 8 MB, instead of giving each block back at once.

    With glibc's own rule the kernel's clearing of the same pages, over and over, takes a third of a run that merges
    in small pieces. Other C libraries are left alone.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None:
        mallopt(_M_MMAP_THRESHOLD, 8 << 20)
        mallopt(_M_TRIM_THRESHOLD, 64 << 20)


def check_disk(folder: Path, needed: int) -> None:
    """`check_disks` of one folder."""
    check_disks([(folder, needed)])


def check_disks(needed: Sequence[tuple[Path, int]]) -> None:
    """Whether file systems have room for what is to be written: folders, which may not exist yet, and bytes.

    Folders on one file system need the sum.

    Raises:
        ResourceError: some have less; every one is told.
    """
    together: dict[int, list[tuple[Path, int]]] = {}
    for folder, nbytes in needed:
        together.setdefault(_existing(folder).stat().st_dev, []).append((folder, nbytes))
    problems = []
    for parts in together.values():
        free, total = shutil.disk_usage(_existing(parts[0][0])).free, sum(nbytes for _, nbytes in parts)
        where = " and ".join(dict.fromkeys(str(folder) for folder, nbytes in parts if nbytes))
        if free < total:
            problems.append(
                f"{where}: its disk has {size(free)} free, expected at least {size(total)}. Free some, or write"
                " elsewhere"
            )
    if problems:
        raise ResourceError(problems)


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _cgroup_room() -> int | None:
    """What a container's limit leaves, not counting what the kernel only caches."""
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text("ascii").strip()
        held = dict(line.split() for line in (root / "memory.stat").read_text("ascii").splitlines())
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(held.get("anon", 0)))
