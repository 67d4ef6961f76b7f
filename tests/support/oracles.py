"""Merge methods transcribed, in float64, from their papers or their authors' code, for the tests that share them."""

from collections.abc import Callable

import torch
from torch import Tensor


def svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(a.double(), full_matrices=False)
    return u, s, vh


def polar(a: Tensor) -> Tensor:
    u, _, vh = svd(a)
    return u @ vh


def tsv_m(deltas: Tensor, rank: int | None = None) -> Tensor:
    """Algorithm 1 of arXiv 2412.00081 in float64, by full singular value decompositions."""
    k = rank or min(deltas.shape[1:]) // len(deltas)
    factors = [svd(delta) for delta in deltas]
    u = torch.cat([u[:, :k] for u, _, _ in factors], dim=1)  # (m, T*k)
    s = torch.cat([s[:k] for _, s, _ in factors])
    vh = torch.cat([vh[:k] for _, _, vh in factors])  # (T*k, n)
    return polar(u) @ torch.diag(s) @ polar(vh)


def ties(deltas: Tensor, density: float, *, mean: bool = True) -> Tensor:
    """Trim, elect, disjoint merge (arXiv 2306.01708, section 4), in float64 over flat vectors."""
    flat = deltas.double().flatten(1)
    kth = flat.shape[1] - int(flat.shape[1] * density)
    thresholds = flat.abs().kthvalue(max(kth, 1), dim=1, keepdim=True).values
    flat = torch.where(flat.abs() >= thresholds, flat, 0.0)
    sign = flat.sum(0).sign()
    agree = torch.where(flat.sign() == sign, flat, 0.0)
    total = agree.sum(0)
    return (total / (agree != 0).sum(0).clamp(min=1) if mean else total).reshape(deltas.shape[1:])


Products = list[tuple[Tensor, Tensor]]


def core_space(products: Products, merge: Callable[[Tensor], Tensor]) -> Tensor:
    """`get_core_matrices` of apanariello4/core-space-merging, by the singular vectors of every factor, and back."""
    u_ref, vh_ref = svd(torch.cat([b for b, _ in products], 1))[0], svd(torch.cat([a for _, a in products]))[2]
    cores = []
    for b, a in products:
        (ub, sb, vhb), (ua, sa, vha) = svd(b), svd(a)
        cores.append(u_ref.T @ ub @ torch.diag(sb) @ vhb @ ua @ torch.diag(sa) @ vha @ vh_ref.T)
    return u_ref @ merge(torch.stack(cores)) @ vh_ref


def core_ties(cores: Tensor, density: float) -> Tensor:
    """`ties_merging` of that repository, of one layer's core matrices."""
    flat = cores.flatten(1)
    kth = flat.abs().kthvalue(flat.shape[1] - int(flat.shape[1] * density), dim=1, keepdim=True).values
    flat = flat * (flat.abs() >= kth)
    agrees = flat * (flat.sign() == flat.sum(0).sign())
    return (agrees.sum(0) / (agrees != 0).sum(0).clamp(min=1)).reshape(cores.shape[1:])
