"""Merge the demo's fine-tunes by four methods and compare what each merged model can still do."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from ruamel.yaml.comments import CommentedMap

import hf_tsv
from examples.demo import data
from examples.demo.encoder import Encoder
from examples.demo.train import HEAD, TEXTS, evaluate_texts
from examples.demo.zoo import Zoo, prepare
from hf_tsv.files.bundled import bundled
from hf_tsv.files.disk import write_text
from hf_tsv.merging.progress import Progress, Silent
from hf_tsv.recipe import Recipe, edited, load_recipe, put_key

FINE_TUNED = "fine-tuned"
METHODS = ("linear", "task_arithmetic", "ties", "tsv_m")
IN_RECIPES = Path(".demo")  # where the recipes look for the models

Watch = Callable[[str], AbstractContextManager[Progress]]  # shows the progress of a part of the work, by its label


def _unwatched(label: str) -> AbstractContextManager[Progress]:
    return nullcontext(Silent())


def run(folder: Path, console: Console, watch: Watch = _unwatched) -> dict[str, Any]:
    """Make the models, merge them by four methods, and print one table of what each can do.

    Args:
        folder: Where everything is made and kept. What an earlier run has made is used again.
        console: Where the table goes.
        watch: Shows progress.

    Returns:
        What the table says: per task and on average, accuracies by model and their share of the fine-tuned one's.

    Raises:
        HfTsvError: a package of the extra `demo` is missing, or there is no room.
    """
    with watch("Fine-tuning") as progress:
        zoo = prepare(folder, progress)
    merged = {method: _merge(method, folder, watch) for method in METHODS}
    with watch("Evaluating") as progress:
        progress.begin(len(merged) * len(zoo.tasks))
        scores = {method: _known_or_evaluated(out, zoo, progress) for method, out in merged.items()}
    result = summary(zoo, scores)
    console.print(table(result))
    return result


def evaluate(
    model: Path, zoo: Zoo, *, split: Literal["test", "validation"] = "test", progress: Progress | None = None
) -> dict[str, float]:
    """Accuracy of one encoder on every task, under that task's head.

    Args:
        model: A Hugging Face folder with the base's architecture.
        zoo: The tasks, and the base, whose tokenizer is used.
        split: Which held-out texts.
        progress: Advanced by 1 a task.
    """
    encoder = Encoder(model, zoo.base)
    found = {}
    for task in zoo.tasks:
        found[task.name] = evaluate_texts(encoder, task.head, task.test if split == "test" else task.validation)
        (progress or Silent()).advance(1, f"{model.name} on {task.name}")
    return found


def summary(zoo: Zoo, merged: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Accuracies and their share of the fine-tuned model's own, by task, then by model; and their means.

    Args:
        zoo: The base's and the fine-tuned models' accuracies.
        merged: The merged models', by method, then by task.
    """
    accuracy: dict[str, dict[str, float]] = {}
    relative: dict[str, dict[str, float]] = {}
    for task in zoo.tasks:
        row = {"base": task.base_accuracy, FINE_TUNED: task.accuracy}
        row |= {method: scores[task.name] for method, scores in merged.items()}
        accuracy[task.name] = row
        relative[task.name] = {model: score / task.accuracy for model, score in row.items()}
    return {
        "accuracy": accuracy,
        "relative": relative,
        "mean": {"accuracy": _mean(accuracy), "relative": _mean(relative)},
    }


def table(result: Mapping[str, Any]) -> Table:
    """A summary for people. The best merged model of each row is bold."""
    columns = list(result["mean"]["accuracy"])
    shown = Table(
        box=SIMPLE,
        padding=0,  # to fit into 80 columns
        pad_edge=False,
        title="Accuracy in %; in brackets: in % of the fine-tuned model's",
        caption=f"{data.TEST} test texts a task; merged: one encoder, each task under its own head",
    )
    shown.add_column("task")
    for column in columns:
        shown.add_column(column, justify="right", no_wrap=True)
    for task, row in result["accuracy"].items():
        shown.add_row(task, *_cells(row, result["relative"][task]))
    shown.add_section()
    shown.add_row("mean", *_cells(result["mean"]["accuracy"], result["mean"]["relative"]))
    return shown


def recipe_for(method: str, folder: Path) -> Recipe:
    """The demo's recipe of a method, `recipes/demo-METHOD.yaml`, with the models looked for in `folder`."""
    recipe = load_recipe(bundled("recipes") / f"demo-{method.replace('_', '-')}.yaml")

    def change(document: CommentedMap) -> None:
        for part, key in ((document, "base_model"), *((model, "model") for model in document["models"])):
            put_key(part, key, _moved(part[key], folder))

    return edited(recipe, change)


def _moved(model: str, folder: Path) -> str:
    return str(folder / Path(model).relative_to(IN_RECIPES))


def _merge(method: str, folder: Path, watch: Watch) -> Path:
    """Merge anew each time, by the package at hand; the same bytes come out, so their scores are known."""
    out = folder / "merged" / method
    with watch(f"Merging by {method}") as progress:
        hf_tsv.merge(recipe_for(method, folder), out, progress=progress, options=hf_tsv.Options(overwrite=True))
    return out


def _known_or_evaluated(model: Path, zoo: Zoo, progress: Progress) -> dict[str, float]:
    """The model's scores, kept under a hash of all they depend on: its weights and the tasks."""
    path = zoo.base.parent / "scores" / f"{_identity(model, zoo)}.json"
    if path.is_file():
        scores: dict[str, float] = json.loads(path.read_text("utf-8"))
        progress.advance(len(zoo.tasks), model.name)
        return scores
    scores = evaluate(model, zoo, progress=progress)
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(scores, indent=1) + "\n")
    return scores


def _identity(model: Path, zoo: Zoo) -> str:
    with (model / "model.safetensors").open("rb") as file:
        found = hashlib.file_digest(file, "sha256")
    for task in zoo.tasks:
        for name in (HEAD, TEXTS):
            found.update((task.finetuned / name).read_bytes())
    return found.hexdigest()


def _mean(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    means: dict[str, float] = {}
    for column in next(iter(rows.values())):
        values = [row[column] for row in rows.values()]
        means[column] = fmean(values)
    return means


def _cells(accuracy: Mapping[str, float], relative: Mapping[str, float]) -> list[str]:
    best = max(accuracy[method] for method in METHODS)
    cells: list[str] = []
    for model, score in accuracy.items():
        cell = f"{100 * score:.1f}"
        if model != FINE_TUNED:
            cell += f" ({100 * relative[model]:.0f})"
        is_best = model in METHODS and score == best
        cells.append(f"[bold]{cell}[/]" if is_best else cell)
    return cells
