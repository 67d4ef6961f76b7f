"""Advice on a merge, in sentences. Each quotes the number that it is based on."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import median

from hf_tsv.errors import size
from hf_tsv.inspection.summary import Summary, TaskFacts

# Thresholds where advice changes. They are judgement, not theory: readers see the number and can judge otherwise.
LONG = 1.5  # times the others' median norm: above this, a task outweighs them
DUPLICATE = 0.9  # cosine from which two task vectors are nearly the same change
ALIKE = 0.5  # mean cosine from which averaging loses little
LOW_RANK = 0.25  # share of the smaller side, in the median matrix, below which a task is of low rank
SPREAD = 0.5  # share of energy at TSV-Merge's rank; below this it throws away more than it keeps
OWN = 0.4  # share of changed weights in one task's mask only, from which dropping them costs that task much
NOBODYS = 0.2  # share of changed weights in no task's mask, from which they alone are worth dropping
CLASHING = 1.5  # times chance from which orthogonalisation has something to undo


def advice(summary: Summary) -> list[str]:
    """Write sentences about a summary, the choice of a method first."""
    changed = [task for task in summary.per_task if task.norm]
    if not changed:
        return ["No task changes any tensor that the recipe merges: there is nothing to merge."]
    unchanged = [task for task in summary.per_task if not task.norm]
    sentences = [f"Task {_q(task)} changes none of the tensors that are merged. Leave it out." for task in unchanged]
    if len(changed) > 1:
        sentences.append(_method(summary, changed))
        sentences += _where(summary)
        sentences += _pairs_to_keep_apart(summary)
        sentences.append(_dominance(changed))
        sentences.append(_owners(summary))
    for task in changed:
        if 0 < task.rank < LOW_RANK:
            sentences.append(
                f"Task {_q(task)} is of low rank: half of its matrices have at most {task.rank:.1%} of the rank they"
                f" could have above rounding noise, none more than {task.largest_rank}. `hf-tsv compress --rank"
                f" {task.largest_rank}` keeps it all."
            )
    rank_for_90 = median(task.rank_for_90 for task in changed)
    rank_for_99 = median(task.rank_for_99 for task in changed)
    nbytes = median(task.bytes_for_99 for task in changed)
    sentences.append(
        f"TSV-C needs {rank_for_99:.0%} of the full rank for 99% of a matrix's energy (medians), {size(nbytes)} a task"
        f" or {nbytes / max(1, summary.checkpoint_bytes):.0%} of the checkpoint; 90% takes {rank_for_90:.0%} of the"
        " rank."
    )
    return sentences


def _method(summary: Summary, tasks: Sequence[TaskFacts]) -> str:
    """Recommend a merge method; the first reason against TSV-Merge decides."""
    cosine = _mean_of_pairs(summary.total.cosines)
    if cosine >= ALIKE:
        return (
            f"The tasks are alike (mean cosine {_rounded(cosine)}, 0 is unrelated): averaging them, merge_method:"
            " linear, loses little, and tsv_m would treat what they share as interference."
        )
    interference = summary.total.interference
    if interference is None:
        return f"No task matrix changed, and the mean cosine is {_rounded(cosine)}: use merge_method: linear."
    kept = min(task.energy for task in tasks)  # of the task that loses most
    if kept < SPREAD:
        return (
            f"At the rank TSV-Merge keeps, the changes hold as little as {kept:.0%} of their energy: too spread out"
            " for tsv_m. Compare task_arithmetic, or merge fewer tasks at once."
        )
    if interference.times_chance < CLASHING:
        return (
            f"The tasks' leading directions overlap {interference.times_chance:.2g} times as much as random ones:"
            " tsv_m has little to undo, and task_arithmetic may do as well."
        )
    left = f"{interference.left:.3g}" if interference.left else "nothing"
    return (
        f"merge_method: tsv_m suits: the triplets it keeps hold at least {kept:.0%} of each task's energy, and it"
        f" takes away an interference of {interference.before:.3g} ({interference.times_chance:.2g} times chance, mean"
        f" cosine {_rounded(cosine)}), of which {left} is left."
    )


def _where(summary: Summary) -> Iterator[str]:
    """Locate the interference: the worst group of tensors, and the tasks that clash most."""
    # Cells without matrices have no interference, and one without any can't be the worst.
    disturbed = [cell for cell in summary.cells if cell.interference and cell.interference.before and cell.clashes]
    total = summary.total
    if not disturbed or not total.interference or not total.clashes:
        return
    worst = max(disturbed, key=lambda cell: cell.interference.before if cell.interference else 0.0)
    assert worst.interference
    assert worst.clashes
    i, j = _largest_pair(worst.clashes)
    layer = f" of layer {worst.layer}" if worst.layer is not None else ""
    share = worst.interference.before / total.interference.before
    yield (
        f"The largest part of the interference, {share:.0%}, is in {worst.label}{layer}"
        f" ({worst.interference.times_chance:.2g} times chance), where {_pair(summary, i, j)} clash most"
        f" ({worst.clashes[i][j]:.2g} times)."
    )
    if len(summary.tasks) > 2:  # two tasks are one pair, which the sentence above names
        i, j = _largest_pair(total.clashes)
        yield (
            f"Over all layers {_pair(summary, i, j)} clash most: {total.clashes[i][j]:.2g} times chance,"
            f" cosine {_rounded(total.cosines[i][j])}."
        )


def _pairs_to_keep_apart(summary: Summary) -> list[str]:
    """Name tasks that are nearly the same, then tasks that undo each other."""
    cosines = summary.total.cosines
    duplicates: list[str] = []
    opposites: list[str] = []
    for i, j in _pairs(len(cosines)):
        cosine = cosines[i][j]
        if cosine >= DUPLICATE:
            duplicates.append(
                f"{_pair(summary, i, j)} are nearly the same change (cosine {cosine:.3f}):"
                " leave one out, or their task counts twice."
            )
        elif cosine <= -ALIKE:
            opposites.append(
                f"{_pair(summary, i, j)} undo each other (cosine {cosine:.3f}): no sum or average does both."
                " Leave one out, or keep them apart by tsv_c."
            )
    return [*duplicates, *opposites]


def _dominance(tasks: Sequence[TaskFacts]) -> str:
    """Say if one task's vector outweighs the others'."""
    longest = max(tasks, key=lambda task: task.norm)
    shortest = min(tasks, key=lambda task: task.norm)
    # The longest itself is left out: among few tasks it would raise the median.
    middle = median(task.norm for task in tasks if task is not longest)
    if longest.norm > LONG * middle:
        return (
            f"Task {_q(longest)} dominates: its task vector is {longest.norm / middle:.2g} times as long as the"
            f" others' median ({longest.norm:.3g} against {middle:.3g}). A weight of"
            f" {middle / longest.norm:.2g} evens that out."
        )
    return (
        f"No task dominates: the longest task vector, of {_q(longest)}, is"
        f" {longest.norm / shortest.norm:.2f} times as long as the shortest, of {_q(shortest)}."
    )


def _owners(summary: Summary) -> str:
    """Say how many tasks use the changed weights, and which method that drops some of them fits."""
    shares = summary.total.weights
    fact = (
        f"Of the changed weights {shares.shared:.0%} are used by several tasks, {shares.selfish:.0%} by one"
        f" (selfish) and {shares.catastrophic:.0%} by none (catastrophic), as TALL-masks at lambda"
        f" {summary.mask_lambda:g} count them:"
    )
    if shares.selfish >= OWN:
        most = max(summary.groups, key=lambda group: group.weights.selfish)
        where = f"most in {most.label} ({most.weights.selfish:.0%})"
        return f"{fact} consensus_ta at its default k: 2 drops what single tasks use, {where}; tall_mask keeps it."
    if shares.catastrophic < NOBODYS:
        return f"{fact} consensus_ta with k: 2 has {1 - shares.shared:.0%} of them to drop."
    cosine = _mean_of_pairs(summary.total.cosines)
    if cosine >= ALIKE:
        # The others' sum is then many times a task's own change: the masks miss weights on which all tasks agree.
        return f"{fact} the tasks agree there (mean cosine {_rounded(cosine)}), so consensus_ta would drop too much."
    return f"{fact} consensus_ta with k: 1 drops what no task uses."


def _rounded(cosine: float) -> str:
    return f"{round(cosine, 2) + 0.0:.2f}"  # adding 0.0 turns -0.0 into 0.0


def _pairs(num_tasks: int) -> Iterator[tuple[int, int]]:
    return combinations(range(num_tasks), 2)


def _largest_pair(matrix: Sequence[Sequence[float]]) -> tuple[int, int]:
    return max(_pairs(len(matrix)), key=lambda pair: matrix[pair[0]][pair[1]])


def _mean_of_pairs(matrix: Sequence[Sequence[float]]) -> float:
    values = [matrix[i][j] for i, j in _pairs(len(matrix))]
    return sum(values) / len(values)


def _pair(summary: Summary, i: int, j: int) -> str:
    return f"'{summary.tasks[i]}' and '{summary.tasks[j]}'"


def _q(task: TaskFacts) -> str:
    return f"'{task.task}'"
