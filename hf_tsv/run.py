"""The engine: for each planned tensor read, merge, write. The only place where all parts meet."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from hf_tsv import linalg
from hf_tsv.checkpoint import HALVES, AdapterCheckpoint
from hf_tsv.errors import MethodError, ResourceError
from hf_tsv.loaders import TORCH_DTYPES
from hf_tsv.methods import METHODS, Deltas, Survey
from hf_tsv.planner import Plan, Step

ARITHMETIC = {"float32": torch.float32, "float64": torch.float64}

Item = TypeVar("Item")


class Sink(Protocol):
    """Where merged tensors go: a writer of files, or a state dict."""

    def put(self, step: Step, tensor: Tensor, facts: Mapping[str, Any]) -> None: ...


class Progress(Protocol):
    """Told how much work there is and, in the same unit, how much has been done."""

    def begin(self, total: float) -> None: ...

    def advance(self, work: float, name: str) -> None: ...


class Silent:
    """Progress that nobody watches."""

    def begin(self, total: float) -> None: ...

    def advance(self, work: float, name: str) -> None: ...


@dataclass(frozen=True)
class Resources:
    """What a run may use of the machine.

    Attributes:
        workers: Steps in work at once, each on one processor core.
        max_memory: Bytes that the steps in work may take together, None for no limit.
    """

    workers: int
    max_memory: int | None = None


def run(plan: Plan, steps: Sequence[Step], sink: Sink, resources: Resources, progress: Progress) -> None:
    """Merge the given steps of a plan, in any order, largest first.

    Every step runs on one core whatever the number of workers, so that its bits don't depend on it.

    Raises:
        HfTsvError: a source can't be read, holds NaN or infinity, or can't be merged; or the output is full.
    """
    surveyed = _surveyed(steps)
    passes = [(key, group, survey) for key, (group, survey) in _surveys(plan, surveyed).items()]
    progress.begin(sum(map(plan.work, steps)) + sum(s.passes * _touched(group) for _, group, s in passes))
    surveys: dict[object, Survey] = {}
    with _one_thread_each():
        for key, group, survey in passes:
            for _ in range(survey.passes):
                _each(group, partial(_observe, plan, survey), plan, resources, progress, _step_touched)
                survey.advance()
            surveys[key] = survey
        do = partial(_do, plan, surveys, sink)
        _each(steps, do, plan, resources, progress, plan.work)


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


def merge_step(plan: Plan, step: Step, survey: Survey | None = None) -> tuple[Tensor, dict[str, Any]]:
    """One output tensor in its output dtype, and what the method noted about it.

    Raises:
        MethodError: NaN or infinity in a delta, or a method that can't merge it; names tensor and task.
    """
    method = METHODS[step.method]
    view = step.view if method.matrices else None
    count = view.count if view else 1
    slices = [(i, i + 1) for i in range(count)] if count > 1 else [None]
    merged = [_merge_slice(plan, step, survey, rows) for rows in slices]
    notes = merged[0][1] if count == 1 else {key: [n.get(key) for _, n in merged] for key in merged[0][1]}
    out = merged[0][0] if count == 1 else torch.cat([tensor for tensor, _ in merged])
    return out.reshape(step.info.shape), notes


def _merge_slice(
    plan: Plan, step: Step, survey: Survey | None, rows: tuple[int, int] | None
) -> tuple[Tensor, dict[str, Any]]:
    source = _Source(plan, step, rows)
    out_dtype = TORCH_DTYPES[step.out.dtype]
    if not step.is_merged:
        return source.base.to(out_dtype), {}
    method = METHODS[step.method]
    if not method.of_weights and not source.changed():
        return source.base.to(out_dtype), {"unchanged": True}
    deltas = source.deltas(survey)
    try:
        merged = method(deltas, **step.parameters)
    except MethodError as error:
        raise MethodError(f"{step.name} {step.info.shape}, {step.method}: {error}") from error
    except torch.OutOfMemoryError as error:
        raise ResourceError(f"{step.name}: out of memory. Use fewer --workers") from error
    return merged.reshape(source.base.shape).add_(source.base).to(out_dtype), deltas.notes


class _Source:
    """One tensor (or one expert of it) as the base and the fine-tuned models store it."""

    def __init__(self, plan: Plan, step: Step, rows: tuple[int, int] | None) -> None:
        self._plan = plan
        self._step = step
        self._rows = rows
        self._dtype = ARITHMETIC[plan.recipe.dtype]
        self._kept: tuple[object, Tensor] | None = None
        self.base = plan.base.read(step.name, rows)

    def changed(self) -> bool:
        """Whether any task changed it. Stops at the first that did, which then need not be read again."""
        return any(map(self._is_changed, range(len(self._plan.tasks))))

    def deltas(self, survey: Survey | None = None) -> Deltas:
        view = self._step.view if METHODS[self._step.method].matrices else None
        halves = [c.info(self._step.name).dtype in HALVES for c in self._plan.finetuned]
        return Deltas(
            self._delta,
            shape=(view.m, view.n) if view else self._step.info.shape,
            dtype=self._dtype,
            tasks=self._plan.tasks,
            weights=self._step.weights,
            is_matrix=view is not None,
            svd=self._plan.recipe.svd,
            survey=survey,
            base=lambda: self.base.to(self._dtype, copy=True),
            noise=self._noise,
            half=[half and not self._adapter(t) for t, half in enumerate(halves)],
            base_weight=self._step.base_weight,
            factors=self._factors if view else None,
        )

    def _adapter(self, t: int) -> AdapterCheckpoint | None:
        checkpoint = self._plan.finetuned[t]
        return checkpoint if isinstance(checkpoint, AdapterCheckpoint) else None

    def _is_changed(self, t: int) -> bool:
        adapter = self._adapter(t)
        return adapter.is_changed(self._step.name) if adapter else not torch.equal(self._stored(t), self.base)

    def _stored(self, t: int) -> Tensor:
        checkpoint = self._plan.finetuned[t]
        if self._kept is None or self._kept[0] is not checkpoint:
            self._kept = (checkpoint, checkpoint.read(self._step.name, self._rows))
        return self._kept[1]

    def _delta(self, t: int) -> Tensor:
        if adapter := self._adapter(t):
            delta = adapter.delta(self._step.name, self.base, self._dtype, self._rows)
        else:
            delta = self._stored(t).to(self._dtype, copy=True).sub_(self.base)
        self._check_finite(t, delta)
        view = self._step.view if METHODS[self._step.method].matrices else None
        return delta.reshape(view.m, view.n) if view else delta

    def _factors(self, t: int) -> linalg.Factors | None:
        adapter, view = self._adapter(t), self._step.view
        if adapter is None or view is None:
            return None
        if not adapter.is_changed(self._step.name):
            nothing = self.base.new_empty(0, dtype=self._dtype)
            return linalg.Factors(nothing.reshape(view.m, 0), nothing, nothing.reshape(0, view.n), energy=0.0)
        found = adapter.low_rank(self._step.name, self._rows[0] if self._rows else None)
        if found is None or (len(found.b), found.a.shape[1]) != (view.m, view.n):
            return None
        b, a = found.b.to(self._dtype), found.a.to(self._dtype)
        self._check_finite(t, b, a)
        return linalg.factored_svd(b, a, found.scale)

    def _check_finite(self, t: int, *tensors: Tensor) -> None:
        """An adapter's change shows nothing of the base, which is therefore looked at itself."""
        if self._base_is_finite and all(map(_is_finite, tensors)):
            return
        at_fault = f"task '{self._plan.tasks[t]}'" if self._base_is_finite else self._plan.base.label
        raise MethodError(f"the weights of {at_fault} hold NaN or infinity. Get them again, or leave them out")

    @cached_property
    def _base_is_finite(self) -> bool:
        return _is_finite(self.base)

    def _noise(self, t: int) -> float:
        view = self._step.view
        if self._adapter(t):
            return 0.0
        stored = self._stored(t)
        return linalg.rounding_edge(stored.reshape(view.m, view.n), stored.dtype) if view else 0.0


def _is_finite(tensor: Tensor) -> bool:
    """A sum is the cheapest look at every element; only when it is odd is a closer one worth its time."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def _do(plan: Plan, surveys: Mapping[object, Survey], sink: Sink, step: Step) -> None:
    started = time.perf_counter()
    tensor, notes = merge_step(plan, step, surveys.get(_survey_key(step)))
    sink.put(step, tensor, {**notes, "seconds": round(time.perf_counter() - started, 3)})


def _observe(plan: Plan, survey: Survey, step: Step) -> None:
    try:
        for t, delta in enumerate(_Source(plan, step, None).deltas()):
            survey.observe(t, delta)
    except MethodError as error:
        raise MethodError(f"{step.name} {step.info.shape}, {step.method}: {error}") from error


def _surveyed(steps: Iterable[Step]) -> dict[object, list[Step]]:
    """The steps whose method looks at whole task vectors first, by method and what its survey depends on."""
    found: dict[object, list[Step]] = {}
    for step in steps:
        if (key := _survey_key(step)) is not None:
            found.setdefault(key, []).append(step)
    return found


def _survey_key(step: Step) -> object:
    method = METHODS[step.method]
    return (method.name, repr(method.survey_parameters(step.parameters))) if method.survey else None


def _surveys(plan: Plan, surveyed: Mapping[object, list[Step]]) -> dict[object, tuple[list[Step], Survey]]:
    found: dict[object, tuple[list[Step], Survey]] = {}
    for key, group in surveyed.items():
        method, whole = METHODS[group[0].method], [step for step in plan.steps if _survey_key(step) == key]
        survey = method.make_survey(ARITHMETIC[plan.recipe.dtype], len(plan.tasks), group[0].parameters)
        if survey is not None:
            found[key] = (whole, survey)
    return found


def _touched(steps: Iterable[Step]) -> float:
    return sum(map(_step_touched, steps))


def _step_touched(step: Step) -> float:
    return 10.0 * step.info.numel * max(1, len(step.weights))


def _each(
    items: Sequence[Step],
    do: Callable[[Step], None],
    plan: Plan,
    resources: Resources,
    progress: Progress,
    work: Callable[[Step], float],
) -> None:
    """Do all steps, most work first, never more at once than workers and memory allow."""
    waiting = sorted(items, key=work, reverse=True)
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
def _one_thread_each() -> Iterator[None]:
    """One BLAS thread a worker: two workers of one thread beat one of two, and the bits stay the same."""
    before = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
