"""CPU time and error of TSV-M on one weight matrix: hf_tsv's two modes against the plain recipe of float32 SVDs.

Run `python benchmarks/bench_kernels.py [MxN ...] [--tasks T] [--repeats R]`. Everything runs on one thread and the time
is that thread's own, so that a busy machine disturbs little; ratios hold within one run. Deltas are synthetic:
singular values j^-0.75, random vectors, 2 % white noise. Errors are relative to the same merge by float64 SVDs.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from hf_tsv.linalg import SvdMode
from hf_tsv.methods import METHODS, Deltas

MODES: tuple[SvdMode, ...] = ("exact", "sketch")


def synthetic_delta(m: int, n: int, seed: int) -> Tensor:
    """(m, n) float32 with a power-law spectrum and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    side = min(m, n)
    u, v = (torch.linalg.qr(torch.randn(size, side, generator=generator))[0] for size in (m, n))
    signal = (u * torch.arange(1, side + 1) ** -0.75) @ v.T
    noise = torch.randn(m, n, generator=generator)
    delta: Tensor = 1e-2 * (signal + 0.02 * signal.norm() / noise.norm() * noise)
    return delta


def by_plain_svd(deltas: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    """TSV-M as the paper's code has it: T full SVDs, and one of each side of the joined singular vectors."""
    rank = min(deltas[0].shape) // len(deltas)
    tasks = [torch.linalg.svd(delta.to(dtype), full_matrices=False) for delta in deltas]
    u = torch.cat([u[:, :rank] for u, _, _ in tasks], dim=1)
    s = torch.cat([s[:rank] for _, s, _ in tasks])
    vh = torch.cat([vh[:rank] for _, _, vh in tasks])
    p_u, _, q_u = torch.linalg.svd(u, full_matrices=False)
    p_v, _, q_v = torch.linalg.svd(vh, full_matrices=False)
    merged: Tensor = ((p_u @ q_u) * s) @ (p_v @ q_v)
    return merged


def by_hf_tsv(deltas: Sequence[Tensor], mode: SvdMode) -> Tensor:
    held = Deltas.of(deltas)
    held.svd = mode
    return METHODS["tsv_m"](held)


def timed(merge: Callable[[], Tensor], repeats: int) -> tuple[float, Tensor]:
    """Median CPU milliseconds of this thread, and the result."""
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        merged = merge()
        times.append(1e3 * (time.thread_time() - start))
    return statistics.median(times), merged


def compare(m: int, n: int, tasks: int, repeats: int) -> None:
    """Print one line a way of merging."""
    deltas = [synthetic_delta(m, n, seed) for seed in range(tasks)]
    reference = by_plain_svd(deltas, torch.float64)
    by_hf_tsv(deltas, "exact")  # load the libraries
    plain, merged = timed(partial(by_plain_svd, deltas), repeats)
    print_line(f"{m}x{n}", tasks, "plain SVD", plain, plain, merged, reference)
    for mode in MODES:
        taken, merged = timed(partial(by_hf_tsv, deltas, mode), repeats)
        print_line(f"{m}x{n}", tasks, mode, taken, plain, merged, reference)


def print_line(shape: str, tasks: int, way: str, taken: float, plain: float, merged: Tensor, reference: Tensor) -> None:
    error = float((merged.double() - reference).norm() / reference.norm())
    print(f"{shape:>10}  T={tasks:<3} {way:<10} {taken:8.0f} ms  {plain / taken:5.1f}x  error {error:.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["768x768", "768x3072"], metavar="MxN")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for shape in arguments.shapes:
            m, n = map(int, shape.split("x"))
            compare(m, n, arguments.tasks, arguments.repeats)


if __name__ == "__main__":
    main()
