"""The results as tables."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

BUSY = 0.1  # cores that others may use before times are in doubt
SAME = 1.1


def markdown(told: Mapping[str, Any]) -> str:
    """Every job's table, behind what it was measured on."""
    versions = "; ".join(f"{name}: {_listed(found)}" for name, found in told["versions"].items())
    jobs = "\n".join(_job(result) for result in told["jobs"].values())
    return f"# Speed\n\nMade by `make bench-speed`. Machine: {told['machine']}. Versions: {versions}.\n\n{jobs}"


def _job(result: Mapping[str, Any]) -> str:
    contenders = result["contenders"]
    runs = max(len(c["cpu"]) for c in contenders.values())
    costs = [_costs(name, contender) for name, contender in contenders.items()]
    ratios = [_ratios(comparison, contenders) for comparison in result["comparisons"]]
    head = ("", "wall s", "CPU s", "peak GB", "error", "rounding alone", "misrounded", "cores others used")
    second = ("", "times as fast (wall)", "times less CPU", "peak, as a share of the other's")
    return f"## {result['title']}\n\n{result['when']}, {runs} runs in turns: median (least to most).\n\n" + "\n".join(
        [table(head, costs), table(second, ratios)]
    )


def _costs(name: str, contender: Mapping[str, Any]) -> tuple[str, ...]:
    error = contender["error"] or {}
    return (
        name,
        _spread(contender["wall"], "{:.1f}"),
        _spread(contender["cpu"], "{:.2f}" if max(contender["cpu"]) < 10 else "{:.1f}"),
        _spread([peak / 1e9 for peak in contender["peak"]], "{:.2f}"),
        f"{error['error']:.1e}" if "error" in error else "",
        f"{error['rounding']:.1e}" if "rounding" in error else "",
        f"{error['misrounded']:.2%}" if "misrounded" in error else "",
        f"{max(contender['others'], default=0):.1f}" if max(contender["others"], default=0) > BUSY else "",
    )


def _ratios(comparison: Mapping[str, Any], contenders: Mapping[str, Any]) -> tuple[str, ...]:
    ours, other = contenders[comparison["ours"]], contenders[comparison["against"]]
    start = contenders.get(comparison["start"])
    wall, cpu = (_pairs(_times(other, key, start), _times(ours, key, start)) for key in ("wall", "cpu"))
    peak = _pairs(ours["peak"], other["peak"])
    return (
        f"{comparison['ours']} against {comparison['against']}" + (", a byte" if start else ""),
        _spread(wall, "{:.2f}") + _goal(wall, comparison["wall"]),
        _spread(cpu, "{:.2f}") + _goal(cpu, comparison["cpu"]),
        _spread(peak, "{:.2f}") + _peak_goal(comparison, ours["peak"], peak),
    )


def _times(contender: Mapping[str, Any], key: str, start: Mapping[str, Any] | None) -> list[float]:
    """Seconds of each run; where there is a start, beyond it and for each byte."""
    if start is None:
        return list(contender[key])
    return [(a - b) / contender["bytes_read"] for a, b in zip(contender[key], start[key], strict=True)]


def _pairs(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """How many times the other's each run took, pair by pair."""
    return [a / b for a, b in zip(one, other, strict=True)]


def _goal(ratios: Sequence[float], goal: float | None) -> str:
    return "" if goal is None else f"; goal {goal:.2g}: {_reached(median(ratios) >= goal)}"


def _peak_goal(comparison: Mapping[str, Any], peaks: Sequence[int], ratios: Sequence[float]) -> str:
    if comparison["same_peak"]:
        return f"; goal the same: {_reached(median(ratios) <= SAME)}"
    goal = comparison["peak"]
    return "" if goal is None else f"; goal below {goal / 1e9:.1f} GB: {_reached(max(peaks) < goal)}"


def _reached(is_it: bool) -> str:
    return "reached" if is_it else "**missed**"


def _spread(values: Sequence[float], form: str) -> str:
    """Median, least and most."""
    if not values:
        return ""
    middle, least, most = (form.format(value) for value in (median(values), min(values), max(values)))
    return middle if least == most else f"{middle} ({least} to {most})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table without the columns that no row fills."""
    filled: set[int] = set()
    for row in rows:
        filled |= {i for i, cell in enumerate(row) if cell}
    text = ""
    for line in (head, ["---"] * len(head), *rows):
        cells = [cell for i, cell in enumerate(line) if i in filled]
        text += "| " + " | ".join(cells) + " |\n"
    return text


def _listed(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())
