"""Measure every job of `jobs`, side by side: `python -m benchmarks.speed`. README.md says what the figures mean.

Imports no torch, for the reason that `measure` gives: whatever needs it runs in a process of its own.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.jobs import JOBS, ONE_MATRIX, Contender, Job
from benchmarks.measure import Cost, measure, warm
from benchmarks.peers import CACHE, FUSION_BENCH, MERGEKIT, OURS
from benchmarks.report import markdown
from benchmarks.shapes import QUICK

RESULTS = Path(__file__).parent / "results"
SCRATCH = CACHE / f"scratch-{os.getpid()}"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
Result = dict[str, Any]


def main() -> None:
    options = _options()
    results = CACHE / "quick" if options.quick else RESULTS
    results.mkdir(parents=True, exist_ok=True)
    file = results / "speed.json"
    told = json.loads(file.read_text("utf-8")) if options.only and file.exists() else {"jobs": {}}
    told |= {"machine": machine(), "versions": {e.name: e.versions() for e in (OURS, FUSION_BENCH, MERGEKIT)}}
    try:
        for name in options.only or (*JOBS, "one_matrix"):
            _say(f"{name}:")
            told["jobs"][name] = {"when": when(), **_measured(name, options)}
            file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
            (results / "speed.md").write_text(markdown(told), encoding="utf-8")
    finally:
        shutil.rmtree(SCRATCH, ignore_errors=True)
    print(markdown(told))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="runs of each contender (default: 3)")
    parser.add_argument("--only", nargs="+", choices=(*JOBS, "one_matrix"), help="these jobs; other results stay")
    parser.add_argument("--quick", action="store_true", help="small shapes, to try the benchmark itself")
    return parser.parse_args()


def _measured(name: str, options: argparse.Namespace) -> Result:
    if name == "one_matrix":
        return _one_matrix((192, 768) if options.quick else (768, 3072), options.runs)
    return _job(_quickened(JOBS[name]) if options.quick else JOBS[name], options.runs)


def _job(job: Job, runs: int) -> Result:
    """Let the contenders take turns, so that whatever else the machine does meets all of them."""
    _python("benchmarks.checkpoints", *dict.fromkeys(contender.shape.name for contender in job.contenders))
    costs: dict[str, list[Cost]] = {contender.name: [] for contender in job.contenders}
    for run in range(runs):
        for contender in job.contenders:
            cost = _run(contender)
            costs[contender.name].append(cost)
            _say(f"  {run + 1}/{runs} {contender.name}: {cost.wall:.1f} s, {cost.peak / 1e9:.2f} GB")
    errors = _errors(job.contenders)
    results = {c.name: _result(c, costs[c.name], errors.get(c.name)) for c in job.contenders}
    return {"title": job.title, "contenders": results, "comparisons": [asdict(c) for c in job.comparisons]}


def _run(contender: Contender) -> Cost:
    folder = _folder(contender)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    warm([contender.shape.base, *contender.shape.tasks])
    return measure(contender.command(contender.shape, folder), folder / "log", OFFLINE)


def _errors(contenders: Sequence[Contender]) -> dict[str, Result]:
    """By contender, the errors of its last output; one float64 reference serves all that are compared with it."""
    groups: dict[tuple[str, str], list[Contender]] = {}
    for contender in contenders:
        if contender.reference:
            groups.setdefault((contender.shape.name, contender.reference), []).append(contender)
    found: dict[str, Result] = {}
    for (shape, reference), group in groups.items():
        _say(f"  errors against float64 {reference} ...")
        outs = [str(_folder(contender) / "out") for contender in group]
        found |= zip(
            (c.name for c in group), json.loads(_python("benchmarks.errors", shape, reference, *outs)), strict=True
        )
    return found


def _result(contender: Contender, costs: Sequence[Cost], error: Result | None) -> Result:
    columns: Result = {"wall": [], "cpu": [], "peak": [], "others": []}
    for cost in costs:
        measured = asdict(cost)
        for key, column in columns.items():
            column.append(measured[key])
    return {**columns, "bytes_read": contender.shape.nbytes * (contender.shape.num_tasks + 1), "error": error}


def _one_matrix(size: tuple[int, int], runs: int) -> Result:
    told = json.loads(_python("benchmarks.one_matrix", *map(str, (*size, 8, 2 * runs + 1))))
    results = {
        name: {"wall": [], "cpu": entry["seconds"], "peak": [], "others": [], "error": {"error": entry["error"]}}
        for name, entry in told.items()
    }
    return {
        "title": f"{ONE_MATRIX.title}: {size[0]} x {size[1]}",
        "contenders": results,
        "comparisons": [asdict(c) for c in ONE_MATRIX.comparisons],
    }


def _quickened(job: Job) -> Job:
    return replace(job, contenders=tuple(replace(c, shape=QUICK[c.shape]) for c in job.contenders))


def _folder(contender: Contender) -> Path:
    return SCRATCH / contender.name.replace(" ", "_").replace(",", "").replace(":", "")


def _python(module: str, *arguments: str) -> str:
    """What a module of ours prints, run in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def when() -> str:
    """The date, and what state of the code it is."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC" + (f", commit {commit}" if commit else "")


def machine() -> str:
    """Processor, cores, memory and system, in one line."""
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cpu.split(':')[1].strip()}, {cores} cores, {memory / 1e9:.0f} GB, {platform.system()} {platform.release()}"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
