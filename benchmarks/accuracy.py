"""What merges and compressions are worth on the text zoo: `python -m benchmarks.accuracy`. README.md explains it."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

import hf_tsv
from benchmarks.accuracy_report import FINE_TUNED, markdown, plot
from benchmarks.peers import CACHE
from benchmarks.speed import RESULTS, machine, when
from benchmarks.text_scores import Bench, Scores
from benchmarks.text_zoo import prepare_texts
from examples.demo.train import SEED
from examples.demo.zoo import Task, Zoo
from hf_tsv.files.disk import write_text
from hf_tsv.kept.masks import file_of
from hf_tsv.methods import METHODS
from hf_tsv.recipe import Recipe, parse_recipe, to_yaml
from hf_tsv.verbs.restore import load_task

COUNTS = (4, 8)  # and all
TEXTS = 100  # test texts a task
# Fixed before anything was scored: the first four and eight are of several kinds.
ORDER = (
    *("icd", "supersense", "langid", "pos", "newsgroup", "proglang", "wordlang", "nameorigin"),
    *("sentiment", "verbsense", "spam", "fragments"),
)
TUNED = ("tsv_m", "task_arithmetic", "iso_c", "iso_cts", "ties", "consensus_ta")  # whose papers choose a scale
FACTORS = (0.2, 0.35, 0.6, 0.8, 1.0, 1.3)
BUDGETS = (0.025, 0.05, 0.1)  # of the fine-tuned model's bytes, an adapter
READ_BY_PEFT, RESTORED_FROM = "adapter_model*", "*.safetensors"  # of an adapter's folder
MASKED = {"tall_mask": {}, "tall_mask, TIES": {"of": "ties"}, "emr": {}, "magnitude_mask": {}}
FIRST = ("linear", "task_arithmetic", "ties", "tsv_m", "iso_c", "iso_cts")  # measured before the others
NO_MERGE = ("base", "tsv_c", "tall_mask", "emr", "magnitude_mask")
ELSEWHERE = ("slerp", "nuslerp", "core_space")  # of two models; of adapters, for it factors full fine-tunes many times


class Row(NamedTuple):
    """One line of the results.

    Attributes:
        accuracy: By task.
        shared_bytes: Stored once.
        task_bytes: Stored for each task beside it.
        factor: Chosen on validation texts, on the whole merged change; None where nothing was chosen.
        seconds: Merging or compressing, and writing where files are needed.
        alone: Whether the tasks don't share anything: the row holds for any of them.
    """

    accuracy: Scores
    shared_bytes: int
    task_bytes: Mapping[str, int]
    factor: float | None = None
    seconds: float | None = None
    alone: bool = False


class Job(Protocol):
    """Makes the rows of some tasks, by name."""

    def __call__(self, bench: Bench, tasks: Sequence[Task]) -> Iterator[tuple[str, Row]]: ...


def main() -> None:
    options = _options()
    zoo = ordered(prepare_texts(CACHE / "zoo"))
    bench = Bench(zoo, {"test": options.texts, "validation": options.validation})
    results = Results(RESULTS / "accuracy.json", _about(bench))
    counts = sorted({count for count in COUNTS if count < len(zoo.tasks)} | {len(zoo.tasks)})
    try:
        for name, job, alone in _jobs(options.only):
            for count in counts[-1:] if alone else counts:
                if options.only or not results.has(count, name):
                    _measure(results, bench, count, name, job)
    finally:  # what a stopped run has measured is shown, too
        report(results.told)


def _measure(results: "Results", bench: Bench, count: int, name: str, job: Job) -> None:
    started = time.monotonic()
    for row_name, row in list(job(bench, bench.zoo.tasks[:count])):
        results.put(count, row_name, row)
    results.done(count, name)
    print(f"{count} tasks, {name}: {time.monotonic() - started:.0f} s", file=sys.stderr)


def report(told: Mapping[str, Any]) -> None:
    """Write the tables and the plot of what was measured."""
    write_text(RESULTS / "accuracy.md", markdown(told))
    plot(told, RESULTS / "accuracy.png")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--texts", type=int, default=TEXTS, help="test texts a task, 500 at most (default: 100)")
    parser.add_argument("--validation", type=int, default=24, help="validation texts a task, 300 at most (default: 24)")
    parser.add_argument(
        "--only", nargs="+", help="these jobs, anew: a method, the same with ', tuned', TSV-C, masks or originals"
    )
    return parser.parse_args()


def ordered(zoo: Zoo) -> Zoo:
    """The zoo with its tasks in the order in which they are taken."""
    return replace(zoo, tasks=tuple(sorted(zoo.tasks, key=lambda task: ORDER.index(task.name))))


def _about(bench: Bench) -> dict[str, Any]:
    """All that scores depend on, but for our own code: what was measured with others is measured anew."""
    versions = {"hf_tsv": hf_tsv.__version__}
    versions |= {name: version(name) for name in ("torch", "transformers", "peft", "safetensors")}
    tasks: dict[str, Any] = {}
    for task in bench.zoo.tasks:
        facts = json.loads((task.finetuned / "task.json").read_text("utf-8"))
        tasks[task.name] = {"labels": facts["labels"], "settings": facts["settings"]}
    return {
        "versions": versions,
        "seed": SEED,
        "test_texts": bench.texts["test"],
        "validation_texts": bench.texts["validation"],
        "model_bytes": _model_bytes(bench),
        "tasks": tasks,
    }


class Results:
    """The file of results; every row is written as soon as it is known."""

    def __init__(self, file: Path, about: Mapping[str, Any]) -> None:
        self._file = file
        told = json.loads(file.read_text("utf-8")) if file.exists() else {}
        same = all(told.get(key) == value for key, value in about.items())
        self.told: dict[str, Any] = told if same else {**about, "rows": {}, "done": []}

    def has(self, count: int, job: str) -> bool:
        return f"{count} {job}" in self.told["done"]

    def put(self, count: int, name: str, row: NamedTuple) -> None:
        self.told["rows"].setdefault(name, {})[str(count)] = row._asdict()

    def done(self, count: int, job: str) -> None:
        self.told["done"] = sorted({*self.told["done"], f"{count} {job}"})
        self.told |= {"when": when(), "machine": machine()}
        write_text(self._file, json.dumps(self.told, indent=1) + "\n")


def _jobs(only: Sequence[str] | None) -> Iterator[tuple[str, Job, bool]]:
    """Name, job, and whether its rows are the same for any number of tasks: what keeps every task by itself.

    The field's usual methods come first: a run that is stopped has them.
    """
    others = [name for name in METHODS if name not in (*FIRST, *NO_MERGE, *ELSEWHERE)]
    every: list[tuple[str, Job, bool]] = [
        ("originals", originals, True),
        *((name, partial(merged, name), False) for name in FIRST),
        ("TSV-C", compressed, True),
        ("masks", masked, False),
        *((f"{name}, tuned", partial(tuned, name), False) for name in TUNED),
        *((name, partial(merged, name), False) for name in others),
    ]
    yield from (job for job in every if not only or job[0] in only)


def originals(bench: Bench, tasks: Sequence[Task]) -> Iterator[tuple[str, Row]]:
    """The base, and every fine-tuned model on its own task."""
    size = _model_bytes(bench)
    none = dict.fromkeys((task.name for task in tasks), 0)
    yield "base", Row(bench.of_state(bench.base, tasks), size, none, alone=True)
    own = {task.name: bench.of_state(bench.finetuned[task.name], [task])[task.name] for task in tasks}
    yield FINE_TUNED, Row(own, 0, dict.fromkeys(none, size), alone=True)


def merged(name: str, bench: Bench, tasks: Sequence[Task]) -> Iterator[tuple[str, Row]]:
    """One merged model for all tasks, with the method's defaults."""
    state, row = _merged(name, bench, tasks)
    yield name, row._replace(accuracy=bench.of_state(state, tasks))


def tuned(name: str, bench: Bench, tasks: Sequence[Task]) -> Iterator[tuple[str, Row]]:
    """The same with the factor on all that it changes that is best on validation texts."""
    state, row = _merged(name, bench, tasks)
    factor = max(FACTORS, key=lambda factor: _validated(bench, tasks, _scaled(bench, state, factor)))
    accuracy = bench.of_state(_scaled(bench, state, factor), tasks)
    yield f"{name}, tuned", row._replace(accuracy=accuracy, factor=factor)


def _merged(name: str, bench: Bench, tasks: Sequence[Task]) -> tuple[dict[str, torch.Tensor], Row]:
    started = time.monotonic()
    state = hf_tsv.merge_state_dicts(bench.base, {t.name: bench.finetuned[t.name] for t in tasks}, method=name)
    nothing = {task.name: 0 for task in tasks}
    return state, Row({}, _model_bytes(bench), nothing, seconds=round(time.monotonic() - started, 1))


def _scaled(bench: Bench, state: Mapping[str, torch.Tensor], factor: float) -> dict[str, torch.Tensor]:
    return {name: torch.lerp(base, state[name], factor) for name, base in bench.base.items()}


def _validated(bench: Bench, tasks: Sequence[Task], state: Mapping[str, torch.Tensor]) -> float:
    """The sum over tasks of the validation accuracy relative to the fine-tuned model's accuracy."""
    scores = bench.of_state(state, tasks, "validation")
    return sum(scores[task.name] / task.accuracy for task in tasks)


def compressed(bench: Bench, tasks: Sequence[Task]) -> Iterator[tuple[str, Row]]:
    """TSV-C's adapters under budgets, restored and as PEFT loads them."""
    for share in BUDGETS:
        with _folder() as out:
            recipe = _recipe(bench, tasks, "tsv_c")
            started = time.monotonic()
            hf_tsv.compress(recipe, out, f"{int(share * _model_bytes(bench))}B")
            seconds = round(time.monotonic() - started, 1)
            folders = {task.name: out / "adapters" / task.name for task in tasks}
            restored = {task.name: bench.of_model(load_task(out, task.name), task) for task in tasks}
            by_peft = {task.name: bench.of_model(_adapted(bench, folders[task.name]), task) for task in tasks}
            row = Row(restored, _model_bytes(bench), _sizes(folders, RESTORED_FROM), seconds=seconds, alone=True)
            read = _sizes(folders, READ_BY_PEFT)
        yield f"tsv_c {share:.1%}", row
        yield f"tsv_c {share:.1%}, through PEFT", row._replace(accuracy=by_peft, task_bytes=read)


def _adapted(bench: Bench, adapter: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModel

    base = AutoModel.from_pretrained(bench.zoo.base, local_files_only=True)
    return PeftModel.from_pretrained(base, str(adapter)).get_base_model()


def masked(bench: Bench, tasks: Sequence[Task]) -> Iterator[tuple[str, Row]]:
    """One merged model, and for every task a mask on it."""
    for name, parameters in MASKED.items():
        with _folder() as out:
            started = time.monotonic()
            hf_tsv.merge(_recipe(bench, tasks, name.split(",")[0], parameters), out)
            seconds = round(time.monotonic() - started, 1)
            accuracy = {task.name: bench.of_model(load_task(out, task.name), task) for task in tasks}
            sizes = {task.name: (out / file_of(task.name)).stat().st_size for task in tasks}
        yield name, Row(accuracy, _model_bytes(bench), sizes, seconds=seconds)


@contextmanager
def _folder() -> Iterator[Path]:
    """A place for an output that does not exist yet, and is gone afterwards."""
    with tempfile.TemporaryDirectory(dir=CACHE / "zoo") as folder:
        yield Path(folder) / "out"


def _recipe(bench: Bench, tasks: Sequence[Task], method: str, parameters: Mapping[str, object] | None = None) -> Recipe:
    written = {
        "merge_method": method,
        "base_model": str(bench.zoo.base.absolute()),
        "models": [{"model": str(task.finetuned.absolute()), "name": task.name} for task in tasks],
        "parameters": dict(parameters or {}),
    }
    return parse_recipe(to_yaml(written), "benchmarks/accuracy.py")


def _model_bytes(bench: Bench) -> int:
    return sum(tensor.nbytes for tensor in bench.base.values())


def _sizes(folders: Mapping[str, Path], files: str) -> dict[str, int]:
    """Bytes of the files in each folder that a pattern finds."""
    sizes: dict[str, int] = {}
    for name, folder in folders.items():
        sizes[name] = sum(file.stat().st_size for file in folder.glob(files))
    return sizes


if __name__ == "__main__":
    main()
