"""What a whole process costs, seen from outside, as /usr/bin/time sees it.

Nothing large may be imported here or by who imports this: a child's peak memory counts from the moment it is
forked, when it still is its parent.
"""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


class RunError(Exception):
    """A measured process did not end well; the message holds the end of what it said."""


@dataclass(frozen=True)
class Cost:
    """One run of one process and its descendants.

    Attributes:
        wall: Seconds from its start to its end.
        cpu: Seconds of processor time, user and system.
        peak: Largest resident set in bytes, mapped files included.
        others: Processor cores that other processes kept busy meanwhile: above 0.1 the times are not to be trusted.
    """

    wall: float
    cpu: float
    peak: int
    others: float


def measure(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Cost:
    """Run a command to its end.

    Args:
        command: Program and arguments.
        log: Where its output goes.
        environment: Variables on top of ours.

    Raises:
        RunError: it ended with another status than 0.
    """
    os.sync()  # what an earlier run wrote is not to be paid by this one
    with log.open("wb") as output:
        busy, start = _busy(), time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **environment})
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RunError(f"{' '.join(command)}: exit status {process.returncode}\n{log.read_text()[-2000:]}")
    cpu = usage.ru_utime + usage.ru_stime
    return Cost(wall, cpu, usage.ru_maxrss * 1024, max(0.0, (_busy() - busy - cpu) / wall))


def warm(folders: Sequence[Path]) -> None:
    """Read files once, so that no run pays for the disk."""
    for folder in folders:
        for path in folder.glob("*.safetensors"):
            with path.open("rb", buffering=0) as file:
                while file.read(2**24):
                    pass


def _busy() -> float:
    """Processor seconds that the whole machine has spent working since it started."""
    user, nice, system, _idle, _iowait, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / TICKS
