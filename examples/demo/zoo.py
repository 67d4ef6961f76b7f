"""The base model and its fine-tunes in a folder; what is missing is made, side by side."""

import json
import multiprocessing
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from queue import Empty
from signal import SIG_IGN, SIGINT, signal
from typing import Any

from examples.demo import data
from examples.demo.head import Head
from examples.demo.train import BASE_MODULE, FACTS, HEAD, TEXTS, make_task, settings, work
from hf_tsv.errors import ResourceError
from hf_tsv.merging.progress import Progress
from hf_tsv.merging.resources import check_disk, usable_cores

SECONDS_BETWEEN_LOOKS = 0.5
MODEL_BYTES = 95_000_000  # with tokenizer, head and texts
MERGED_MODELS = 5  # one a method, and the one that is being written


@dataclass(frozen=True)
class Task:
    """One task: its fine-tuned encoder, with the head, the held-out texts and the facts beside it.

    Attributes:
        name: Its name, in recipes too.
        finetuned: The folder.
        base_accuracy: The base model's accuracy on the test texts.
        accuracy: The fine-tuned model's.
    """

    name: str
    finetuned: Path
    base_accuracy: float
    accuracy: float

    @cached_property
    def head(self) -> Head:
        return Head.load(self.finetuned / HEAD)

    @cached_property
    def test(self) -> list[data.Example]:
        return self._texts["test"]

    @cached_property
    def validation(self) -> list[data.Example]:
        return self._texts["validation"]

    @cached_property
    def _texts(self) -> dict[str, list[data.Example]]:
        splits: dict[str, list[data.Example]] = json.loads((self.finetuned / TEXTS).read_text("utf-8"))
        return splits


@dataclass(frozen=True)
class Zoo:
    """A base model's folder and the tasks it was fine-tuned on."""

    base: Path
    tasks: tuple[Task, ...]


def prepare(folder: Path, progress: Progress) -> Zoo:
    """The demo's models in a folder: `base`, and one folder a task. Makes what isn't there yet.

    A task's folder appears when it is complete, so a run that was stopped goes on with the next one. One that
    other settings or other versions of the texts have made is made anew.

    Raises:
        HfTsvError: a package of the extra `demo` is missing, or disk or memory does not suffice.
    """
    missing = [name for name in data.SOURCES if not is_current(folder / name, settings(name))]
    check_disk(folder, (1 + len(missing) + MERGED_MODELS) * MODEL_BYTES)
    if not (folder / "base").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with appearing(folder / "base") as unfinished:
            shutil.copytree(data.installed(BASE_MODULE) / "model", unfinished, dirs_exist_ok=True)
    if missing:
        progress.begin(sum(map(work, missing)))
        _make(missing, folder, progress)
    return Zoo(folder / "base", tuple(read_task(folder / name) for name in sorted(data.SOURCES)))


def read_task(folder: Path) -> Task:
    """The task that was made in a folder."""
    facts = _facts(folder)
    return Task(folder.name, folder, facts["base_accuracy"], facts["accuracy"])


def is_current(folder: Path, made_with: Mapping[str, Any]) -> bool:
    """Whether a task was made in the folder, with these settings."""
    return _facts(folder).get("settings") == made_with


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / FACTS
    facts: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return facts


def _make(names: Sequence[str], folder: Path, progress: Progress) -> None:
    """Make tasks in as many processes as there are cores: one thread each is what small batches use best."""
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    told: Queue[tuple[str, float]] = context.Queue()
    stop = context.Event()
    cores = min(usable_cores(), len(names))
    with ProcessPoolExecutor(cores, mp_context=context, initializer=_start, initargs=(told, stop)) as pool:
        try:
            _follow([pool.submit(_make_one, name, folder) for name in names], told, progress)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _follow(made: Sequence[Future[None]], told: "Queue[tuple[str, float]]", progress: Progress) -> None:
    """Pass on what the processes tell until all is made; raise the first error at once."""
    while not all(future.done() for future in made):
        try:
            name, tokens = told.get(timeout=SECONDS_BETWEEN_LOOKS)
            progress.advance(tokens, name)
        except Empty:
            pass
        for future in made:
            if future.done():
                _raise_error(future)


def _raise_error(future: Future[None]) -> None:
    try:
        future.result()
    except BrokenProcessPool as error:
        raise ResourceError(
            "demo: a process that fine-tunes was ended from outside, most likely for want of memory:"
            " it takes about 1 GB a core. What is complete is kept; run this again"
        ) from error


class _Process:
    """What each process of the pool keeps."""

    told: "Queue[tuple[str, float]]"
    stop: Event


def _start(told: "Queue[tuple[str, float]]", stop: Event) -> None:
    import torch

    signal(SIGINT, SIG_IGN)  # Ctrl-C reaches the whole group: the first process answers it, through `stop`
    torch.set_num_threads(1)
    _Process.told, _Process.stop = told, stop


def _make_one(name: str, folder: Path) -> None:
    with appearing(folder / name) as unfinished:
        make_task(name, folder / "base", unfinished, partial(_report, name))


def _report(name: str, tokens: float) -> None:
    if _Process.stop.is_set():
        raise InterruptedError(name)
    _Process.told.put((name, tokens))


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to fill that gets its name when the block is left without an error, in place of an older one."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    yield unfinished
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
