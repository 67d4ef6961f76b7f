"""The methods written down plainly, in the dtype they are given: in float64 they are what results are compared with."""

from collections.abc import Sequence

import torch
from torch import Tensor


def tsv_m(deltas: Sequence[Tensor]) -> Tensor:
    """TSV-M by the singular value decomposition of T matrices (m, n) and two more, as the paper's code does it.

    What is no matrix gets the mean.
    """
    if deltas[0].ndim != 2:
        return torch.stack(list(deltas)).mean(0)
    rank = min(deltas[0].shape) // len(deltas)
    factors = [torch.linalg.svd(delta, full_matrices=False) for delta in deltas]
    u = torch.cat([u[:, :rank] for u, _, _ in factors], dim=1)
    s = torch.cat([s[:rank] for _, s, _ in factors])
    vh = torch.cat([vh[:rank] for _, _, vh in factors])
    return (_polar(u) * s) @ _polar(vh)


def task_arithmetic(deltas: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(deltas)).sum(0)


def ties(deltas: Sequence[Tensor], thresholds: Sequence[float]) -> Tensor:
    """Of the entries that reach their task's threshold, the mean of those with the elected sign.

    Where they cancel, plus is elected, as in mergekit; the paper's code takes the whole vector's majority.
    """
    trimmed = torch.stack([d * (d.abs() >= limit) for d, limit in zip(deltas, thresholds, strict=True)])
    sign = trimmed.sum(0).sign()
    sign[sign == 0] = 1
    agrees = trimmed * sign > 0
    return (trimmed * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def _polar(a: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(a, full_matrices=False)
    polar: Tensor = u @ vh
    return polar
