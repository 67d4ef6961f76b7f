"""A pool of workers over steps, within the memory that a run may use."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial

import torch
from threadpoolctl import threadpool_limits

from hf_tsv.merging.cost import step_bytes, step_work
from hf_tsv.merging.plan import Plan, Step
from hf_tsv.merging.progress import Progress
from hf_tsv.merging.resources import Resources


def each_step(
    steps: Sequence[Step],
    do: Callable[[Step], None],
    plan: Plan,
    resources: Resources,
    progress: Progress,
    *,
    work: Callable[[Step], float] | None = None,
    in_order: bool = False,
) -> None:
    """Do all steps, most work first unless in order, never more at once than workers and memory allow.

    Args:
        steps: The steps.
        do: What to do with each, in a worker's thread.
        plan: The plan that they are part of.
        resources: What may be used of the machine.
        progress: Told of the work done.
        work: The work of a step; that of merging it unless given.
        in_order: Whether to begin the steps in the order in which they are given.

    Raises:
        Exception: what `do` raises first; steps that have begun are finished, the others are not begun.
    """
    work = work or partial(step_work, plan)
    # The largest step first: begun last, it would run on alone when all other workers have nothing left to do.
    waiting = list(steps) if in_order else sorted(steps, key=work, reverse=True)
    running: dict[Future[None], Step] = {}
    pool = ThreadPoolExecutor(resources.workers, initializer=torch.set_num_threads, initargs=(1,))
    interrupted = False
    try:
        while waiting or running:
            for step in _admitted(waiting, running.values(), plan, resources):
                running[pool.submit(do, step)] = step
            if waiting:
                # The next step's bytes come from the disk while the steps before it are computed.
                upcoming = waiting[0]
                plan.base.will_need(upcoming.name)
                if upcoming.is_merged:
                    for checkpoint in plan.finetuned:
                        checkpoint.will_need(upcoming.name)
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                step = running.pop(future)
                future.result()  # raises what the worker did
                progress.advance(work(step), step.name)
    except KeyboardInterrupt:
        # The steps in flight are left behind: a large one may take minutes, and what it would write isn't noted.
        interrupted = True
        raise
    finally:
        pool.shutdown(wait=not interrupted, cancel_futures=True)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """One BLAS thread a worker: two workers of one thread beat one of two, and the bits stay the same."""
    threads_before = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads_before)


def _admitted(waiting: list[Step], running: Iterable[Step], plan: Plan, resources: Resources) -> Iterator[Step]:
    """Take from the waiting steps those that may begin now."""
    in_work = list(running)
    used_bytes = sum(step_bytes(plan, step) for step in in_work)
    free_workers = resources.workers - len(in_work)
    for step in list(waiting):
        if not free_workers:
            return
        nbytes = step_bytes(plan, step)
        # A step that is too large for what is left may wait; smaller ones behind it go first. Alone, any step goes.
        if in_work and resources.max_memory is not None and used_bytes + nbytes > resources.max_memory:
            continue
        waiting.remove(step)
        in_work.append(step)
        used_bytes += nbytes
        free_workers -= 1
        yield step
