"""KnOTS: merge in the space that the tasks' matrices share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hf_tsv.methods import METHODS, Deltas, Matrices, Scale, Tasks, TensorSource, merge_method, per_task
from hf_tsv.methods._sparsify import Share
from hf_tsv.methods._spectral import Tolerance, mean_of_rest


@merge_method(
    "knots",
    paper="https://arxiv.org/abs/2410.19735",
    matrices=Matrices(side=lambda m, n, num_tasks: min(m, num_tasks * n)),
    cost="1 eigendecomposition of side min(m, T n) for an (m, n) matrix, and three times reading the models",
)
def knots(
    deltas: Deltas,
    *,
    inside: Literal["ties", "dare_ties", "dare_linear"] = "ties",
    density: Share = 0.2,
    scale: Scale = 1.0,
    rest_scale: Scale = 1.0,
    seed: int = 0,
    tolerance: Tolerance = 1e-5,
) -> Tensor:
    """Align the tasks by one SVD of all task matrices side by side, and merge their right vectors by TIES or DARE.

    M = scale * U diag(s) merge(Vh_1, ..., Vh_T) with U diag(s) [Vh_1 ... Vh_T] = [Delta_1 ... Delta_T] (Stoica et al.
    2025, section 4), one matrix at a time. Non-matrix tensors get the mean of the deltas.

    Args:
        deltas: T task matrices, (m, n) each, or deltas of a non-matrix tensor.
        inside: The method that merges the right vectors: TIES with its disjoint mean, or DARE.
        density: Share of the right vectors' entries that TIES (the largest by magnitude) or DARE (at random) keeps.
        scale: Factor on merged matrices.
        rest_scale: Factor on the mean of non-matrix tensors.
        seed: Seed of DARE's draw.
        tolerance: Singular values below this share of the largest, whose vectors are arbitrary, are left out.
    """
    if not deltas.is_matrix:
        return mean_of_rest(deltas, rest_scale)
    tasks, densities = deltas.active, per_task(density, len(deltas))
    if not tasks:
        return deltas.zeros()
    # Uses the smaller Gram matrix of [Delta_1 ... Delta_T], in float64; the stack itself is never formed.
    m, n = deltas.shape
    align = _by_rows if m <= len(tasks) * n else _by_columns
    shared = align(deltas, tasks, tolerance)
    if not shared.s.numel():
        return deltas.zeros()
    aligned = Deltas(
        TensorSource(shared.vh, name=deltas.name, offset=deltas.offset),
        Tasks([deltas.tasks[t] for t in tasks], [deltas.weights[t] for t in tasks]),
        shape=(shared.s.numel(), deltas.shape[1]),
        dtype=deltas.dtype,
        is_matrix=True,
    )
    merge = METHODS[inside]
    drawn = {"seed": seed} if "seed" in merge.parameters else {}
    merged = merge(aligned, density=[densities[t] for t in tasks], **drawn)  # (k, n)
    return shared.times(merged).mul_(scale)


@dataclass(frozen=True)
class Shared:
    """An SVD of all task matrices side by side.

    Attributes:
        s: Singular values, (k,) float64.
        vh: Returns the right vectors (k, n) of one of the tasks, by its index among them.
        times: Returns U diag(s) x for x (k, n).
    """

    s: Tensor
    vh: Callable[[int], Tensor]
    times: Callable[[Tensor], Tensor]


def _by_rows(deltas: Deltas, tasks: Sequence[int], tolerance: float) -> Shared:
    """Compute the SVD by sum_t Delta_t Delta_t^T (m, m), whose eigenvectors are U; Vh_t = diag(1 / s) U^T Delta_t."""
    gram = torch.zeros(deltas.shape[0], deltas.shape[0], dtype=torch.float64)
    for t in tasks:
        wide = deltas[t].double()
        gram.addmm_(wide, wide.T)
    s, u = _leading(gram, tolerance)
    u = u.to(deltas.dtype)  # (m, k)
    inverse = (1 / s).to(deltas.dtype)[:, None]  # (k, 1)

    def vh(i: int) -> Tensor:
        return inverse * (u.T @ deltas[tasks[i]])

    def times(x: Tensor) -> Tensor:
        return (u * s.to(u.dtype)) @ x

    return Shared(s, vh, times)


def _by_columns(deltas: Deltas, tasks: Sequence[int], tolerance: float) -> Shared:
    """Compute the SVD by the blocks Delta_i^T Delta_j (n, n), whose eigenvectors are the Vh_t^T stacked."""
    (_, n), num_tasks = deltas.shape, len(tasks)
    gram = torch.zeros(num_tasks, n, num_tasks, n, dtype=torch.float64)  # one matrix of side T n, by blocks
    for i in range(num_tasks):
        tall = deltas[tasks[i]].double()
        for j in range(i + 1):
            product = tall.T @ deltas[tasks[j]].double()
            gram[i, :, j], gram[j, :, i] = product, product.T
    s, v = _leading(gram.reshape(num_tasks * n, -1), tolerance)
    vhs: Sequence[Tensor] = [part.T.to(deltas.dtype) for part in torch.split(v, n)]

    def times(x: Tensor) -> Tensor:  # U diag(s) = sum_t Delta_t Vh_t^T
        total = deltas.zeros()
        for t, vh in zip(tasks, vhs, strict=True):
            total.addmm_(deltas[t], vh.T @ x)
        return total

    return Shared(s, lambda i: vhs[i].clone(), times)


def _leading(gram: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return singular values, descending, and vectors as columns, from a Gram matrix."""
    values, vectors = torch.linalg.eigh(gram)
    s = values.clamp(min=0).sqrt()
    is_resolved = s > tolerance * s.amax() if len(s) else s > 0
    return s[is_resolved].flip(0), vectors[:, is_resolved].flip(1)
