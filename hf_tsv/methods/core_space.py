"""Core Space: merge adapters in the small space that their factors span."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from hf_tsv.linalg import truncated_svd
from hf_tsv.methods import METHODS, Deltas, Matrices, Scale, Tasks, TensorSource, merge_method, per_task
from hf_tsv.methods._sparsify import Share
from hf_tsv.methods._spectral import Tolerance, mean_of_rest

Inside = Literal["ties", "dare_ties", "dare_linear", "tsv_m", "iso_c", "iso_cts", "cart"]


@merge_method(
    "core_space",
    paper="https://arxiv.org/abs/2509.17786",
    matrices=Matrices(side=lambda m, n, num_tasks: min(max(m, n), num_tasks * min(m, n))),
    cost="2 singular value decompositions of stacked factors; for models that aren't adapters T more, of a matrix each",
)
def core_space(
    deltas: Deltas,
    *,
    inside: Inside = "ties",
    density: Share = 0.2,
    scale: Scale = 1.0,
    rest_scale: Scale = 1.0,
    seed: int = 0,
    tolerance: Tolerance = 1e-6,
) -> Tensor:
    """Rotate all adapters into one small space without loss, merge them there by another method, and rotate back.

    M = scale * U merge(U^T Delta_1 V, ..., U^T Delta_T V) V^T, with Delta_t = B_t A_t as the adapter stores it, U the
    left singular vectors of [B_1 ... B_T] and V^T the right ones of [A_1; ...; A_T] (Panariello et al. 2025), one
    matrix at a time. TIES and DARE work on entries, so their result depends on how an adapter is split into B and A, as
    in the authors' code. For a whole model B_t = U_t sqrt(s_t) and A_t = sqrt(s_t) Vh_t, the factors that
    `hf-tsv compress` writes. Non-matrix tensors get the mean of the deltas.

    Args:
        deltas: T task matrices, (m, n) each, or deltas of a non-matrix tensor.
        inside: The method that merges in the small space, with its defaults except `density` and `seed`.
        density: Share of the entries that TIES (the largest by magnitude) or DARE (at random) keeps.
        scale: Factor on merged matrices.
        rest_scale: Factor on the mean of non-matrix tensors.
        seed: Seed of DARE's draw.
        tolerance: Directions below this share of the largest, which are arbitrary, are left out of U and V.
    """
    if not deltas.is_matrix:
        return mean_of_rest(deltas, rest_scale)
    tasks, densities = deltas.active, per_task(density, len(deltas))
    if not tasks:
        return deltas.zeros()
    # U (m, p) and V (n, q): bases of the spaces that all tasks' factors span together.
    left = _basis((_product(deltas, t, tolerance)[0] for t in tasks), tolerance)
    right = _basis((_product(deltas, t, tolerance)[1].T for t in tasks), tolerance)
    if not left.numel() or not right.numel():
        return deltas.zeros()

    def core(i: int) -> Tensor:
        b, a = _product(deltas, tasks[i], tolerance)
        return (left.T @ b) @ (a @ right)  # (p, q)

    cores = Deltas(
        TensorSource(core, name=deltas.name),
        Tasks([deltas.tasks[t] for t in tasks], [deltas.weights[t] for t in tasks]),
        shape=(left.shape[1], right.shape[1]),
        dtype=torch.float64,
        is_matrix=True,
    )
    merge = METHODS[inside]
    given: dict[str, Any] = {}
    if "density" in merge.parameters:
        given["density"] = [densities[t] for t in tasks]
    if "seed" in merge.parameters:
        given["seed"] = seed
    merged: Tensor = (left @ merge(cores, **given)) @ right.T  # (m, n)
    return merged.mul_(scale).to(deltas.dtype)


def _product(deltas: Deltas, t: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return task t's B (m, r) and A (r, n), float64."""
    if stored := deltas.product(t):
        return stored[0].double(), stored[1].double()
    floor = deltas.noise(t) if deltas.is_half(t) else 0.0
    own = truncated_svd(deltas[t], min(deltas.shape), rtol=tolerance, floor=floor)
    root = own.s.double().sqrt()
    return own.u.double() * root, root[:, None] * own.vh.double()


def _basis(parts: Iterable[Tensor], tolerance: float) -> Tensor:
    """Return the left singular vectors of (m, r_t) matrices side by side: (m, k), the leading ones first."""
    stack = torch.empty(0)
    for part in parts:
        stack = torch.cat([stack.reshape(len(part), -1).to(part), part], dim=1)
        if stack.shape[1] > stack.shape[0]:  # U diag(s) has the same left singular vectors and takes less memory
            svd = truncated_svd(stack, len(stack), rtol=0.0)
            stack = svd.u * svd.s
    return truncated_svd(stack, min(stack.shape), rtol=tolerance).u
