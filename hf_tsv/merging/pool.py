"""A pool of workers that processes steps within the run's memory limit."""

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
    """Call `do` with every step, never with more at once than workers and memory allow.

    Args:
        steps: The steps.
        do: Function that is called with each step, in a worker's thread.
        plan: The steps' plan.
        resources: The workers and memory to use.
        progress: Notified of the work done.
        work: Function that returns the work of a step (default: the work of merging it).
        in_order: True to begin the steps in the given order; False to begin with the most work.

    Raises:
        Exception: the first exception that `do` raises; steps that have begun are finished, the others are not begun.
    """
    work = work or partial(step_work, plan)
    # The largest step goes first: begun last, it would still be running when all other workers have finished.
    waiting = list(steps) if in_order else sorted(steps, key=work, reverse=True)
    running: dict[Future[None], Step] = {}
    pool = ThreadPoolExecutor(resources.workers, initializer=torch.set_num_threads, initargs=(1,))
    interrupted = False
    try:
        while waiting or running:
            for step in _admitted(waiting, running.values(), plan, resources):
                running[pool.submit(do, step)] = step
            if waiting:
                # The next step's bytes are read from the disk while the steps before it are computed.
                upcoming = waiting[0]
                plan.base.will_need(upcoming.name)
                if upcoming.is_merged:
                    for checkpoint in plan.finetuned:
                        checkpoint.will_need(upcoming.name)
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                step = running.pop(future)
                future.result()  # raises the worker's exception, if any
                progress.advance(work(step), step.name)
    except KeyboardInterrupt:
        # Don't wait for the running steps: a large one may take minutes, and its result wouldn't be noted.
        interrupted = True
        raise
    finally:
        pool.shutdown(wait=not interrupted, cancel_futures=True)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Limit each worker to one BLAS thread: two workers with one thread each beat one with two, to the same bits."""
    threads_before = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads_before)


def _admitted(waiting: list[Step], running: Iterable[Step], plan: Plan, resources: Resources) -> Iterator[Step]:
    """Remove the steps that may begin now from `waiting`, and yield them."""
    in_work = list(running)
    used_bytes = sum(step_bytes(plan, step) for step in in_work)
    free_workers = resources.workers - len(in_work)
    for step in list(waiting):
        if not free_workers:
            return
        nbytes = step_bytes(plan, step)
        # A step that is too large for the memory left waits, and smaller ones go first. Alone, any step may run.
        if in_work and resources.max_memory is not None and used_bytes + nbytes > resources.max_memory:
            continue
        waiting.remove(step)
        in_work.append(step)
        used_bytes += nbytes
        free_workers -= 1
        yield step
