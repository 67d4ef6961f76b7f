"""Ours and the peers' merges of the text zoo, each by its own tool in its own environment: cost, accuracy, agreement.

`python -m benchmarks.peer_accuracy`; README.md says what the figures mean. Imports no torch, for the reason that
`measure` gives: whatever needs it runs in a process of its own.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.jobs import RUNNERS, write_recipe
from benchmarks.measure import RunError, measure, warm
from benchmarks.peers import CACHE, FUSION_BENCH, MERGEKIT, OURS, PEFT
from benchmarks.report import table
from benchmarks.speed import OFFLINE, RESULTS, machine, when

SCRATCH = CACHE / "peers"
ADAPTER_RANK = "32"
SCALE = 0.35  # of the sum of task vectors; the runners have the same
ENVIRONMENT = {**OFFLINE, "OMP_NUM_THREADS": "1"}  # several hundred small tensors: more threads mostly wait


@dataclass(frozen=True)
class Inputs:
    """The zoo's folders, and the same tasks as LoRA adapters of one rank, which is what PEFT merges."""

    base: Path
    tasks: tuple[Path, ...]

    @property
    def adapters(self) -> tuple[Path, ...]:
        return tuple(SCRATCH / "adapters" / "adapters-serving" / task.name for task in self.tasks)

    @property
    def for_mergekit(self) -> tuple[Path, ...]:
        """Base and tasks under another architecture's name: mergekit 0.1.5 fails on its own definition of BERT (it adds
        a tuple to a list), and works by the tensors' names where it has none."""
        return tuple(SCRATCH / "for-mergekit" / folder.name for folder in (self.base, *self.tasks))


Command = Callable[[Inputs, Path], list[str]]  # of the inputs and a folder to work in, where `out` becomes the output


@dataclass(frozen=True)
class Contender:
    """One tool on one task.

    Attributes:
        method: What it is to compute; contenders of one method are compared with the first of them, which is ours.
        tool: Whose it is, and how it is set.
        command: Makes its command line.
    """

    method: str
    tool: str
    command: Command


def ours(method: str, inputs: Inputs, folder: Path, *, adapters: bool = False, **parameters: Any) -> list[str]:
    models = inputs.tasks
    if adapters:
        models = tuple(Path(f"{inputs.base}+{adapter}") for adapter in inputs.adapters)
    recipe = write_recipe(inputs.base, models, folder, method, parameters)
    return [OURS.python, "-m", "hf_tsv", "merge", str(recipe), str(folder / "out"), "--quiet"]


def mergekit(method: str, parameters: Mapping[str, Any], inputs: Inputs, folder: Path) -> list[str]:
    base, *tasks = inputs.for_mergekit
    with_base = None if method == "linear" else base  # which mergekit would average with the others
    recipe = write_recipe(with_base, tasks, folder, method, parameters, dtype="float32")
    return [str(Path(MERGEKIT.python).with_name("mergekit-yaml")), str(recipe), str(folder / "out")]


def fusion_bench(method: str, inputs: Inputs, folder: Path) -> list[str]:
    script = str(RUNNERS / "fusion_bench_merge.py")
    return [FUSION_BENCH.python, script, method, str(folder / "out"), str(inputs.base), *map(str, inputs.tasks)]


def peft(combination: str, inputs: Inputs, folder: Path) -> list[str]:
    script = str(RUNNERS / "peft_merge.py")
    return [PEFT.python, script, combination, str(folder / "out"), str(inputs.base), *map(str, inputs.adapters)]


LORA = f"of LoRA adapters of rank {ADAPTER_RANK}"
CONTENDERS = (
    Contender("average", "hf-tsv", partial(ours, "linear")),
    Contender("average", "mergekit", partial(mergekit, "linear", {})),
    Contender("average", "FusionBench", partial(fusion_bench, "linear")),
    Contender(f"task arithmetic, {SCALE}", "hf-tsv", partial(ours, "task_arithmetic", scale=SCALE)),
    Contender(f"task arithmetic, {SCALE}", "mergekit", partial(mergekit, "task_arithmetic", {"lambda": SCALE})),
    Contender(f"task arithmetic, {SCALE}", "FusionBench", partial(fusion_bench, "task_arithmetic")),
    Contender("TIES, 20 %", "hf-tsv", partial(ours, "ties")),
    Contender("TIES, 20 %", "FusionBench", partial(fusion_bench, "ties")),
    Contender("TIES, 20 % of each tensor", "hf-tsv", partial(ours, "ties", trim="tensor")),
    Contender("TIES, 20 % of each tensor", "mergekit", partial(mergekit, "ties", {"density": 0.2})),
    Contender("TSV-M", "hf-tsv", partial(ours, "tsv_m")),
    Contender("TSV-M", "FusionBench", partial(fusion_bench, "tsv_m")),
    Contender("Iso-C", "hf-tsv", partial(ours, "iso_c")),
    Contender("Iso-C", "FusionBench", partial(fusion_bench, "iso_c")),
    Contender(f"sum {LORA}, {SCALE}", "hf-tsv", partial(ours, "task_arithmetic", adapters=True, scale=SCALE)),
    Contender(f"sum {LORA}, {SCALE}", "PEFT, cat", partial(peft, "cat")),
    Contender(f"sum {LORA}, {SCALE}", "PEFT, svd", partial(peft, "svd")),
    Contender(f"sum {LORA}, {SCALE}", "PEFT, linear", partial(peft, "linear")),
    Contender(f"TIES {LORA}", "hf-tsv", partial(ours, "ties", adapters=True)),
    Contender(f"TIES {LORA}", "PEFT, ties", partial(peft, "ties")),
    Contender(f"TSV-M {LORA}", "hf-tsv", partial(ours, "tsv_m", adapters=True)),
)


def main() -> None:
    options = _options()
    zoo = json.loads(_python("benchmarks.peer_scores"))
    inputs = Inputs(Path(zoo["base"]), tuple(map(Path, zoo["tasks"][: options.tasks])))
    make_inputs(inputs)
    environments = (OURS, FUSION_BENCH, MERGEKIT, PEFT)
    told: dict[str, Any] = {
        "when": when(),
        "machine": machine(),
        "tasks": [task.name for task in inputs.tasks],
        "versions": {e.name: e.versions() for e in environments},
        "rows": [],
    }
    try:
        for contender in CONTENDERS:
            told["rows"].append(row := _row(contender, inputs))
            _say(f"{row['method']}, {row['tool']}: {row.get('failed') or format(row['wall'], '.0f') + ' s'}")
    finally:  # what a stopped run has measured is shown, too
        _score(told)
        (RESULTS / "peers.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "peers.md").write_text(markdown(told), encoding="utf-8")


def _row(contender: Contender, inputs: Inputs) -> dict[str, Any]:
    """Who did what, and its cost; or how it failed, which is a result, too."""
    row: dict[str, Any] = {"method": contender.method, "tool": contender.tool}
    folder = _folder(contender)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    warm([inputs.base, *inputs.tasks])
    try:
        return row | asdict(measure(contender.command(inputs, folder), folder / "log", ENVIRONMENT))
    except RunError as error:
        return row | {"failed": str(error).strip().splitlines()[-1]}


def _score(told: dict[str, Any]) -> None:
    """Add accuracies and differences to the rows, and the fine-tunes' own accuracies, all in one process."""
    done = [c for c, row in zip(CONTENDERS, told["rows"], strict=False) if "failed" not in row]
    first = {c.method: c for c in reversed(done)}
    pairs = [str(_folder(other) / "out") for c in done for other in (c, first[c.method])]
    found = json.loads(_python("benchmarks.peer_scores", ",".join(told["tasks"]), *pairs))
    told["own"], scores = found["own"], iter(found["scores"])
    for row in told["rows"]:
        if "failed" not in row:
            row |= next(scores)


def _folder(contender: Contender) -> Path:
    return SCRATCH / "outputs" / str(CONTENDERS.index(contender))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer_accuracy", description=__doc__)
    parser.add_argument("--tasks", type=int, default=12, help="the first so many of the zoo (default: 12)")
    return parser.parse_args()


def make_inputs(inputs: Inputs) -> None:
    """What PEFT and mergekit read in the zoo's place."""
    for folder, view in zip((inputs.base, *inputs.tasks), inputs.for_mergekit, strict=True):
        view.mkdir(parents=True, exist_ok=True)
        config = json.loads((folder / "config.json").read_text("utf-8")) | {"architectures": ["MPNetModel"]}
        (view / "config.json").write_text(json.dumps(config), "utf-8")
        if not (view / "model.safetensors").exists():
            (view / "model.safetensors").symlink_to((folder / "model.safetensors").resolve())
    if not all(adapter.is_dir() for adapter in inputs.adapters):
        _say("Compressing the zoo into adapters ...")
        recipe = write_recipe(inputs.base, inputs.tasks, SCRATCH, "tsv_c", {})
        rank = ["--keep", f"rank={ADAPTER_RANK}", "--profile", "serving"]
        _python("hf_tsv", "compress", recipe, SCRATCH / "adapters", *rank, "--overwrite", "--quiet")


def markdown(told: dict[str, Any]) -> str:
    """The table, in the order in which it was measured, behind what it was measured on."""
    versions = ", ".join(f"{name} {told['versions'][name].get(name, '')}".strip() for name in told["versions"])
    head = (
        "method",
        "tool",
        "accuracy %",
        "relative %",
        "differs by",
        "wall s",
        "CPU s",
        "peak GB",
        "cores others used",
    )
    return (
        f"# Ours and the peers' on the text zoo\n\nMade by `python -m benchmarks.peer_accuracy`, {told['when']}."
        f" Machine: {told['machine']}. Environments: {versions}. Tasks: {', '.join(told['tasks'])}.\n\n"
        + table(head, [_line(row, told["own"]) for row in told["rows"]])
    )


def _line(row: dict[str, Any], own: dict[str, float]) -> Sequence[str]:
    if "failed" in row:
        return (row["method"], row["tool"], f"fails: {row['failed']}", *[""] * 6)
    return (
        row["method"],
        row["tool"],
        f"{100 * fmean(row['accuracy'].values()):.1f}",
        f"{100 * fmean(accuracy / own[task] for task, accuracy in row['accuracy'].items()):.1f}",
        f"{row['differs']:.1e}" if row["differs"] else "",
        f"{row['wall']:.0f}",
        f"{row['cpu']:.0f}",
        f"{row['peak'] / 1e9:.2f}",
        f"{row['others']:.1f}",
    )


def _python(module: str, *arguments: object) -> str:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
