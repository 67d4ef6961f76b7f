"""Singular Task Interference: how much the tasks' singular vectors overlap (https://arxiv.org/abs/2412.00081)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hf_tsv.linalg._factors import Factors
from hf_tsv.linalg._gram import gram, symmetric
from hf_tsv.linalg._polar import nearest_orthogonal


def singular_task_interference(factors: Sequence[Factors]) -> float:
    """Return ||(U^T U - I) S (V^T V - I)||_1 with U, S, V the tasks' triplets side by side; 0 if no tasks overlap.

    The norm is the entrywise sum of magnitudes: the only reading that reproduces the size of the paper's figures.

    Args:
        factors: One per task, all for matrices of one shape, of any ranks.
    """
    left, s, right = overlaps(factors)
    return float(((left * s) @ right).abs().sum())


def interference_left(factors: Sequence[Factors], *, tolerance: float = 1e-7) -> float:
    """Return `singular_task_interference` after TSV-Merge has made the tasks' singular vectors orthogonal.

    0 up to rounding, except for directions that two tasks share and that `nearest_orthogonal` therefore drops.

    Args:
        factors: One per task, before they are made orthogonal.
        tolerance: The tolerance of `nearest_orthogonal`.
    """
    s = torch.cat([f.s for f in factors]).double()  # (K,)
    if not len(s):
        return 0.0
    left = _defect(nearest_orthogonal(torch.cat([f.u for f in factors], dim=1), tolerance=tolerance))
    right = _defect(nearest_orthogonal(torch.cat([f.vh for f in factors]), tolerance=tolerance).T)
    return float(((left * s) @ right).abs().sum())


def interference_by_chance(factors: Sequence[Factors]) -> tuple[float, Tensor]:
    """Return the means of `singular_task_interference` and `pairwise_interference` (T, T) for tasks whose singular
    vectors are unrelated.

    The inner product of vectors from two random subspaces of R^m has variance 1 / m, so each entry of the product
    is close to normal with variance sum_l s_l^2 / (m n) over the triplets l of the tasks that take part in it.
    """
    m, n = len(factors[0].u), factors[0].vh.shape[1]
    tasks = range(len(factors))
    unit = math.sqrt(2 / (math.pi * m * n))  # mean of |x| for x normal with variance 1 / (m n)
    ranks = torch.tensor([len(f.s) for f in factors], dtype=torch.float64)
    energies = torch.stack([f.s.double().square().sum() for f in factors])
    others = torch.empty(len(factors), len(factors))  # energy of all tasks except i and j (one task where i = j)
    for i in tasks:
        for j in tasks:
            others[i, j] = float(energies.sum() - energies[list({i, j})].sum())
    both = ranks[:, None] * ranks * others.clamp(min=0).sqrt()
    pairs = ranks[:, None] ** 2 * energies.sqrt() * (1 - torch.eye(len(ranks)))
    return float(both.sum()) * unit, pairs * unit


def pairwise_interference(factors: Sequence[Factors]) -> Tensor:
    """Return ||U_i^T U_j S_j V_j^T V_i||_1, task j's part in task i's directions, per pair: (T, T), 0 for i = j."""
    left, s, right = overlaps(factors)
    ranks = [len(f.s) for f in factors]
    # Blocks by task: onto[i][j] is U_i^T U_j S_j (k_i, k_j), back[j][i] is V_j^T V_i (k_j, k_i).
    onto = [torch.split(rows, ranks, dim=1) for rows in torch.split(left * s, ranks)]
    back = [torch.split(rows, ranks, dim=1) for rows in torch.split(right, ranks)]
    sums = []
    for i in range(len(factors)):
        for j in range(len(factors)):
            product = onto[i][j] @ back[j][i]  # (k_i, k_i)
            sums.append(product.abs().sum())
    return torch.stack(sums).reshape(len(ranks), len(ranks))


def overlaps(factors: Sequence[Factors]) -> tuple[Tensor, Tensor, Tensor]:
    """Return U^T U - I (K, K), s (K,) and V^T V - I (K, K) of all tasks' triplets side by side, in float64.

    Each task's block with itself is set to 0, because its vectors are orthonormal.
    """
    ranks = torch.tensor([len(f.s) for f in factors])
    task = torch.arange(len(factors)).repeat_interleave(ranks)  # (K,): the task of each triplet
    others = (task[:, None] != task).to(factors[0].s.device)
    left = symmetric(gram(torch.cat([f.u for f in factors], dim=1))) * others
    right = symmetric(gram(torch.cat([f.vh for f in factors]).T)) * others
    return left, torch.cat([f.s for f in factors]).double(), right


def _defect(u: Tensor) -> Tensor:
    """Return u^T u - I in float64."""
    return symmetric(gram(u)) - torch.eye(u.shape[1], dtype=torch.float64, device=u.device)
