"""The summary as PNG pictures. Needs matplotlib."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_tsv.errors import HfTsvError
from hf_tsv.inspection.tables import layer_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 28  # letters of a label
PRINTED = 12  # rows and columns up to which values are written into the fields


def write_plots(summary: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the pictures into a folder, which is made if need be: interference, pairs, spectra and norms.

    Raises:
        HfTsvError: matplotlib isn't installed, or the folder can't be written.
    """
    try:
        import_module("matplotlib")
    except ImportError:
        raise HfTsvError(
            "--plots: matplotlib isn't installed. Install it by pip install 'hf-tsv[plots]', or use --html"
        ) from None
    drawn: dict[str, Callable[[Mapping[str, Any]], Figure]] = {"pairs": _pairs, "norms": _norms}
    if "interference" in summary["total"]:
        drawn |= {"interference": _interference, "spectra": _spectra}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, draw in drawn.items():
            draw(summary).savefig(folder / f"{name}.png", dpi=150)
    except OSError as error:
        raise HfTsvError(f"{folder}: the pictures can't be written: {error.strerror}.") from None
    return [folder / f"{name}.png" for name in drawn]


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _interference(summary: Mapping[str, Any]) -> "Figure":
    cells = {(c["group"], *c["shape"], c["layer"]): c for c in summary["cells"] if "interference" in c}
    types = [group for group in summary["groups"] if "interference" in group]
    layers: list[int | None] = sorted({c["layer"] for c in cells.values() if c["layer"] is not None})
    layers = [None, *layers] if any(c["layer"] is None for c in cells.values()) else layers
    values = [
        [_times_chance(cells.get((group["group"], *group["shape"], layer))) for layer in layers] for group in types
    ]
    figure = _figure(3.6 + 0.42 * max(5, len(layers)), 1.3 + 0.34 * len(types))
    _field(
        figure.subplots(),
        values,
        [group["label"] for group in types],
        ["outside" if layer is None else str(layer) for layer in layers],
        colours="magma_r",
    ).set_title("Singular Task Interference, times chance", fontsize=10, loc="left")
    return figure


def _times_chance(cell: Mapping[str, Any] | None) -> float:
    return cell["interference"]["times_chance"] if cell else float("nan")


def _pairs(summary: Mapping[str, Any]) -> "Figure":
    total, tasks = summary["total"], summary["tasks"]
    shown = [("clashes", "Clash, times chance", "magma_r"), ("cosines", "Cosine", "RdBu")]
    shown = [item for item in shown if item[0] in total]
    side = 1.6 + max(0.36 * len(tasks), 1.6)
    figure = _figure((side + 0.6) * len(shown), side)
    for axes, (key, title, colours) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        values = [[float("nan") if i == j else v for j, v in enumerate(row)] for i, row in enumerate(total[key])]
        _field(axes, values, tasks, tasks, colours=colours, around_zero=key == "cosines").set_title(
            title, fontsize=10, loc="left"
        )
    return figure


def _norms(summary: Mapping[str, Any]) -> "Figure":
    layers = summary["layers"]
    values = [[layer["norms"][t] for layer in layers] for t in range(len(summary["tasks"]))]
    names = ["outside" if layer["layer"] is None else layer_name(layer).rsplit(" ", 1)[-1] for layer in layers]
    figure = _figure(3.2 + 0.42 * max(5, len(layers)), 1.3 + 0.32 * len(values))
    axes = _field(figure.subplots(), values, summary["tasks"], names, colours="Blues")
    axes.set_title("Norms of the task vectors by layer", fontsize=10, loc="left")
    return figure


def _spectra(summary: Mapping[str, Any]) -> "Figure":
    groups = [group for group in summary["groups"] if "spectra" in group and len(group["spectra"]["ranks"]) > 2]
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    figure = _figure(3.4 * columns, 2.5 * rows + 0.3 + 0.2 * (len(summary["tasks"]) // 6))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    for axes, group in zip(panels, [*groups, *[None] * (rows * columns - len(groups))], strict=True):
        axes.set_axis_off() if group is None else _curves(axes, group, len(summary["tasks"]))
    lines = figure.axes[0].get_lines()[: len(summary["tasks"])]
    figure.legend(lines, [_cut(task) for task in summary["tasks"]], loc="outside lower center", ncols=6, fontsize=8)
    return figure


def _curves(axes: "Axes", group: Mapping[str, Any], num_tasks: int) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import PercentFormatter

    hues = colormaps["tab10" if num_tasks <= 10 else "tab20"]
    for t, kept in enumerate(group["spectra"]["kept"]):
        axes.plot(group["spectra"]["ranks"], kept, color=hues(t % hues.N), linewidth=1.4)
    axes.axvline(group["rank"], color="grey", linestyle="--", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title(_cut(group["label"], 40), fontsize=9, loc="left", parse_math=False)
    axes.tick_params(labelsize=8)
    axes.set_xlabel(f"rank k (dashed: {group['rank']}); energy kept", fontsize=8)


def _field(
    axes: "Axes",
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    colours: str,
    around_zero: bool = False,
) -> "Axes":
    """A grid of coloured fields, with their values where there is room."""
    finite = [value for row in values for value in row if value == value]
    most = max(map(abs, finite), default=1.0) or 1.0
    most = max(most, 0.1) if around_zero else most  # less than that is next to nothing, and shall look so
    least = -most if around_zero else 0.0
    axes.imshow(values, aspect="auto", cmap=colours, vmin=least, vmax=most if around_zero else 1.15 * most)
    axes.set_yticks(range(len(rows)), [_cut(name) for name in rows], fontsize=8, parse_math=False)
    slanted = max(map(len, columns), default=0) > 7
    every = range(0, len(columns), max(1, len(columns) // 40))
    axes.set_xticks(
        list(every),
        [_cut(columns[i]) for i in every],
        fontsize=8,
        rotation=35 if slanted else 0,
        ha="right" if slanted else "center",
        parse_math=False,
    )
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if len(columns) <= PRINTED:
        for r, row in enumerate(values):
            for c, value in enumerate(row):
                if value == value:
                    dark = abs(value) > (0.7 if around_zero else 0.6) * most
                    text = f"{round(value, 2) + 0.0:.2f}" if around_zero else f"{value:.2g}"
                    axes.text(c, r, text, ha="center", va="center", fontsize=7, color="w" if dark else "k")
    return axes


def _cut(text: str, most: int = MOST) -> str:
    """The start and the end of a text: names of one kind differ in either."""
    return text if len(text) <= most else f"{text[: most // 3]}…{text[most // 3 + 1 - most :]}"
