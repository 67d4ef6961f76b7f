"""What the numbers mean for a merge, in sentences. Each holds the number it stands on."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from hf_tsv.errors import size

# Where advice changes. Judgement, not theory: a sentence tells its number, so that a reader can judge otherwise.
LONG = 1.5  # times the others' median norm: a task that outweighs them
DUPLICATE = 0.9  # cosine of two task vectors that are nearly the same change
ALIKE = 0.5  # mean cosine from which averaging loses little
LOW_RANK = 0.25  # of the smaller side, in the median matrix
SPREAD = 0.5  # energy at TSV-Merge's rank below which it throws more away than it keeps
OWN = 0.4  # of the changed weights in a single task's mask, from which dropping them costs that task much
NOBODYS = 0.2  # of them in no task's mask, from which they are worth dropping alone
CLASHING = 1.5  # times chance from which orthogonalisation has something to undo


def advice(summary: Mapping[str, Any]) -> list[str]:
    """Sentences on a summary as `summarize` makes it (without its advice), the choice of a method first."""
    tasks = summary["per_task"]
    changed = [task for task in tasks if task["norm"]]
    if not changed:
        return ["No task changes any tensor that the recipe merges: there is nothing to merge."]
    told = [f"Task {_q(task)} changes none of the tensors that are merged. Leave it out." for task in _idle(tasks)]
    if len(changed) > 1:
        told += [
            _method(summary, changed),
            *_where(summary),
            *_duplicates(summary),
            *_opposites(summary),
            _dominance(changed),
            _owners(summary),
        ]
    return [*told, *_low_rank(changed), _compression(summary, changed)]


def _idle(tasks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [task for task in tasks if not task["norm"]]


def _method(summary: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> str:
    cosine = _mean_of_pairs(summary["total"]["cosines"])
    if cosine >= ALIKE:
        return (
            f"The tasks are alike (mean cosine {_rounded(cosine)}, 0 is unrelated): averaging them, merge_method:"
            " linear, loses little, and tsv_m would treat what they share as interference."
        )
    found = summary["total"].get("interference")
    if found is None:
        return f"No task matrix changed, and the mean cosine is {_rounded(cosine)}: use merge_method: linear."
    kept = min(task["energy"] for task in tasks)
    if kept < SPREAD:
        return (
            f"At the rank TSV-Merge keeps, the changes hold as little as {kept:.0%} of their energy: too spread out"
            " for tsv_m. Compare task_arithmetic, or merge fewer tasks at once."
        )
    if found["times_chance"] < CLASHING:
        return (
            f"The tasks' leading directions overlap {found['times_chance']:.2g} times as much as random ones:"
            " tsv_m has little to undo, and task_arithmetic may do as well."
        )
    return (
        f"merge_method: tsv_m suits: the triplets it keeps hold at least {kept:.0%} of each task's energy, and it"
        f" takes away an interference of {found['before']:.3g} ({found['times_chance']:.2g} times chance, mean cosine"
        f" {_rounded(cosine)}), of which {_left(found)} is left."
    )


def _left(found: Mapping[str, Any]) -> str:
    return f"{found['left']:.3g}" if found["left"] else "nothing"


def _where(summary: Mapping[str, Any]) -> Iterator[str]:
    cells = [cell for cell in summary["cells"] if cell.get("interference", {}).get("before")]
    if not cells:
        return
    worst = max(cells, key=lambda cell: cell["interference"]["before"])
    i, j = _largest_pair(worst["clashes"])
    layer = f" of layer {worst['layer']}" if worst["layer"] is not None else ""
    share = worst["interference"]["before"] / summary["total"]["interference"]["before"]
    yield (
        f"The largest part of the interference, {share:.0%}, is in {worst['label']}{layer}"
        f" ({worst['interference']['times_chance']:.2g} times chance), where {_pair(summary, i, j)} clash most"
        f" ({worst['clashes'][i][j]:.2g} times)."
    )
    if len(summary["tasks"]) > 2:
        i, j = _largest_pair(summary["total"]["clashes"])
        yield (
            f"Over all layers {_pair(summary, i, j)} clash most: {summary['total']['clashes'][i][j]:.2g} times chance,"
            f" cosine {_rounded(summary['total']['cosines'][i][j])}."
        )


def _duplicates(summary: Mapping[str, Any]) -> Iterator[str]:
    cosines = summary["total"]["cosines"]
    for i, j in _pairs(len(cosines)):
        if cosines[i][j] >= DUPLICATE:
            yield (
                f"{_pair(summary, i, j)} are nearly the same change (cosine {cosines[i][j]:.3f}):"
                " leave one out, or their task counts twice."
            )


def _opposites(summary: Mapping[str, Any]) -> Iterator[str]:
    cosines = summary["total"]["cosines"]
    for i, j in _pairs(len(cosines)):
        if cosines[i][j] <= -ALIKE:
            yield (
                f"{_pair(summary, i, j)} undo each other (cosine {cosines[i][j]:.3f}): no sum or average does both."
                " Leave one out, or keep them apart by tsv_c."
            )


def _dominance(tasks: Sequence[Mapping[str, Any]]) -> str:
    longest = max(tasks, key=lambda task: task["norm"])
    shortest = min(tasks, key=lambda task: task["norm"])
    middle = median(task["norm"] for task in tasks if task is not longest)
    if longest["norm"] > LONG * middle:
        return (
            f"Task {_q(longest)} dominates: its task vector is {longest['norm'] / middle:.2g} times as long as the"
            f" others' median ({longest['norm']:.3g} against {middle:.3g}). A weight of"
            f" {middle / longest['norm']:.2g} evens that out."
        )
    return (
        f"No task dominates: the longest task vector, of {_q(longest)}, is"
        f" {longest['norm'] / shortest['norm']:.2f} times as long as the shortest, of {_q(shortest)}."
    )


def _owners(summary: Mapping[str, Any]) -> str:
    shares = summary["total"]["weights"]
    told = (
        f"Of the changed weights {shares['shared']:.0%} are used by several tasks, {shares['selfish']:.0%} by one"
        f" (selfish) and {shares['catastrophic']:.0%} by none (catastrophic), as TALL-masks at lambda"
        f" {summary['mask_lambda']:g} have it:"
    )
    if shares["selfish"] >= OWN:
        most = max(summary["groups"], key=lambda group: group["weights"]["selfish"])
        where = f"most in {most['label']} ({most['weights']['selfish']:.0%})"
        return f"{told} consensus_ta at its default k: 2 drops what single tasks use, {where}; tall_mask keeps it."
    if shares["catastrophic"] >= NOBODYS:
        cosine = _mean_of_pairs(summary["total"]["cosines"])
        if cosine >= ALIKE:  # the others' sum then is many times a task's own change, on which they all agree
            return (
                f"{told} the tasks agree there (mean cosine {_rounded(cosine)}), so consensus_ta would drop too much."
            )
        return f"{told} consensus_ta with k: 1 drops what no task uses."
    return f"{told} consensus_ta with k: 2 has {1 - shares['shared']:.0%} of them to drop."


def _low_rank(tasks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for task in tasks:
        if 0 < task["rank"] < LOW_RANK:
            yield (
                f"Task {_q(task)} is of low rank: half of its matrices have at most {task['rank']:.1%} of the rank they"
                f" could have above rounding noise, none more than {task['largest_rank']}. `hf-tsv compress --rank"
                f" {task['largest_rank']}` keeps it all."
            )


def _compression(summary: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> str:
    share = median(task["rank_for_99"] for task in tasks)
    nbytes = median(task["bytes_for_99"] for task in tasks)
    return (
        f"TSV-C needs {share:.0%} of the full rank for 99% of a matrix's energy (medians), {size(nbytes)} a task or"
        f" {nbytes / max(1, summary['checkpoint_bytes']):.0%} of the checkpoint; 90% takes"
        f" {median(task['rank_for_90'] for task in tasks):.0%} of the rank."
    )


def _rounded(cosine: float) -> str:
    return f"{round(cosine, 2) + 0.0:.2f}"  # without a sign where it is none


def _pairs(num_tasks: int) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(num_tasks) for j in range(i + 1, num_tasks))


def _largest_pair(matrix: Sequence[Sequence[float]]) -> tuple[int, int]:
    return max(_pairs(len(matrix)), key=lambda pair: matrix[pair[0]][pair[1]])


def _mean_of_pairs(matrix: Sequence[Sequence[float]]) -> float:
    values = [matrix[i][j] for i, j in _pairs(len(matrix))]
    return sum(values) / len(values)


def _pair(summary: Mapping[str, Any], i: int, j: int) -> str:
    return f"'{summary['tasks'][i]}' and '{summary['tasks'][j]}'"


def _q(task: Mapping[str, Any]) -> str:
    return f"'{task['task']}'"
