"""The accuracies as tables and as a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.report import table

BASE, FINE_TUNED = "base", "fine-tuned"
PLOTTED = (  # in the plot's legend order
    *("base", "linear", "task_arithmetic, tuned", "ties", "tsv_m", "tsv_m, tuned", "iso_c", "iso_c, tuned"),
    *("iso_cts", "iso_cts, tuned", "tsv_c 5.0%", "tall_mask", "emr"),
)
Told = Mapping[str, Any]


def markdown(told: Told) -> str:
    """All tables, behind what they were measured on."""
    versions = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
    return "\n".join(
        [
            f"# Accuracy\n\nMade by `python -m benchmarks.accuracy`, {told['when']}. Machine: {told['machine']}."
            f" Versions: {versions}. Seed {told['seed']}; the first {told['test_texts']} test texts and"
            f" {told['validation_texts']} validation texts of every task.\n",
            "## The tasks\n",
            table(("task", "labels", "texts", "base", "fine-tuned"), _tasks(told)),
            "## All methods\n",
            "Mean accuracy in %; in brackets: mean of the accuracies relative to the fine-tuned models', in %.\n",
            table(("", *(f"{n} tasks" for n in counts(told)), "MB in all", "s", "factor"), _means(told)),
            *(line for count in counts(told) for line in (f"## {count} tasks, one by one\n", _each(told, count))),
        ]
    )


def plot(told: Told, path: Path) -> None:
    """Mean relative accuracy against the number of tasks, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    markers = "osD^v<>PX*hdp"
    for i, name in enumerate(name for name in PLOTTED if name in told["rows"]):
        points = [(n, 100 * relative(told, name, n)) for n in counts(told) if accuracies(told, name, n)]
        axes.plot(*zip(*points, strict=True), marker=markers[i], color=f"C{i % 10}", label=name)
    axes.set(xlabel="tasks merged", ylabel="mean accuracy, % of the fine-tuned models'", xticks=counts(told))
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def counts(told: Told) -> list[int]:
    """The numbers of tasks that were merged."""
    return sorted({int(count) for rows in told["rows"].values() for count in rows})


def accuracies(told: Told, name: str, count: int) -> dict[str, float]:
    """A row's accuracy by task; empty where it wasn't measured. What keeps tasks apart serves any number of them."""
    row = _row(told, name, count)
    return {task: row["accuracy"][task] for task in _first(told, count)} if row else {}


def relative(told: Told, name: str, count: int) -> float:
    """The mean over tasks of the accuracy relative to the fine-tuned model's."""
    own = accuracies(told, FINE_TUNED, count)
    return fmean(accuracy / own[task] for task, accuracy in accuracies(told, name, count).items())


def stored_bytes(told: Told, name: str, count: int) -> int:
    """What serves all of so many tasks, heads aside."""
    row = _row(told, name, count)
    assert row is not None, f"{name} was measured for {count} tasks"
    return int(row["shared_bytes"] + sum(row["task_bytes"][task] for task in _first(told, count)))


def _row(told: Told, name: str, count: int) -> dict[str, Any] | None:
    rows = told["rows"].get(name, {})
    alone = next((row for row in rows.values() if row["alone"]), None)
    return alone or rows.get(str(count))


def _first(told: Told, count: int) -> list[str]:
    return list(told["tasks"])[:count]


def _tasks(told: Told) -> list[Sequence[str]]:
    most = len(told["tasks"])
    base, own = (accuracies(told, name, most) for name in (BASE, FINE_TUNED))
    return [
        (name, str(task["labels"]), task["settings"]["texts"], f"{100 * base[name]:.1f}", f"{100 * own[name]:.1f}")
        for name, task in told["tasks"].items()
    ]


def _means(told: Told) -> list[Sequence[str]]:
    """One line a row, the best at most tasks first."""
    most = counts(told)[-1]

    def worth(name: str) -> float:
        return relative(told, name, most) if accuracies(told, name, most) else 0.0

    return [_mean(told, name) for name in sorted(told["rows"], key=worth, reverse=True)]


def _mean(told: Told, name: str) -> Sequence[str]:
    known = [count for count in counts(told) if accuracies(told, name, count)]
    row = _row(told, name, known[-1])
    assert row is not None
    cells: list[str] = []
    for n in counts(told):
        cell = ""
        if n in known:
            mean = fmean(accuracies(told, name, n).values())
            cell = f"{100 * mean:.1f} ({100 * relative(told, name, n):.1f})"
        cells.append(cell)
    factors = [(_row(told, name, n) or {}).get("factor") for n in known]
    seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
    factor = ", ".join(f"{factor:g}" for factor in factors if factor is not None)
    return (name, *cells, f"{stored_bytes(told, name, known[-1]) / 1e6:.0f}", seconds, factor)


def _each(told: Told, count: int) -> str:
    names = [name for name in told["rows"] if accuracies(told, name, count)]
    rows: list[tuple[str, ...]] = []
    for name in names:
        cells = [f"{100 * accuracy:.0f}" for accuracy in accuracies(told, name, count).values()]
        rows.append((name, *cells))
    return table(("", *_first(told, count)), rows)
