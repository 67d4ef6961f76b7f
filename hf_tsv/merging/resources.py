"""What the machine has: processor cores, memory, disk."""

import ctypes
import math
import os
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hf_tsv.errors import ResourceError, size

CPU = torch.device("cpu")
SHARE_OF_FREE_MEMORY = 0.7
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def usable_cores() -> int:
    """Processor cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def operations_per_second() -> float:
    """What one core does of a product of float64 matrices, measured for some hundredths of a second."""
    n, fastest, before = 512, math.inf, torch.get_num_threads()
    factor = torch.ones(n, n, dtype=torch.float64)
    torch.set_num_threads(1)
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(factor, factor)
        fastest = min(fastest, time.perf_counter() - started)
    torch.set_num_threads(before)
    return 2.0 * n**3 / fastest


def default_memory(device: torch.device | None = None) -> int | None:
    """Bytes that a run may take unless told otherwise: most of what is free, on the device too; None where unknown."""
    known = [free for free in (_available(), _cgroup_room(), _device_room(device)) if free is not None]
    return int(min(known) * SHARE_OF_FREE_MEMORY) if known else None


def device_named(name: str, local_rank: int = 0) -> torch.device:
    """Where tensors are merged: `cpu`, `cuda`, or one of several as `cuda:1`.

    With `cuda` the processes on one machine take its GPUs in turn.

    Raises:
        ResourceError: torch has no such device, or one that can't do float64.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "cpu":
        return CPU
    if device.type != "cuda":
        raise ResourceError(f"--device {name}: expected cpu, cuda or cuda:N; others have no arithmetic in float64")
    count = torch.cuda.device_count()
    if not count:
        raise ResourceError(f"--device {name}: torch {torch.__version__} sees no GPU here. Leave --device out")
    index = local_rank % count if device.index is None else device.index
    if index >= count:
        raise ResourceError(f"--device {name}: expected cuda:0 to cuda:{count - 1}. Choose one of these")
    return torch.device("cuda", index)


def device_name(device: torch.device) -> str:
    """What bits depend on beside torch: processors of another kind may round sums differently."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


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


def _device_room(device: torch.device | None) -> int | None:
    return torch.cuda.mem_get_info(device)[0] if device is not None and device.type == "cuda" else None


def _cgroup_room() -> int | None:
    """What a container's limit leaves, not counting what the kernel only caches."""
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text("ascii").strip()
        held = dict(line.split() for line in (root / "memory.stat").read_text("ascii").splitlines())
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(held.get("anon", 0)))


@dataclass(frozen=True)
class Resources:
    """What a run may use of the machine.

    Attributes:
        workers: Steps in work at once, each on one processor core.
        max_memory: Bytes that the steps in work may take together, None for no limit.
        device: Where methods compute; tensors are read, looked over and written by the CPU.
    """

    workers: int
    max_memory: int | None = None
    device: torch.device = CPU

    @classmethod
    def of(
        cls, workers: int | None, max_memory: int | None, sharers: int = 1, device: torch.device = CPU
    ) -> "Resources":
        """What is given, and for the rest all cores and most of the free memory, or a fair share of them."""
        memory = default_memory(device)
        workers = workers or max(1, usable_cores() // sharers)
        return cls(workers, max_memory or (memory and memory // sharers), device)
