"""The summary as PNG pictures. Needs matplotlib."""

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from hf_tsv.errors import HfTsvError
from hf_tsv.inspection.summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 28  # maximum letters of a label
NAN = float("nan")
PRINTED = 12  # maximum number of columns with values written into the fields


def write_plots(summary: Summary, folder: Path) -> list[Path]:
    """Write pictures of interference, pairs, spectra and norms into a folder, which is created if needed.

    Raises:
        HfTsvError: matplotlib isn't installed, or the folder can't be written.
    """
    try:
        import_module("matplotlib")
    except ImportError:
        raise HfTsvError(
            "--plots: matplotlib isn't installed. Install it by pip install 'hf-tsv[plots]', or use --html"
        ) from None
    pictures: dict[str, Callable[[Summary], Figure]] = {"pairs": _pairs, "norms": _norms}
    if summary.total.interference:
        pictures |= {"interference": _interference, "spectra": _spectra}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, draw in pictures.items():
            draw(summary).savefig(folder / f"{name}.png", dpi=150)
    except OSError as error:
        raise HfTsvError(f"{folder}: the pictures can't be written: {error.strerror}.") from None
    return [folder / f"{name}.png" for name in pictures]


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _interference(summary: Summary) -> "Figure":
    times_chance: dict[tuple[str, tuple[int, ...], int | None], float] = {}
    for cell in summary.cells:
        if cell.interference:
            times_chance[cell.group, tuple(cell.shape), cell.layer] = cell.interference.times_chance
    types = [group for group in summary.groups if group.interference]
    numbers = {layer for _, _, layer in times_chance}
    layers: list[int | None] = [*sorted(number for number in numbers if number is not None)]
    if None in numbers:
        layers.insert(0, None)
    values: list[list[float]] = []  # a row per module type, a column per layer; NaN if there is no such tensor
    for group in types:
        row = [times_chance.get((group.group, tuple(group.shape), layer), NAN) for layer in layers]
        values.append(row)
    figure = _figure(3.6 + 0.42 * max(5, len(layers)), 1.3 + 0.34 * len(types))
    columns = list(map(str, layers))
    if None in numbers:
        columns[0] = "outside"
    rows = [group.label for group in types]
    axes = _field(figure.subplots(), values, rows, columns, colours="magma_r")
    axes.set_title("Singular Task Interference, times chance", fontsize=10, loc="left")
    return figure


def _pairs(summary: Summary) -> "Figure":
    total, tasks = summary.total, summary.tasks
    panels = [(total.cosines, "Cosine", "RdBu", True)]
    if total.clashes:
        panels.insert(0, (total.clashes, "Clash, times chance", "magma_r", False))
    side = 1.6 + max(0.36 * len(tasks), 1.6)
    figure = _figure((side + 0.6) * len(panels), side)
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (matrix, title, colours, around_zero) in zip(all_axes, panels, strict=True):
        values = [list(row) for row in matrix]
        for i, row in enumerate(values):
            row[i] = NAN  # comparing a task with itself says nothing, and would set the colour scale
        _field(axes, values, tasks, tasks, colours=colours, around_zero=around_zero)
        axes.set_title(title, fontsize=10, loc="left")
    return figure


def _norms(summary: Summary) -> "Figure":
    layers = summary.layers
    by_layer = [layer.norms for layer in layers]
    values = list(zip(*by_layer, strict=True))  # a row a task, a column a layer
    names = ["outside" if layer.layer is None else str(layer.layer) for layer in layers]
    figure = _figure(3.2 + 0.42 * max(5, len(layers)), 1.3 + 0.32 * len(summary.tasks))
    axes = _field(figure.subplots(), values, summary.tasks, names, colours="Blues")
    axes.set_title("Norms of the task vectors by layer", fontsize=10, loc="left")
    return figure


def _spectra(summary: Summary) -> "Figure":
    from matplotlib import colormaps
    from matplotlib.ticker import PercentFormatter

    # One or two ranks don't make a curve.
    groups = [group for group in summary.groups if group.spectra and len(group.spectra.ranks) > 2]
    columns = min(3, len(groups))
    rows = math.ceil(len(groups) / columns)
    more_lines = len(summary.tasks) // 6  # of the legend, which has six tasks per line
    figure = _figure(3.4 * columns, 2.5 * rows + 0.3 + 0.2 * more_lines)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    hues = colormaps["tab10" if len(summary.tasks) <= 10 else "tab20"]
    for axes, group in zip(panels, groups, strict=False):
        assert group.spectra
        assert group.rank
        for t, kept in enumerate(group.spectra.kept):
            axes.plot(group.spectra.ranks, kept, color=hues(t % hues.N), linewidth=1.4)
        axes.axvline(group.rank, color="grey", linestyle="--", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, 1.02)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_title(_cut(group.label, 40), fontsize=9, loc="left", parse_math=False)
        axes.tick_params(labelsize=8)
        axes.set_xlabel(f"rank k (dashed: {group.rank}); energy kept", fontsize=8)
    # The last row may have more panels than there are groups left.
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    lines = figure.axes[0].get_lines()[: len(summary.tasks)]
    figure.legend(lines, [_cut(task) for task in summary.tasks], loc="outside lower center", ncols=6, fontsize=8)
    return figure


def _field(
    axes: "Axes",
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    colours: str,
    around_zero: bool = False,
) -> "Axes":
    """Draw a grid of coloured fields, with their values if there is room; NaN leaves a field empty."""
    finite: list[float] = []
    for row in values:
        finite += [abs(value) for value in row if not math.isnan(value)]
    largest = max(finite, default=1.0) or 1.0
    if around_zero:
        largest = max(largest, 0.1)  # smaller values are next to nothing, and should look so
    # A sequential scale ends above the largest value, because its dark end would hide the text.
    lowest, highest = (-largest, largest) if around_zero else (0.0, 1.15 * largest)
    axes.imshow(values, aspect="auto", cmap=colours, vmin=lowest, vmax=highest)
    axes.set_yticks(range(len(rows)), [_cut(name) for name in rows], fontsize=8, parse_math=False)
    is_slanted = max(map(len, columns), default=0) > 7
    labelled = range(0, len(columns), max(1, len(columns) // 40))
    axes.set_xticks(
        list(labelled),
        [_cut(columns[i]) for i in labelled],
        fontsize=8,
        rotation=35 if is_slanted else 0,
        ha="right" if is_slanted else "center",
        parse_math=False,
    )
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if len(columns) > PRINTED:
        return axes
    # Black text can't be read on fields darker than this.
    dark_from = (0.7 if around_zero else 0.6) * largest
    for r, row in enumerate(values):
        for c, value in enumerate(row):
            if math.isnan(value):
                continue
            text = f"{round(value, 2) + 0.0:.2f}" if around_zero else f"{value:.2g}"
            colour = "w" if abs(value) > dark_from else "k"
            axes.text(c, r, text, ha="center", va="center", fontsize=7, color=colour)
    return axes


def _cut(text: str, most: int = MOST) -> str:
    """Shorten a text to its start and end, because names of one kind may differ in either."""
    if len(text) <= most:
        return text
    at_start = most // 3
    at_end = most - 1 - at_start  # 1 for the ellipsis
    return f"{text[:at_start]}…{text[-at_end:]}"
