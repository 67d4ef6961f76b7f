"""The summary as tables for a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from hf_tsv.errors import size

WHOLE = 8  # tasks up to which every pair is shown
LISTED = 10  # pairs that are shown of more


def print_tables(summary: Mapping[str, Any], console: Console) -> None:
    """By task, pair, module type and layer, and the advice."""
    console.print(_titled("Tasks", _tasks(summary)))
    if len(summary["tasks"]) > 1:
        console.print(_titled("Pairs of tasks", _pairs(summary)))
    if "interference" in summary["total"]:
        console.print(_titled("Interference by module type", _groups(summary)))
        console.print(_titled("Interference by layer", _layers(summary)))
    if len(summary["tasks"]) > 1:
        console.print(_titled("Changed weights by how many tasks use them", _weights(summary)))
    console.print(_titled("Advice", *(f"- {escape(sentence)}" for sentence in summary["advice"])))


def _titled(title: str, *what: RenderableType) -> Group:
    return Group(f"\n[bold]{title}[/]", *what)


def _table(*columns: str, left: int = 1) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", overflow="fold")
    return table


def _tasks(summary: Mapping[str, Any]) -> Table:
    table = _table("task", "norm", "changed", "energy at k", "rank", "for 90%", "for 99%", "bytes for 99%")
    for task in summary["per_task"]:
        shares = (task[key] for key in ("changed", "energy", "rank", "rank_for_90", "rank_for_99"))
        cells = (f"{task['norm']:.3g}", *(f"{share:.0%}" for share in shares), size(task["bytes_for_99"]))
        table.add_row(escape(task["task"]), *cells)
    return table


def _pairs(summary: Mapping[str, Any]) -> Table:
    total, tasks = summary["total"], summary["tasks"]
    clashes = total.get("clashes")
    pairs = [(i, j) for i in range(len(tasks)) for j in range(i + 1, len(tasks))]
    pairs.sort(key=lambda pair: -(clashes or total["cosines"])[pair[0]][pair[1]])
    table = _table("", "", "clash, x chance", "cosine", "opposite signs", left=2)
    for i, j in pairs if len(tasks) <= WHOLE else pairs[:LISTED]:
        clash = f"{clashes[i][j]:.2f}" if clashes else ""
        table.add_row(*map(escape, (tasks[i], tasks[j], clash)), *_cosine_and_signs(total, i, j))
    return table


def _cosine_and_signs(facts: Mapping[str, Any], i: int, j: int) -> Iterator[str]:
    yield f"{facts['cosines'][i][j]:.3f}"
    yield f"{facts['opposed'][i][j]:.1%}"


def _groups(summary: Mapping[str, Any]) -> Table:
    table = _table("module type", "of", "shape", "k", "energy at k", "STI", "x chance", "after", "clash most")
    table.columns[-1].justify = "left"
    for group in summary["groups"]:
        if "interference" in group:
            shape = "x".join(map(str, group["shape"]))
            energy = f"{100 * min(group['energy']):.0f}-{max(group['energy']):.0%}"
            cells = (str(group["tensors"]), shape, str(group["rank"]), energy, *_interference(group["interference"]))
            table.add_row(escape(group["label"]), *cells, escape(_worst(summary["tasks"], group["clashes"])))
    return table


def _weights(summary: Mapping[str, Any]) -> Table:
    table = _table("module type", "shared", "selfish", "catastrophic")
    for label, facts in [*((group["label"], group) for group in summary["groups"]), ("all", summary["total"])]:
        shares = (facts["weights"][whose] for whose in ("shared", "selfish", "catastrophic"))
        table.add_row(escape(label), *(f"{share:.1%}" for share in shares))
    return table


def _layers(summary: Mapping[str, Any]) -> Table:
    table = _table("layer", "STI", "x chance", "after", "clash most", "")
    table.columns[4].justify = table.columns[5].justify = "left"
    layers = [layer for layer in summary["layers"] if "interference" in layer]
    largest = max(layer["interference"]["before"] for layer in layers) or 1.0
    for layer in layers:
        bar = "█" * round(24 * layer["interference"]["before"] / largest)
        worst = _worst(summary["tasks"], layer["clashes"])
        table.add_row(escape(layer_name(layer)), *_interference(layer["interference"]), escape(worst), bar)
    return table


def layer_name(layer: Mapping[str, Any]) -> str:
    """What a layer is called: its number, and where there are several stacks of layers its stack."""
    return "outside" if layer["layer"] is None else f"{layer['stack']} {layer['layer']}".lstrip()


def _interference(found: Mapping[str, float]) -> Iterator[str]:
    yield f"{found['before']:.4g}"
    yield f"{found['times_chance']:.2f}"
    yield f"{found['left']:.2g}"


def _worst(tasks: Sequence[str], clashes: Sequence[Sequence[float]]) -> str:
    pairs = [(clashes[i][j], i, j) for i in range(len(tasks)) for j in range(i + 1, len(tasks))]
    value, i, j = max(pairs, default=(0.0, 0, 0))
    return f"{tasks[i]}, {tasks[j]} ({value:.1f})" if value else ""
