"""The summary as tables for a terminal."""

from collections.abc import Iterator, Sequence
from itertools import combinations

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from hf_tsv.errors import size
from hf_tsv.inspection.summary import InterferenceFacts, Layer, Summary

MAX_TASKS_ALL_PAIRS = 8  # tasks up to which every pair is shown
MAX_PAIRS_SHOWN = 10  # pairs that are shown of more


def print_tables(summary: Summary, console: Console) -> None:
    """Print a summary by task, pair, module type and layer, and the advice."""
    table = _table("task", "norm", "changed", "energy at k", "rank", "rank for 90%", "rank for 99%", "bytes for 99%")
    for task in summary.per_task:
        shares = [task.changed, task.energy, task.rank, task.rank_for_90, task.rank_for_99]
        cells = [f"{share:.0%}" for share in shares]
        table.add_row(escape(task.task), f"{task.norm:.3g}", *cells, size(task.bytes_for_99))
    console.print(_titled("Tasks", table))

    if len(summary.tasks) > 1:
        console.print(_titled("Pairs of tasks", _pairs(summary)))

    if summary.total.interference:
        table = _table(
            "module type", "tensors", "shape", "k", "energy at k", "STI", "x chance", "after TSV-M", "clash most"
        )
        table.columns[-1].justify = "left"
        for group in summary.groups:
            if group.interference is None or group.energy is None:  # no matrices
                continue
            shape = "x".join(map(str, group.shape))
            energy = f"{100 * min(group.energy):.0f}-{max(group.energy):.0%}"
            worst = _worst(summary.tasks, group.clashes)
            cells = [str(group.tensors), shape, str(group.rank), energy, *_interference(group.interference)]
            table.add_row(escape(group.label), *cells, escape(worst))
        console.print(_titled("Interference by module type", table))

        table = _table("layer", "STI", "x chance", "after TSV-M", "clash most", "")
        table.columns[4].justify = table.columns[5].justify = "left"
        layers = [(layer, layer.interference) for layer in summary.layers if layer.interference]
        largest = max(interference.before for _, interference in layers) or 1.0  # 0 if no task disturbs another
        for layer, interference in layers:
            bar = "█" * round(24 * interference.before / largest)  # 24 characters at most
            worst = _worst(summary.tasks, layer.clashes)
            table.add_row(escape(layer_name(layer)), *_interference(interference), escape(worst), bar)
        console.print(_titled("Interference by layer", table))

    if len(summary.tasks) > 1:
        table = _table("module type", "shared", "selfish", "catastrophic")
        rows = [(group.label, group.weights) for group in summary.groups]
        rows.append(("all", summary.total.weights))
        for label, weights in rows:
            shares = [weights.shared, weights.selfish, weights.catastrophic]
            table.add_row(escape(label), *[f"{share:.1%}" for share in shares])
        console.print(_titled("Changed weights by how many tasks use them", table))

    # The advice contains tasks' names, which may look like markup.
    sentences = [f"- {escape(sentence)}" for sentence in summary.advice]
    console.print(_titled("Advice", *sentences))


def _titled(title: str, *what: RenderableType) -> Group:
    return Group(f"\n[bold]{title}[/]", *what)


def _table(*columns: str, left: int = 1) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", overflow="fold")
    return table


def _pairs(summary: Summary) -> Table:
    total, tasks = summary.total, summary.tasks
    pairs = list(combinations(range(len(tasks)), 2))
    # The worst pair first: by clashes if there are matrices, else by cosines.
    order = total.clashes or total.cosines
    pairs.sort(key=lambda pair: -order[pair[0]][pair[1]])
    if len(tasks) > MAX_TASKS_ALL_PAIRS:
        pairs = pairs[:MAX_PAIRS_SHOWN]
    table = _table("", "", "clash, x chance", "cosine", "opposite signs", left=2)
    for i, j in pairs:
        clash = f"{total.clashes[i][j]:.2f}" if total.clashes else ""
        cosine = f"{total.cosines[i][j]:.3f}"
        opposed = f"{total.opposed[i][j]:.1%}"
        table.add_row(escape(tasks[i]), escape(tasks[j]), clash, cosine, opposed)
    return table


def layer_name(layer: Layer) -> str:
    """What a layer is called: its number, after the name of its stack where there are several stacks of layers."""
    return "not in a layer" if layer.layer is None else f"{layer.stack} {layer.layer}".lstrip()


def _interference(facts: InterferenceFacts) -> Iterator[str]:
    yield f"{facts.before:.4g}"
    yield f"{facts.times_chance:.2f}"
    yield f"{facts.left:.2g}"


def _worst(tasks: Sequence[str], clashes: Sequence[Sequence[float]] | None) -> str:
    """Return the pair of tasks that clashes most, as text; empty if none clashes."""
    if clashes is None:
        return ""
    pairs = [(clashes[i][j], i, j) for i, j in combinations(range(len(tasks)), 2)]
    value, i, j = max(pairs, default=(0.0, 0, 0))
    return f"{tasks[i]}, {tasks[j]} ({value:.1f})" if value else ""
