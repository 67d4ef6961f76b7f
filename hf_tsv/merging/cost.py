"""The cost of a step: memory and work, estimated from shapes.

Work is counted in floating-point operations of a matrix product, the fastest kind, so that the work of all kinds of
steps can be added up and divided by one measured speed.
"""

from collections.abc import Iterable

from hf_tsv.merging.plan import Plan, Step
from hf_tsv.methods import METHODS

OPERATIONS_PER_ENTRY = 300.0  # operations in the time it takes to read, widen and add one entry of a tensor


def entry_work(numel: int, num_tensors: int) -> float:
    """Return the work of reading `num_tensors` tensors of one size, widening them and adding them up."""
    return OPERATIONS_PER_ENTRY * numel * num_tensors


def total_work(plan: Plan, steps: Iterable[Step]) -> float:
    """Return the work of several steps of a plan."""
    return sum(step_work(plan, step) for step in steps)


def step_work(plan: Plan, step: Step) -> float:
    """Estimate the work of one step."""
    reading = entry_work(step.info.numel, len(plan.tasks) + 1)
    view, matrices = step.view, METHODS[step.method].matrices
    if view is None or not step.is_merged or matrices is None:
        return reading
    short, long = sorted((view.m, view.n))
    gram_matrix = 2.0 * short**2 * long
    eigenvectors = 9.0 * matrices.side(view.m, view.n, len(plan.tasks)) ** 3
    # Adapters come as factors. Each full checkpoint is decomposed, and joining costs about two more decompositions.
    dense = plan.adapters.count(None)
    decompositions = dense + 2 if dense else 0
    return reading + view.count * decompositions * (gram_matrix + eigenvectors)


def largest_bytes(plan: Plan) -> int:
    """Estimate the peak memory of the largest step, in bytes."""
    return max(step_bytes(plan, step) for step in plan.steps)


def step_bytes(plan: Plan, step: Step) -> int:
    """Estimate the peak memory of a step, in bytes."""
    item = 8 if plan.recipe.dtype == "float64" else 4
    stored = step.info.nbytes + step.out.nbytes
    if not step.is_merged:
        return stored
    stored += max(checkpoint.info(step.name).nbytes for checkpoint in plan.finetuned)
    matrices, view = METHODS[step.method].matrices, step.view
    if view is None or matrices is None:
        # Elementwise methods hold up to nine tensors of a slice's size at once, sorted copies included.
        pieces = len(step.slices)
        return 2 * (stored // pieces) + step.out.nbytes + 9 * step.info.numel * item // pieces
    short = min(view.m, view.n)
    side = matrices.side(view.m, view.n, len(plan.tasks))
    deltas = 3 * view.m * view.n * item
    joined_vectors = 3 * short * (view.m + view.n) * item
    square_matrices = 4 * side * side * 8
    return stored + step.info.numel * item + deltas + joined_vectors + square_matrices
