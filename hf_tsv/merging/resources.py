"""The machine's resources: processor cores, memory, devices and disk."""

import math
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


def usable_cores() -> int:
    """Return the number of processor cores that this process may run on."""
    import psutil  # imported only for work, because on Linux it needs Python's `resource` module

    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # macOS doesn't have it
        return len(process.cpu_affinity())
    return psutil.cpu_count() or 1


def operations_per_second() -> float:
    """Measure one core's operations per second in float64 matrix products, within some hundredths of a second."""
    n = 512
    factor = torch.ones(n, n, dtype=torch.float64)
    fastest = math.inf  # seconds
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(5):  # the fastest counts, because the others were slowed down by something else
        started = time.perf_counter()
        torch.mm(factor, factor)
        fastest = min(fastest, time.perf_counter() - started)
    torch.set_num_threads(threads_before)
    return 2.0 * n**3 / fastest  # a multiplication and an addition for each of n^3 pairs


def default_memory(device: torch.device | None = None) -> int:
    """Return the default memory limit of a run in bytes: most of what is free in this container and on the device."""
    import psutil  # as in `usable_cores`

    room = int(psutil.virtual_memory().available)
    in_container = _cgroup_room()
    if in_container is not None:
        room = min(room, in_container)
    if device is not None and device.type == "cuda":
        room = min(room, torch.cuda.mem_get_info(device)[0])
    return int(room * SHARE_OF_FREE_MEMORY)


def device_named(name: str, local_rank: int = 0) -> torch.device:
    """Return the device with this name: `cpu`, `cuda`, or one of several as `cuda:1`.

    With `cuda`, the processes on one machine take its GPUs in turn.

    Raises:
        ResourceError: torch has no such device, or the device can't do float64.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # refused below, like every device that isn't CPU or CUDA
    if device.type == "cpu":
        return CPU
    if device.type != "cuda":
        raise ResourceError(f"--device {name}: expected cpu, cuda or cuda:N; others have no arithmetic in float64")
    count = torch.cuda.device_count()
    if not count:
        raise ResourceError(f"--device {name}: torch {torch.__version__} sees no GPU here. Leave --device out")
    # Where there are more processes than GPUs, processes share a GPU.
    index = local_rank % count if device.index is None else device.index
    if index >= count:
        raise ResourceError(f"--device {name}: expected cuda:0 to cuda:{count - 1}. Choose one of these")
    return torch.device("cuda", index)


def device_name(device: torch.device) -> str:
    """Return the kind of processor. The output's bits depend on it, because other kinds may round sums differently."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def check_disk(folder: Path, needed: int) -> None:
    """Check the disk space for one folder, as `check_disks` does."""
    check_disks([(folder, needed)])


def check_disks(needed: Sequence[tuple[Path, int]]) -> None:
    """Check that file systems have room for the output; folders on one file system need the sum of their bytes.

    Args:
        needed: Folders, which may not exist yet, and the number of bytes that will be written to each.

    Raises:
        ResourceError: file systems have too little room; reports all of them.
    """
    on_disk: dict[int, list[tuple[Path, int]]] = {}  # by device number of the file system
    for folder, nbytes in needed:
        disk = _existing(folder).stat().st_dev
        on_disk.setdefault(disk, []).append((folder, nbytes))
    problems = []
    for parts in on_disk.values():
        free = shutil.disk_usage(_existing(parts[0][0])).free
        total = sum(nbytes for _, nbytes in parts)
        if free < total:
            folders = dict.fromkeys(str(folder) for folder, nbytes in parts if nbytes)
            problems.append(
                f"{' and '.join(folders)}: its disk has {size(free)} free, expected at least {size(total)}. Free some,"
                " or write elsewhere"
            )
    if problems:
        raise ResourceError(problems)


def _existing(folder: Path) -> Path:
    """Return the folder, or its nearest existing parent: the folder will be on the same file system."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def _cgroup_room() -> int | None:
    """Return how many bytes a container's limit leaves; None without a limit. The kernel's file cache counts as free.

    psutil knows the machine's memory, not the container's.
    """
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text("ascii").strip()
        used = dict(line.split() for line in (root / "memory.stat").read_text("ascii").splitlines())
    except OSError:
        return None
    if limit == "max":
        return None
    return max(0, int(limit) - int(used.get("anon", 0)))  # the kernel drops file pages before it kills a process


@dataclass(frozen=True)
class Resources:
    """The part of the machine's resources that a run may use.

    Attributes:
        workers: Maximum number of steps that run at once, each on one processor core.
        max_memory: Maximum number of bytes for all running steps together; None for no limit.
        device: Device on which methods compute; the CPU reads, checks and writes the tensors.
    """

    workers: int
    max_memory: int | None = None
    device: torch.device = CPU

    @classmethod
    def of(
        cls, workers: int | None, max_memory: int | None, sharers: int = 1, device: torch.device = CPU
    ) -> "Resources":
        """Return the given resources. The defaults are all cores and most of the free memory, divided by `sharers`."""
        workers = workers or max(1, usable_cores() // sharers)
        max_memory = max_memory or default_memory(device) // sharers
        return cls(workers, max_memory, device)
