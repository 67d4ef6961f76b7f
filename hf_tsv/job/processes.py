"""The processes of one run, on one machine or several, that meet in a folder which they share.

All that they tell each other are files in the run's working folder, and all that one knows of another's health is
whether the lock on its file is held: the operating system lets go of it when a process ends, however that comes. So
no clock, no port and no collective of torch.distributed is needed, and a launcher need only set RANK and WORLD_SIZE.

    lock, lock-1, ...      held by each process; says which start of it this is
    deal.json              by process 0: who makes which tensors
    journal-1.jsonl, ...   what each other process has made
    said-START             why one of them gave up
"""

import fcntl
import heapq
import json
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hf_tsv.errors import OutputError
from hf_tsv.files.disk import full_disk_told

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
        said = {name: os.environ.get(name, "") for name in VARIABLES}
        if not said["WORLD_SIZE"]:
            return cls()
        try:
            rank, count = int(said["RANK"]), int(said["WORLD_SIZE"])
            process = cls(rank, count, int(said["LOCAL_WORLD_SIZE"] or 1))
        except ValueError:
            process = cls(-1)
        if not 0 <= process.rank < process.count or process.local_count < 1:
            told = ", ".join(f"{name}={value!r}" for name, value in said.items() if value)
            raise OutputError(
                f"environment: no process of a launcher is described by {told}, expected 0 <= RANK < WORLD_SIZE."
                " Unset them to run alone"
            )
        return process


def check_alone(out: Path) -> None:
    """Refuse several processes where one does all.

    Raises:
        OutputError: a launcher has started more than one.
    """
    if (count := Process.launched().count) > 1:
        raise OutputError(
            f"{out}: this is made by one process, expected one but got WORLD_SIZE={count}. Run it without a launcher"
        )


def dealt_out(items: Iterable[T], work: Callable[[T], float], count: int) -> list[list[T]]:
    """Items in `count` shares of about the same work.

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
        self._checked = time.monotonic()
        self._crew: dict[int, dict[str, str]] = {}  # by rank, what each worker's lock says; known to process 0
        self._shares: Sequence[Sequence[str]] = ()
        self._lock: int | None = None
        self._me = {"start": uuid.uuid4().hex, "host": platform.node()}

    def __enter__(self) -> "Team":
        if self.process.rank:
            self._sign_in()
            self._meet(range(1))
        else:
            self._meet(range(1, self.process.count))
            self._crew = {rank: _signed(self._lock_of(rank)) for rank in range(1, self.process.count)}
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.process.rank and error is not None:
            with suppress(OSError):
                (self._root / f"said-{self._me['start']}").write_text(str(error), encoding="utf-8")
        self.leave()

    def leave(self) -> None:
        """Say that this process is through with its work."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def deal(self, items: Sequence[T], work: Callable[[T], float], name: Callable[[T], str], run: object) -> list[T]:
        """Process 0 deals out the work; its own share. `run`: what the others compare with what they were asked for."""
        shares = dealt_out(items, work, self.process.count)
        self._shares = [[name(item) for item in share] for share in shares]
        if self.process.count > 1:
            starts = {rank: entry.get("start") for rank, entry in self._crew.items()}
            _write_whole(self._root / "deal.json", {"starts": starts, "run": run, "shares": self._shares})
        return shares[0]

    def await_deal(self, run: object) -> list[str]:
        """What is for this process to make, once process 0 has said so."""
        while (deal := self._deal()) is None:
            self._check_leader()
            time.sleep(POLL_SECONDS)
        if deal["run"] != run:
            raise OutputError(
                f"{self._root}: process {self.process.rank} on {self._me['host']} sees another recipe, other models"
                " or another version than process 0. All processes need the same files and environment"
            )
        return list(deal["shares"][self.process.rank])

    def check(self) -> None:
        """Whether all are still there; asked often, looks once in a while."""
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
        """Process 0 waits until the others have made all that was dealt to them."""
        while not all(map(self._is_through, self._crew)):
            time.sleep(POLL_SECONDS)

    def await_output(self, record: Path, before: object) -> None:
        """Wait until process 0 has published the record; `before` is what `stamp` said of it at the start."""
        self.leave()
        while self._root.exists() and _is_held(self._lock_of(0)):
            time.sleep(POLL_SECONDS)
        list(record.parent.parent.iterdir())  # a network file system then looks again at what is there
        if stamp(record) == before:
            raise OutputError(self._ended("process 0", ""))

    def _sign_in(self) -> None:
        """A file is locked and says who holds it before it gets its name, so that nobody reads another start's."""
        path = self._lock_of(self.process.rank)
        with full_disk_told(self._root):
            if _is_held(path):
                raise OutputError(f"{self._root}: another run is writing there. Wait for it, or choose another folder")
            new = self._root / f".{self._me['start']}"
            self._lock = os.open(new, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            os.write(self._lock, json.dumps(self._me).encode())
            new.rename(path)

    def _meet(self, ranks: Iterable[int]) -> None:
        deadline = time.monotonic() + MEETING_SECONDS
        for rank in ranks:
            while not _is_held(self._lock_of(rank)):
                if time.monotonic() > deadline:
                    raise OutputError(
                        f"{self._root}: process {rank} of {self.process.count} has not come there within"
                        f" {MEETING_SECONDS:.0f} s. All need the same output folder, on a file system that they share"
                    )
                time.sleep(POLL_SECONDS)

    def _check_leader(self) -> None:
        if not _is_held(self._lock_of(0)):
            raise OutputError(self._ended("process 0", ""))

    def _is_through(self, rank: int) -> bool:
        """Whether a worker has made its share and left; raises when it left before."""
        path, entry = self._lock_of(rank), self._crew[rank]
        if _is_held(path) and _signed(path) == entry:
            return False
        made = names_in(self._root / f"journal-{rank}.jsonl")
        if self._shares and made.issuperset(self._shares[rank]):
            return True
        said = self._root / f"said-{entry.get('start')}"
        raise OutputError(
            self._ended(f"process {rank} on {entry.get('host')}", said.read_text("utf-8") if said.exists() else "")
        )

    def _ended(self, who: str, why: str) -> str:
        return (
            f"{who} has ended before its work was done{': ' if why else ''}{why.rstrip('.')}. What is complete is kept"
            f" in {self._root}; the same command goes on from there"
        )

    def _deal(self) -> dict[str, Any] | None:
        """What process 0 has dealt out to this very start of this process."""
        try:
            deal: dict[str, Any] = json.loads((self._root / "deal.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return deal if deal["starts"].get(str(self.process.rank)) == self._me["start"] else None

    def _lock_of(self, rank: int) -> Path:
        return self._root / (f"lock-{rank}" if rank else "lock")


def stamp(path: Path) -> object:
    """What is another for another file; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def names_in(journal: Path) -> set[str]:
    """The tensors that a journal says are complete."""
    lines = journal.read_bytes().split(b"\n")[1:-1] if journal.exists() else []
    return {json.loads(line)["name"] for line in lines}


def _is_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _signed(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError):
        return {}


def _write_whole(path: Path, data: Mapping[str, object]) -> None:
    """Whoever reads it reads all of it or what was there before."""
    new = path.with_suffix(".new")
    with full_disk_told(path), new.open("w", encoding="utf-8") as file:
        json.dump(data, file)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
