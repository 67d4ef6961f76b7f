"""Who merges what, and what it is compared with."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import FUSION_BENCH, MERGEKIT, OURS
from benchmarks.shapes import BERT_BASE, LLAMA_135M, LLAMA_540M, TINY, Shape

RUNNERS = Path(__file__).parent / "runners"
Command = Callable[[Shape, Path], list[str]]  # of a shape and a folder to work in, where `out` becomes the output


@dataclass(frozen=True)
class Contender:
    """One tool on one set of checkpoints.

    Attributes:
        name: What tables call it.
        shape: What it merges.
        command: Makes its command line.
        reference: The float64 method that its output is compared with, as `errors` calls it; None for no comparison.
    """

    name: str
    shape: Shape
    command: Command
    reference: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Two contenders of one job, and what the first is to reach.

    Attributes:
        start: The contender whose times are what a run costs however little it merges. Where there is one, the two
            merge different shapes, and times count beyond that and for each byte read.
        wall: How many times as fast by wall time the first is to be.
        cpu: How many times less processor time it is to take.
        peak: Largest resident set it may have, in bytes.
        same_peak: Whether its peak is to stay within a tenth of the other's.
    """

    ours: str
    against: str
    start: str | None = None
    wall: float | None = None
    cpu: float | None = None
    peak: float | None = None
    same_peak: bool = False


@dataclass(frozen=True)
class Job:
    """Contenders that take turns."""

    title: str
    contenders: tuple[Contender, ...]
    comparisons: tuple[Comparison, ...]


def hf_tsv(method: str, svd: str = "exact", **parameters: Any) -> Command:
    """Our command line."""

    def command(shape: Shape, folder: Path) -> list[str]:
        recipe = _recipe(shape, folder, method, parameters)
        return [OURS.python, "-m", "hf_tsv", "merge", str(recipe), str(folder / "out"), "--svd", svd, "--quiet"]

    return command


def mergekit(method: str, **parameters: Any) -> Command:
    """mergekit's command line; arithmetic in the dtype that weights are stored in is what its examples do."""

    def command(shape: Shape, folder: Path) -> list[str]:
        recipe = _recipe(shape, folder, method, parameters, dtype=shape.dtype)
        tool = Path(MERGEKIT.python).with_name("mergekit-yaml")
        return [str(tool), str(recipe), str(folder / "out"), "--no-copy-tokenizer"]

    return command


def fusion_bench(shape: Shape, folder: Path) -> list[str]:
    """TSV-M from Python, as FusionBench's documentation does it."""
    return _runner(FUSION_BENCH.python, "fusion_bench_merge.py", shape, folder, "tsv_m")


def bare_loop(shape: Shape, folder: Path) -> list[str]:
    """Task arithmetic with safetensors and torch alone."""
    return _runner(OURS.python, "bare_loop.py", shape, folder)


def _runner(python: str, script: str, shape: Shape, folder: Path, *before: str) -> list[str]:
    return [python, str(RUNNERS / script), *before, str(folder / "out"), str(shape.base), *map(str, shape.tasks)]


def _recipe(shape: Shape, folder: Path, method: str, parameters: Mapping[str, Any], **more: str) -> Path:
    return write_recipe(shape.base, shape.tasks, folder, method, parameters, **more)


def write_recipe(
    base: Path | None, tasks: Sequence[Path], folder: Path, method: str, parameters: Mapping[str, Any], **more: str
) -> Path:
    """A recipe that both of us read; YAML takes JSON."""
    models = [{"model": str(task), "parameters": {"weight": 1.0}} for task in tasks]
    recipe = {"merge_method": method, **({"base_model": str(base)} if base else {}), "models": models, **more}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe | ({"parameters": dict(parameters)} if parameters else {}), indent=2) + "\n")
    return path


def _tsv_m(svd: str) -> Contender:
    return Contender(f"hf-tsv, {svd}", BERT_BASE, hf_tsv("tsv_m", svd), "tsv_m")


def _four_times(method: str) -> tuple[Contender, Contender]:
    return (
        Contender(f"{method}, 135M parameters", LLAMA_135M, hf_tsv(method)),
        Contender(f"{method}, 540M parameters", LLAMA_540M, hf_tsv(method)),
    )


JOBS = {
    "tsv_m": Job(
        "TSV-M of 8 fine-tunes of the shape of BERT-base (110M parameters), float32",
        (
            Contender("FusionBench", BERT_BASE, fusion_bench, "tsv_m"),
            _tsv_m("exact"),
            _tsv_m("sketch"),
        ),
        (
            Comparison("hf-tsv, exact", "FusionBench", wall=4, cpu=4, peak=1e9),
            Comparison("hf-tsv, sketch", "FusionBench", wall=15),
        ),
    ),
    "task_arithmetic": Job(
        "Task arithmetic of 4 fine-tunes of the shape of SmolLM-135M, bfloat16",
        (
            Contender("mergekit", LLAMA_135M, mergekit("task_arithmetic"), "task_arithmetic"),
            Contender("bare loop", LLAMA_135M, bare_loop, "task_arithmetic"),
            Contender("hf-tsv", LLAMA_135M, hf_tsv("task_arithmetic"), "task_arithmetic"),
        ),
        (Comparison("hf-tsv", "bare loop", wall=1 / 1.3, peak=0.6e9), Comparison("hf-tsv", "mergekit")),
    ),
    "ties": Job(
        "TIES, density 0.2, of the same 4 fine-tunes",
        (
            Contender("mergekit", LLAMA_135M, mergekit("ties", density=0.2), "ties, per tensor"),
            Contender("bare loop of task arithmetic", LLAMA_135M, bare_loop),
            Contender("hf-tsv", LLAMA_135M, hf_tsv("ties", density=0.2), "ties"),
            Contender(
                "hf-tsv, trim: tensor", LLAMA_135M, hf_tsv("ties", density=0.2, trim="tensor"), "ties, per tensor"
            ),
        ),
        (
            Comparison("hf-tsv", "bare loop of task arithmetic", wall=1 / 2, peak=0.6e9),
            Comparison("hf-tsv, trim: tensor", "bare loop of task arithmetic", wall=1 / 2, peak=0.6e9),
            Comparison("hf-tsv", "mergekit"),
            Comparison("hf-tsv, trim: tensor", "mergekit"),
        ),
    ),
    "four_times": Job(
        "hf-tsv against itself: 4 fine-tunes in bfloat16, and a shape four times larger (144 layers, not 30)",
        (
            Contender("a tiny merge", TINY, hf_tsv("task_arithmetic")),
            *_four_times("task_arithmetic"),
            *_four_times("tsv_m"),
        ),
        tuple(
            Comparison(
                f"{method}, 540M parameters",
                f"{method}, 135M parameters",
                start="a tiny merge",
                wall=0.9,
                same_peak=True,
            )
            for method in ("task_arithmetic", "tsv_m")
        ),
    ),
}

ONE_MATRIX = Job(
    "TSV-M of one matrix of 8 fine-tunes, one thread",
    (),
    (
        Comparison("hf-tsv, exact", "torch SVD in float32", cpu=5),
        Comparison("hf-tsv, sketch", "torch SVD in float32"),
    ),
)
