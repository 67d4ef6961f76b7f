"""The engine: reads, merges and writes each planned tensor."""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from hf_tsv.errors import MethodError, ResourceError
from hf_tsv.merging.cost import step_bytes, step_work, total_work
from hf_tsv.merging.plan import Plan, Step
from hf_tsv.merging.pool import each_step, one_thread_each
from hf_tsv.merging.progress import Progress
from hf_tsv.merging.resources import CPU, Resources, operations_per_second
from hf_tsv.merging.stored import StoredTensor, is_finite
from hf_tsv.merging.surveys import Surveys, naming, survey_of_tensor
from hf_tsv.methods import METHODS, Survey


class Sink(Protocol):
    """A receiver of merged tensors: a writer of files, or a state dict."""

    def put(self, step: Step, tensor: Tensor, facts: Mapping[str, Any]) -> None: ...


def run(
    plan: Plan, steps: Sequence[Step], sink: Sink, resources: Resources, progress: Progress, *, in_order: bool = False
) -> None:
    """Merge some steps of a plan.

    Every step runs on one core whatever the number of workers, so that its bits don't depend on it.

    Args:
        plan: The plan.
        steps: The steps to merge.
        sink: The receiver of the merged tensors; called from several threads.
        resources: The workers, memory and device to use.
        progress: Notified of the work done.
        in_order: True to take the steps in the given order, so that files are completed one after another; False to
            take the largest first.

    Raises:
        HfTsvError: a source can't be read, holds NaN or infinity, or can't be merged; or the output is full.
    """
    surveys = Surveys(plan, steps)

    def merge(step: Step) -> None:
        started = time.perf_counter()
        tensor, notes = merge_step(plan, step, surveys.of(step), resources.device)
        seconds = time.perf_counter() - started
        sink.put(step, tensor, {**notes, "seconds": round(seconds, 3)})

    progress.begin(total_work(plan, steps) + surveys.work)
    with one_thread_each():
        surveys.run(resources, progress)
        each_step(steps, merge, plan, resources, progress, in_order=in_order)


def estimated_seconds(plan: Plan, cores: int) -> float:
    """Estimate how long a merge takes on `cores` of this machine's cores, with the exact SVD and without downloads."""
    work = total_work(plan, plan.steps) + Surveys(plan, plan.steps).work
    longest_step = max(step_work(plan, step) for step in plan.steps)
    return max(work / cores, longest_step) / operations_per_second()


def check_memory(plan: Plan, resources: Resources) -> None:
    """Check that every step fits into memory.

    Raises:
        ResourceError: one step alone needs more than `max_memory`.
    """
    largest = max(plan.steps, key=partial(step_bytes, plan))
    nbytes = step_bytes(plan, largest)
    if resources.max_memory is not None and nbytes > resources.max_memory:
        raise ResourceError(
            f"{largest.name}: needs about {nbytes / 2**20:.0f} MB at once, more than --max-memory"
            f" {resources.max_memory / 2**20:.0f} MB. Allow more"
        )


def merge_step(
    plan: Plan, step: Step, survey: Survey | None = None, device: torch.device = CPU
) -> tuple[Tensor, dict[str, Any]]:
    """Merge one tensor.

    Returns:
        The tensor in its output dtype, on the CPU, and the method's notes about it.

    Raises:
        MethodError: a delta holds NaN or infinity, or the method can't merge it; names tensor and task.
    """
    if step.slices == [None]:
        return _merge_slice(plan, step, survey, None, device)
    survey = survey or survey_of_tensor(plan, step)
    merged = torch.empty(step.info.shape, dtype=step.out.torch_dtype)
    notes_of_slices: list[dict[str, Any]] = []
    for rows in filter(None, step.slices):
        first, end = rows
        merged[first:end], notes = _merge_slice(plan, step, survey, rows, device)
        notes_of_slices.append(notes)
    if all(notes.get("unchanged") for notes in notes_of_slices):
        return merged, {"unchanged": True}
    joined: dict[str, Any] = {}  # for each note a list with one entry per slice
    for notes in notes_of_slices:
        for key in notes:
            # A slice that no task changed has no other note. Its "unchanged" isn't true of the whole tensor.
            if key != "unchanged" and key not in joined:
                joined[key] = [other.get(key) for other in notes_of_slices]
    return merged, joined


def _merge_slice(
    plan: Plan, step: Step, survey: Survey | None, rows: tuple[int, int] | None, device: torch.device
) -> tuple[Tensor, dict[str, Any]]:
    source = StoredTensor(plan, step, rows, device=device)
    out_dtype = step.out.torch_dtype
    if not step.is_merged:
        return _rounded(source.base, out_dtype, source, step), {}
    method = METHODS[step.method]
    looks_at_unchanged = method.inputs.unchanged and source.base_is_finite
    if not looks_at_unchanged and not source.changed():
        return _rounded(source.base, out_dtype, source, step), {"unchanged": True}
    deltas = source.deltas(survey)
    try:
        # Tensors that a method creates without naming a device are created on the default device.
        with naming(step, step.method), nullcontext() if device == CPU else device:
            merged_delta = method(deltas, **step.parameters)
    except torch.OutOfMemoryError as error:
        raise ResourceError(f"{step.name}: out of memory. Use fewer --workers") from error
    # Base and delta are added in the wider of their dtypes and rounded once.
    wide = torch.promote_types(merged_delta.dtype, source.base.dtype)
    merged = merged_delta.reshape(source.base.shape).to(wide)  # a task matrix gets its tensor's shape back
    merged.add_(source.base.to(device))
    return _rounded(merged, out_dtype, source, step).cpu(), deltas.notes


def _rounded(result: Tensor, dtype: torch.dtype, source: StoredTensor, step: Step) -> Tensor:
    """Round the result to the output's dtype.

    Raises:
        MethodError: the result overflows, although the base is finite.
    """
    rounded = result.to(dtype)
    if rounded is not source.base and source.base_is_finite and not is_finite(rounded):
        raise MethodError(
            f"{step.name} {step.info.shape}, {step.method}: the result is too large for {step.out.dtype}. Lower weights"
            " or scale, or write a wider out_dtype"
        )
    return rounded
