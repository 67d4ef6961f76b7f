"""Messages, progress and exit codes, which all commands share."""

import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from hf_tsv.errors import DOWNLOADING, HfTsvError, size
from hf_tsv.files.names import RECORD_FILE

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED, TERMINATED = 130, 143  # 128 plus the signal's number, as in shells
SECONDS_BETWEEN_LINES = 15.0
WIDTH_IN_FILES = 160  # columns; without a terminal rich would squeeze tables into 80

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH_IN_FILES)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def told(command: Callable[P, R]) -> Callable[P, R]:
    """Turn our own errors into lines on stderr and an exit code; any other error is a bug and shows its traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        def terminate(number: int, frame: object) -> NoReturn:
            raise Terminated

        signal.signal(signal.SIGTERM, terminate)
        try:
            return command(*args, **kwargs)
        except HfTsvError as error:
            for problem in error.problems:
                err.print(problem, style="red", markup=False)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            interrupted("Interrupted.")
        except BrokenPipeError:  # the reader of our output has closed it
            sys.stdout = None  # otherwise Python would flush it at exit, and fail again
            raise typer.Exit(0) from None

    return run


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a scheduler sends before it kills a job. Treated like Ctrl-C, except for the exit code."""


def interrupted(message: str) -> NoReturn:
    """Exit at once: a worker may be in the middle of a factorisation whose result nobody needs any more.

    Call it where KeyboardInterrupt is handled.
    """
    code = TERMINATED if isinstance(sys.exception(), Terminated) else INTERRUPTED
    err.print(message, markup=False)
    # os._exit flushes nothing.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def kept_when_interrupted(out: Path, *, pushes: bool = False) -> Iterator[None]:
    """When a run that writes OUT is interrupted, report what is kept and how to resume.

    Args:
        out: The output folder.
        pushes: True if the run also pushes OUT.
    """
    try:
        yield
    except KeyboardInterrupt:
        staging = out.parent / f".{out.name}.hf_tsv"
        count = 0
        for journal in staging.glob("journal*.jsonl"):
            lines = journal.read_bytes().count(b"\n")
            count += max(0, lines - 1)  # the first line describes the job
        if count:
            kept = f"Interrupted. {count} complete tensors are kept in {staging}; the same command goes on from there."
        elif pushes and (out / RECORD_FILE).is_file():
            kept = f"Interrupted. {out} is complete; the same command goes on with the push."
        else:
            kept = "Interrupted before a tensor was complete. The same command starts again."
        interrupted(kept)


class WorkProgress:
    """A bar on a terminal, an occasional line elsewhere, nothing when quiet. It counts work, for a realistic time."""

    def __init__(self, label: str, *, quiet: bool) -> None:
        self._label = label
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._total = self._done = 0.0
        self._steps = 0
        self._started = self._spoken = time.monotonic()

    def begin(self, total: float) -> None:
        # Called for each stage, such as the download and the merge; each one is counted from zero.
        self._total, self._done, self._steps = total, 0.0, 0
        self._started = self._spoken = time.monotonic()
        self._stop()
        if not self._quiet and err.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[now]}", style="dim"), console=err, transient=True)
            self._task = self._bar.add_task(self._label, total=total, now="")
            self._bar.start()

    def advance(self, work: float, name: str) -> None:
        self._done += work
        self._steps += work > 0  # a call with no work only shows the current name
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, now=f"{self._rate(name)}  {name}")
        elif not self._quiet and self._done and time.monotonic() - self._spoken > SECONDS_BETWEEN_LINES:
            self._spoken = time.monotonic()
            elapsed = self._spoken - self._started
            left = elapsed * (self._total / self._done - 1)
            share = f"{self._done / self._total:.0%}"
            err.print(f"{self._label}: {share}, {self._rate(name)}, about {left:.0f} s left", markup=False)

    def _rate(self, name: str) -> str:
        """Return the rate in steps per second, or per minute if slow; in bytes per second for downloads."""
        seconds = max(1e-3, time.monotonic() - self._started)  # never 0: it is a divisor
        if name == DOWNLOADING:
            return f"downloads {size(int(self._done / seconds))}/s"
        rate = self._steps / seconds
        return f"{rate:.1f} steps/s" if rate >= 1 else f"{60 * rate:.1f} steps/min"

    def __enter__(self) -> "WorkProgress":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
