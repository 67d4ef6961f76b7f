"""TSV-M of one matrix on one thread, by hf_tsv and by torch's SVD taking turns: the cases of `bench_kernels`.

python -m benchmarks.one_matrix M N T ROUNDS     prints JSON: by contender, its seconds a round and its error
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks.bench_kernels import MODES, by_hf_tsv, by_plain_svd, synthetic_delta

PEER = "torch SVD in float32"


def compare(m: int, n: int, num_tasks: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds of each contender in each round, and its relative error against float64."""
    deltas = [synthetic_delta(m, n, seed) for seed in range(num_tasks)]
    contenders = {PEER: partial(by_plain_svd, deltas)}
    contenders |= {f"hf-tsv, {mode}": partial(by_hf_tsv, deltas, mode) for mode in MODES}
    wanted = by_plain_svd(deltas, torch.float64)
    by_hf_tsv(deltas, "exact")  # load the libraries
    told: dict[str, dict[str, Any]] = {name: {"seconds": []} for name in contenders}
    for _ in range(rounds):
        for name, merge in contenders.items():
            merged, seconds = _timed(merge)
            told[name]["seconds"].append(seconds)
            told[name]["error"] = float((merged - wanted).norm() / wanted.norm())
    return told


def _timed(merge: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """The result, and this thread's processor time: what else the machine does hardly counts."""
    start = time.thread_time()
    merged = merge()
    return merged, time.thread_time() - start


if __name__ == "__main__":
    torch.set_num_threads(1)
    with threadpool_limits(1):
        print(json.dumps(compare(*map(int, sys.argv[1:]))))
