"""Singular Task Interference: how much the tasks' singular vectors overlap (https://arxiv.org/abs/2412.00081)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_tsv.linalg._factors import Factors
from hf_tsv.linalg._gram import gram


def singular_task_interference(factors: Sequence[Factors]) -> float:
    """||(U^T U - I) S (V^T V - I)||_1 with U, S, V the tasks' triplets side by side; 0 where no two tasks overlap.

    The norm is the entrywise sum of magnitudes: the only reading that gives the size of the paper's figures.

    Args:
        factors: One a task, all of one matrix's shape, of any ranks.
    """
    left, s, right = overlaps(factors)
    return float(((left * s) @ right).abs().sum())


def pairwise_interference(factors: Sequence[Factors]) -> Tensor:
    """||U_i^T U_j S_j V_j^T V_i||_1 for each pair: what task j leaves in task i's directions. (T, T), 0 for i = j."""
    left, s, right = overlaps(factors)
    ranks = [len(f.s) for f in factors]
    onto = [torch.split(rows, ranks, dim=1) for rows in torch.split(left * s, ranks)]
    back = [torch.split(rows, ranks, dim=1) for rows in torch.split(right, ranks)]
    tasks = range(len(factors))
    sums = [(onto[i][j] @ back[j][i]).abs().sum() for i in tasks for j in tasks]
    return torch.stack(sums).reshape(len(ranks), len(ranks))


def overlaps(factors: Sequence[Factors]) -> tuple[Tensor, Tensor, Tensor]:
    """U^T U - I (K, K), s (K,) and V^T V - I (K, K) of all tasks' triplets side by side, in float64.

    The blocks of a task with itself are 0, as its vectors are orthonormal.
    """
    ranks = torch.tensor([len(f.s) for f in factors])
    task = torch.arange(len(factors)).repeat_interleave(ranks)
    others = (task[:, None] != task).to(factors[0].s.device)
    left = _symmetric(gram(torch.cat([f.u for f in factors], dim=1))) * others
    right = _symmetric(gram(torch.cat([f.vh for f in factors]).T)) * others
    return left, torch.cat([f.s for f in factors]).double(), right


def _symmetric(upper: Tensor) -> Tensor:
    return upper.triu() + upper.triu(1).T
