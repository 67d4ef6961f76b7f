"""The processes of one run, on one or several machines, which meet in a shared folder.

They communicate only through files in the run's working folder. Each process holds the lock on a file of its own; the
others know that it is alive while that lock is held, because the operating system releases the lock however a process
ends. So no clock, no port and no collective of torch.distributed is needed, and a launcher need only set RANK and
WORLD_SIZE.

    lock                   locked by process 0
    lock-1-START, ...      locked by each other process; START identifies its host and this start of it
    deal.json              the tensors that each process makes, written by process 0
    journal-1.jsonl, ...   the tensors that each other process has made
    reason-START           the reason why a process gave up
"""

import heapq
import json
import os
import platform
import re
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hf_tsv.errors import OutputError
from hf_tsv.files.disk import full_disk_told
from hf_tsv.files.locks import is_locked, lock
from hf_tsv.staging.journal import names_in

T = TypeVar("T")
MEETING_SECONDS = 300.0  # time for all processes to start, because imports from a busy shared folder are slow
POLL_SECONDS, CHECK_SECONDS = 0.05, 1.0
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Process:
    """One process of a run.

    Attributes:
        rank: Rank of the process; process 0 leads and publishes.
        count: Number of processes of the run.
        local_count: Number of the run's processes on this machine, which share its cores and memory.
    """

    rank: int = 0
    count: int = 1
    local_count: int = 1

    @classmethod
    def launched(cls) -> "Process":
        """Read the environment set by `accelerate launch`, `torchrun` or another launcher; without one, run alone.

        Raises:
            OutputError: RANK and WORLD_SIZE contradict each other.
        """
        values = {name: os.environ.get(name, "") for name in VARIABLES}
        if not values["WORLD_SIZE"]:
            return cls()
        try:
            rank, count = int(values["RANK"]), int(values["WORLD_SIZE"])
            process = cls(rank, count, int(values["LOCAL_WORLD_SIZE"] or 1))
        except ValueError:
            process = cls(-1)  # refused below
        if not 0 <= process.rank < process.count or process.local_count < 1:
            shown = ", ".join(f"{name}={value!r}" for name, value in values.items() if value)
            raise OutputError(
                f"environment: {shown} contradict each other: RANK must be a number from 0 to WORLD_SIZE - 1, and"
                " LOCAL_WORLD_SIZE at least 1. Unset them to run a single process"
            )
        return process


def check_alone(out: Path) -> None:
    """Refuse to run as several processes where one does all the work.

    Raises:
        OutputError: a launcher has started more than one.
    """
    count = Process.launched().count
    if count > 1:
        raise OutputError(f"{out}: this is made by a single process, but WORLD_SIZE={count}. Run it without a launcher")


def deal_out(items: Iterable[T], work: Callable[[T], float], count: int) -> list[list[T]]:
    """Deal items out into `count` shares of about the same work.

    Longest processing time first: each item, from the most work to the least, goes to the share with the least work so
    far (Graham, 1969, https://doi.org/10.1137/0117039).
    """
    shares: list[list[T]] = [[] for _ in range(count)]
    loads = [(0.0, rank) for rank in range(count)]
    for item in sorted(items, key=work, reverse=True):
        load, rank = loads[0]
        shares[rank].append(item)
        heapq.heapreplace(loads, (load + work(item), rank))
    return shares


class Team:
    """The processes of one run.

    Use it in a `with`, inside that of the working folder. Entering it waits for the other processes.

    Raises:
        OutputError: a process doesn't start in time, or has ended; names the process and, where known, its host and
            its reason.
    """

    def __init__(self, root: Path, process: Process) -> None:
        self.process = process
        self._root = root
        self._checked = time.monotonic()  # time of the last check in `check`
        self._crew: dict[int, str] = {}  # each worker's START, by rank; filled in only in process 0
        self._shares: Sequence[Sequence[str]] = ()
        self._lock: int | None = None
        # Part of file names: the host, for messages, and an id that is unique to this start.
        host = re.sub(r"[^A-Za-z0-9._-]", "_", platform.node())
        self._start = f"{host}-{uuid.uuid4().hex}"

    def __enter__(self) -> "Team":
        deadline = time.monotonic() + MEETING_SECONDS
        if self.process.rank:
            # The locked file is named after this start, so that no earlier start's file is taken for it.
            if self._start_of(self.process.rank) is None:
                self._lock = lock(self._root / f"lock-{self.process.rank}-{self._start}")
            if self._lock is None:
                raise OutputError(f"{self._root}: another run is writing there. Wait for it, or choose another folder")
            while not is_locked(self._root / "lock"):
                self._wait_for(0, deadline)
            return self
        for rank in range(1, self.process.count):
            start = self._start_of(rank)
            while start is None:
                self._wait_for(rank, deadline)
                start = self._start_of(rank)
            self._crew[rank] = start
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.process.rank and error is not None:
            # If the folder is gone or the disk is full, the others see that this process ended, but not why.
            with suppress(OSError):
                (self._root / f"reason-{self._start}").write_text(str(error), encoding="utf-8")
        self.leave()

    def leave(self) -> None:
        """Let the others know that this process has finished its work."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def deal(self, items: Sequence[T], work: Callable[[T], float], name: Callable[[T], str], run: object) -> list[T]:
        """Deal out the work, in process 0, and return its own share.

        Args:
            items: The items to be made.
            work: Function that returns an item's work.
            name: Function that returns an item's name.
            run: Identity of the run. The other processes compare it with their own.
        """
        shares = deal_out(items, work, self.process.count)
        self._shares = [list(map(name, share)) for share in shares]
        if self.process.count > 1:
            deal = {"starts": self._crew, "run": run, "shares": self._shares}
            path = self._root / "deal.json"
            new = path.with_suffix(".new")
            with full_disk_told(path), new.open("w", encoding="utf-8") as file:
                json.dump(deal, file)
                file.flush()
                os.fsync(file.fileno())
            # Renamed into place, so that no process reads half of it.
            new.replace(path)
        return shares[0]

    def await_deal(self, run: object) -> list[str]:
        """Wait until process 0 has dealt out the work, and return the names of this process's items.

        Raises:
            OutputError: process 0 has another `run`, or has ended.
        """
        deal = self._deal()
        while deal is None:
            self._check_leader()
            time.sleep(POLL_SECONDS)
            deal = self._deal()
        if deal["run"] != run:
            raise OutputError(
                f"{self._root}: process {self.process.rank} on {_host(self._start)} sees another recipe, other models"
                " or another version than process 0. All processes need the same files and environment"
            )
        return list(deal["shares"][self.process.rank])

    def check(self) -> None:
        """Check that all processes are still running, at most once in CHECK_SECONDS however often it is called."""
        if self.process.count == 1 or time.monotonic() - self._checked < CHECK_SECONDS:
            return
        self._checked = time.monotonic()
        if self.process.rank:
            self._check_leader()
            if self._deal() is None:
                raise OutputError(f"{self._root}: another run has begun there. This process ends")
        for rank in self._crew:
            self._is_through(rank)

    def await_all(self) -> None:
        """Wait, in process 0, until the other processes have made their shares."""
        while not all(map(self._is_through, self._crew)):
            time.sleep(POLL_SECONDS)

    def await_output(self, record: Path, before: object) -> None:
        """Wait until process 0 has published the record. `before`: the record's `stamp` at the start."""
        self.leave()
        # Publishing removes the working folder, and the lock with it.
        while self._root.exists() and is_locked(self._root / "lock"):
            time.sleep(POLL_SECONDS)
        list(record.parent.parent.iterdir())  # makes a network file system refresh its view of the folder
        if stamp(record) == before:
            raise OutputError(self._ended("process 0", ""))

    def _wait_for(self, rank: int, deadline: float) -> None:
        """Wait a moment for a process to start. Raises OutputError when the deadline has passed."""
        if time.monotonic() > deadline:
            raise OutputError(
                f"{self._root}: process {rank} of {self.process.count} has not come there within"
                f" {MEETING_SECONDS:.0f} s. All need the same output folder, on a file system that they share"
            )
        time.sleep(POLL_SECONDS)

    def _check_leader(self) -> None:
        if not is_locked(self._root / "lock"):
            raise OutputError(self._ended("process 0", ""))

    def _start_of(self, rank: int) -> str | None:
        """Find the START of a worker that is running now; None if it isn't. Files of earlier starts are ignored."""
        prefix = f"lock-{rank}-"
        for path in self._root.glob(f"{prefix}*"):
            if is_locked(path):
                return path.name.removeprefix(prefix)
        return None

    def _is_through(self, rank: int) -> bool:
        """Return whether a worker has made its share and left. Raises OutputError if it left too early."""
        start = self._crew[rank]
        # Check the lock first: once it is free, nothing more is added to the journal.
        if is_locked(self._root / f"lock-{rank}-{start}"):
            return False
        made = names_in(self._root / f"journal-{rank}.jsonl")
        if self._shares and made.issuperset(self._shares[rank]):
            return True
        reason = self._root / f"reason-{start}"
        why = reason.read_text("utf-8") if reason.exists() else ""
        raise OutputError(self._ended(f"process {rank} on {_host(start)}", why))

    def _ended(self, who: str, why: str) -> str:
        because = f": {why.rstrip('.')}" if why else ""
        return (
            f"{who} has ended before its work was done{because}. What is complete is kept in {self._root}; the same"
            " command goes on from there"
        )

    def _deal(self) -> dict[str, Any] | None:
        """Read the shares that process 0 has dealt out to this start of this process; None if there are none yet."""
        try:
            deal: dict[str, Any] = json.loads((self._root / "deal.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        # An earlier run's deal may still be there.
        return deal if deal["starts"].get(str(self.process.rank)) == self._start else None


def stamp(path: Path) -> object:
    """Return a value that changes when the file is replaced; None if it doesn't exist."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _host(start: str) -> str:
    host, _, _ = start.rpartition("-")
    return host
