"""The processes of one run, on one machine or several, that meet in a folder which they share.

All that they tell each other are files in the run's working folder, and all that one knows of another's health is
whether the lock on its file is held: the operating system lets go of it when a process ends, however that comes. So
no clock, no port and no collective of torch.distributed is needed, and a launcher need only set RANK and WORLD_SIZE.

    lock                   held by process 0
    lock-1-START, ...      held by each other process; START names its host and this start of it
    deal.json              by process 0: who makes which tensors
    journal-1.jsonl, ...   what each other process has made
    reason-START           why one of them gave up
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
MEETING_SECONDS = 300.0  # for all processes to start; imports from a busy shared folder take their time
POLL_SECONDS, CHECK_SECONDS = 0.05, 1.0
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Process:
    """One process of a run.

    Attributes:
        rank: Which one; 0 leads and publishes.
        count: How many there are.
        local_count: How many of them are on this machine, whose cores and memory they share.
    """

    rank: int = 0
    count: int = 1
    local_count: int = 1

    @classmethod
    def launched(cls) -> "Process":
        """What `accelerate launch`, `torchrun` or another launcher says in the environment; alone without one.

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
            process = cls(-1)  # as wrong as any
        if not 0 <= process.rank < process.count or process.local_count < 1:
            shown = ", ".join(f"{name}={value!r}" for name, value in values.items() if value)
            raise OutputError(
                f"environment: {shown} contradict each other: RANK must be a number from 0 to WORLD_SIZE - 1, and"
                " LOCAL_WORLD_SIZE at least 1. Unset them to run a single process"
            )
        return process


def check_alone(out: Path) -> None:
    """Refuse several processes where one does all the work.

    Raises:
        OutputError: a launcher has started more than one.
    """
    count = Process.launched().count
    if count > 1:
        raise OutputError(f"{out}: this is made by a single process, but WORLD_SIZE={count}. Run it without a launcher")


def deal_out(items: Iterable[T], work: Callable[[T], float], count: int) -> list[list[T]]:
    """Deal items out into `count` shares of about the same work.

    Longest processing time first: each goes to who has least so far (Graham, 1969, https://doi.org/10.1137/0117039).
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

    Use it in a `with`, inside that of the working folder: entering waits for the others.

    Raises:
        OutputError: one doesn't come, or has ended; which, where, and why as far as it could say.
    """

    def __init__(self, root: Path, process: Process) -> None:
        self.process = process
        self._root = root
        self._checked = time.monotonic()  # when `check` last looked
        self._crew: dict[int, str] = {}  # the start of each worker, by rank; known to process 0
        self._shares: Sequence[Sequence[str]] = ()
        self._lock: int | None = None
        # Part of file names; the host says where to look, the rest tells one start from another.
        host = re.sub(r"[^A-Za-z0-9._-]", "_", platform.node())
        self._start = f"{host}-{uuid.uuid4().hex}"

    def __enter__(self) -> "Team":
        deadline = time.monotonic() + MEETING_SECONDS
        if self.process.rank:
            # The locked file bears this start's name, so that nobody takes an earlier start's for it.
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
            # Where the folder is gone or the disk full, the others learn that this process ended, but not why.
            with suppress(OSError):
                (self._root / f"reason-{self._start}").write_text(str(error), encoding="utf-8")
        self.leave()

    def leave(self) -> None:
        """Let the others know that this process has finished its work."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def deal(self, items: Sequence[T], work: Callable[[T], float], name: Callable[[T], str], run: object) -> list[T]:
        """Deal out the work, as process 0 does; returns its own share.

        Args:
            items: What is to be made.
            work: How much work an item is.
            name: What an item is called.
            run: What the run is; the others compare it with their own.
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
            # Renamed into place, so that nobody reads half of it.
            new.replace(path)
        return shares[0]

    def await_deal(self, run: object) -> list[str]:
        """The names of the items that this process makes, once process 0 has dealt them out."""
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
        """Check that all are still there. It is called often, and looks once in a while."""
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
        """Wait, as process 0, until the others have made all that was dealt to them."""
        while not all(map(self._is_through, self._crew)):
            time.sleep(POLL_SECONDS)

    def await_output(self, record: Path, before: object) -> None:
        """Wait until process 0 has published the record. `before`: its `stamp` at the start."""
        self.leave()
        # Publishing removes the working folder, and the lock with it.
        while self._root.exists() and is_locked(self._root / "lock"):
            time.sleep(POLL_SECONDS)
        list(record.parent.parent.iterdir())  # a network file system then looks again at what is there
        if stamp(record) == before:
            raise OutputError(self._ended("process 0", ""))

    def _wait_for(self, rank: int, deadline: float) -> None:
        """Wait a moment for a process to come. Raises OutputError when it is late."""
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
        """The start of a worker that is running now; None if it isn't. Files of earlier starts may lie there, too."""
        prefix = f"lock-{rank}-"
        for path in self._root.glob(f"{prefix}*"):
            if is_locked(path):
                return path.name.removeprefix(prefix)
        return None

    def _is_through(self, rank: int) -> bool:
        """Whether a worker has made its share and left. Raises OutputError when it left before."""
        start = self._crew[rank]
        # The lock first: once it is free, nothing is added to the journal any more.
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
        """The shares that process 0 has dealt out to this very start of this process; None until then."""
        try:
            deal: dict[str, Any] = json.loads((self._root / "deal.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        # An earlier run's deal may still lie there.
        return deal if deal["starts"].get(str(self.process.rank)) == self._start else None


def stamp(path: Path) -> object:
    """A value that changes when the file is replaced; None if it doesn't exist."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _host(start: str) -> str:
    host, _, _ = start.rpartition("-")
    return host
