"""The engine: for each planned tensor read, merge, write. The only place where all parts meet."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from hf_tsv.checkpoints.safetensors import TORCH_DTYPES
from hf_tsv.errors import MethodError, ResourceError
from hf_tsv.merging.plan import TOUCHED, Plan, Step
from hf_tsv.merging.progress import Progress, Silent
from hf_tsv.merging.resources import (
    CPU,
    Resources,
    operations_per_second,
    reuse_freed_memory,
)
from hf_tsv.merging.stored import ARITHMETIC, StoredTensor, is_finite
from hf_tsv.methods import METHODS, Survey


class Sink(Protocol):
    """Where merged tensors go: a writer of files, or a state dict."""

    def put(self, step: Step, tensor: Tensor, facts: Mapping[str, Any]) -> None: ...


Found = Callable[[Step], Survey | None]  # the survey over the model that a step needs


def run(
    plan: Plan, steps: Sequence[Step], sink: Sink, resources: Resources, progress: Progress, *, in_order: bool = False
) -> None:
    """Merge the given steps of a plan, largest first, or as they are given, when files are wanted one after another.

    Every step runs on one core whatever the number of workers, so that its bits don't depend on it.

    Raises:
        HfTsvError: a source can't be read, holds NaN or infinity, or can't be merged; or the output is full.
    """
    needed = _surveys(plan, steps)
    progress.begin(_work(plan, steps, needed))
    with one_thread_each():
        found = _made(plan, needed, resources, progress)
        do = partial(_do, plan, found, sink, resources.device)
        each_step(steps, do, plan, resources, progress, plan.work, in_order=in_order)


def estimated_seconds(plan: Plan, cores: int) -> float:
    """About how long a merge takes so many of this machine's cores, by the exact SVD and without downloads."""
    work = _work(plan, plan.steps, _surveys(plan, plan.steps))
    return max(work / cores, *map(plan.work, plan.steps)) / operations_per_second()


def surveys(
    plan: Plan, steps: Sequence[Step], resources: Resources, progress: Progress, *, for_masks: bool = False
) -> Found:
    """What `merge_step`, or else the masks, need to know of the whole task vectors, by step. Errors as for `run`."""
    with one_thread_each():
        return _made(plan, _surveys(plan, steps, for_masks), resources, progress)


def _made(
    plan: Plan, needed: Mapping[object, tuple[list[Step], Survey]], resources: Resources, progress: Progress
) -> Found:
    for group, survey in needed.values():
        while share := survey.share:
            watcher = progress if share == 1 else Silent()
            each_step(group, partial(_observe, plan, survey, share), plan, resources, watcher, _step_touched)
            survey.advance()
    known = {key: survey for key, (_, survey) in needed.items()}
    return lambda step: known.get(_survey_key(step))


def check_memory(plan: Plan, resources: Resources) -> None:
    """Whether every step fits.

    Raises:
        ResourceError: one step alone needs more than `max_memory`.
    """
    largest = max(plan.steps, key=plan.working_bytes)
    needed = plan.working_bytes(largest)
    if resources.max_memory is not None and needed > resources.max_memory:
        raise ResourceError(
            f"{largest.name}: needs about {needed / 2**20:.0f} MB at once, expected at most --max-memory"
            f" {resources.max_memory / 2**20:.0f} MB. Allow more"
        )


def merge_step(
    plan: Plan, step: Step, survey: Survey | None = None, device: torch.device = CPU
) -> tuple[Tensor, dict[str, Any]]:
    """One output tensor in its output dtype, merged on the device and held by the CPU; what the method noted about it.

    Raises:
        MethodError: NaN or infinity in a delta, or a method that can't merge it; names tensor and task.
    """
    if step.slices == [None]:
        return _merge_slice(plan, step, survey, None, device)
    survey = survey or _survey_of_tensor(plan, step)
    out = torch.empty(step.info.shape, dtype=TORCH_DTYPES[step.out.dtype])
    told: list[dict[str, Any]] = []
    for rows in filter(None, step.slices):
        out[rows[0] : rows[1]], notes = _merge_slice(plan, step, survey, rows, device)
        told.append(notes)
    return out, _notes_of_slices(told)


def _notes_of_slices(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if all(notes.get("unchanged") for notes in told):
        return {"unchanged": True}
    keys = dict.fromkeys(key for notes in told for key in notes if key != "unchanged")
    return {key: [notes.get(key) for notes in told] for key in keys}


def _merge_slice(
    plan: Plan, step: Step, survey: Survey | None, rows: tuple[int, int] | None, device: torch.device
) -> tuple[Tensor, dict[str, Any]]:
    source = StoredTensor(plan, step, rows, device=device)
    out_dtype = TORCH_DTYPES[step.out.dtype]
    if not step.is_merged:
        return _stored_as(out_dtype, source.base, source, step), {}
    method = METHODS[step.method]
    if not (method.inputs.unchanged and source.base_is_finite) and not source.changed():
        return _stored_as(out_dtype, source.base, source, step), {"unchanged": True}
    deltas = source.deltas(survey)
    try:
        # The device is where tensors are made that a method doesn't say where.
        with naming(step, step.method), nullcontext() if device == CPU else device:
            merged = method(deltas, **step.parameters)
    except torch.OutOfMemoryError as error:
        raise ResourceError(f"{step.name}: out of memory. Use fewer --workers") from error
    wide = torch.promote_types(merged.dtype, source.base.dtype)
    merged = merged.reshape(source.base.shape).to(wide)
    return _stored_as(out_dtype, merged.add_(source.base.to(device)), source, step).cpu(), deltas.notes


def _stored_as(dtype: torch.dtype, result: Tensor, source: StoredTensor, step: Step) -> Tensor:
    """
    Raises:
        MethodError: the base is finite, and this isn't.
    """
    stored = result.to(dtype)
    if stored is not source.base and source.base_is_finite and not is_finite(stored):
        raise MethodError(
            f"{step.name} {step.info.shape}, {step.method}: the result is too large for {step.out.dtype}, expected"
            " finite numbers. Lower weights or scale, or write a wider out_dtype"
        )
    return stored


def _do(plan: Plan, found: Found, sink: Sink, device: torch.device, step: Step) -> None:
    started = time.perf_counter()
    tensor, notes = merge_step(plan, step, found(step), device)
    sink.put(step, tensor, {**notes, "seconds": round(time.perf_counter() - started, 3)})


def _observe(plan: Plan, survey: Survey, share: float, step: Step) -> None:
    with naming(step, step.method):
        for rows in step.slices if share == 1 else step.sample(share):
            for t, delta in enumerate(StoredTensor(plan, step, rows, as_matrix=False).deltas()):
                survey.observe(t, delta)


@contextmanager
def naming(step: Step, what: str) -> Iterator[None]:
    """Add the tensor, and what is done with it, to an error."""
    try:
        yield
    except MethodError as error:
        raise MethodError(f"{step.name} {step.info.shape}, {what}: {error}") from error


def _survey_key(step: Step) -> object:
    method = METHODS[step.method]
    return (method.name, repr(method.survey_parameters(step.parameters))) if method.is_surveyed else None


def _surveys(plan: Plan, steps: Sequence[Step], for_masks: bool = False) -> dict[object, tuple[list[Step], Survey]]:
    """For every kind of survey over the model that these steps need, all the plan's steps that it looks at."""
    found: dict[object, tuple[list[Step], Survey]] = {}
    for step in steps:
        key = _survey_key(step)
        if key not in found and (survey := _survey(plan, step, for_masks)) and survey.scope == "model":
            found[key] = ([other for other in plan.steps if _survey_key(other) == key], survey)
    return found


def _survey(plan: Plan, step: Step, for_masks: bool = False) -> Survey | None:
    method = METHODS[step.method]
    make = method.make_mask_survey if for_masks else method.make_survey
    return make(ARITHMETIC[plan.recipe.dtype], len(plan.tasks), step.parameters)


def _survey_of_tensor(plan: Plan, step: Step) -> Survey | None:
    """What the survey finds in this tensor alone, where its pieces don't show it."""
    survey = _survey(plan, step) if len(step.slices) > 1 else None
    while survey and survey.share:
        _observe(plan, survey, survey.share, step)
        survey.advance()
    return survey


def _work(plan: Plan, steps: Sequence[Step], needed: Mapping[object, tuple[list[Step], Survey]]) -> float:
    """Of the steps, and of the surveys that they need."""
    return sum(map(plan.work, steps)) + sum(sum(map(_step_touched, group)) for group, _ in needed.values())


def _step_touched(step: Step) -> float:
    return TOUCHED * step.info.numel * max(1, len(step.weights))


def each_step(
    items: Sequence[Step],
    do: Callable[[Step], None],
    plan: Plan,
    resources: Resources,
    progress: Progress,
    work: Callable[[Step], float],
    *,
    in_order: bool = False,
) -> None:
    """Do all steps, most work first unless in order, never more at once than workers and memory allow."""
    waiting = list(items) if in_order else sorted(items, key=work, reverse=True)
    running: dict[Future[None], Step] = {}
    pool = ThreadPoolExecutor(resources.workers, initializer=torch.set_num_threads, initargs=(1,))
    interrupted = False
    try:
        while waiting or running:
            for step in _admitted(waiting, running.values(), plan, resources):
                running[pool.submit(do, step)] = step
            for step in waiting[:1]:
                _announce(plan, step)
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                step = running.pop(future)
                future.result()
                progress.advance(work(step), step.name)
    except KeyboardInterrupt:
        # The steps in flight are left behind: a large one may take minutes, and what it would write isn't noted.
        interrupted = True
        raise
    finally:
        pool.shutdown(wait=not interrupted, cancel_futures=True)


def _announce(plan: Plan, step: Step) -> None:
    """Let the next step's bytes come from the disk while the ones before it are computed."""
    for checkpoint in (plan.base, *(plan.finetuned if step.is_merged else ())):
        checkpoint.will_need(step.name)


def _admitted(waiting: list[Step], running: Iterable[Step], plan: Plan, resources: Resources) -> Iterator[Step]:
    in_work = list(running)
    used = sum(map(plan.working_bytes, in_work))
    room = resources.workers - len(in_work)
    for step in list(waiting):
        if not room:
            return
        needed = plan.working_bytes(step)
        if in_work and resources.max_memory is not None and used + needed > resources.max_memory:
            continue
        waiting.remove(step)
        in_work.append(step)
        used, room = used + needed, room - 1
        yield step


@contextmanager
def one_thread_each() -> Iterator[None]:
    """One BLAS thread a worker: two workers of one thread beat one of two, and the bits stay the same."""
    reuse_freed_memory()
    before = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
