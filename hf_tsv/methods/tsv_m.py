"""TSV-Merge: join every task's leading singular vectors, then undo their interference."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from hf_tsv.linalg import Factors, nearest_orthogonal, truncated_svd
from hf_tsv.methods import Deltas, Matrices, Scale, merge_method

Cut = Literal["auto", "noise", "numerical", "none"]
NUMERICAL_RANK = 1e-6  # of the largest singular value; float32 weights hold nothing below it


def _as_paper(parameters: Mapping[str, Any]) -> bool:
    return parameters.get("parity") == "paper"


@merge_method(
    "tsv_m",
    paper="https://arxiv.org/abs/2412.00081",
    cost="T singular value decompositions and 2 polar factors of a matrix; from factors where the model is an adapter",
    matrices=Matrices(divides_rank=True, as_paper=_as_paper),
)
def tsv_m(
    deltas: Deltas,
    *,
    rank: Annotated[int, Ge(1)] | None = None,
    scale: Scale = 1.0,
    rest_scale: Scale = 1.0,
    cut: Cut = "auto",
    tolerance: Annotated[float, Ge(0), Lt(1)] = 1e-7,
    parity: Literal["none", "paper"] = "none",
) -> Tensor:
    """Give each task an equal share of the rank, then make the tasks' singular vectors orthogonal.

    M = scale * U_perp diag(s) Vh_perp, with U_perp and Vh_perp the nearest orthonormal matrices to all
    tasks' leading left and right singular vectors side by side (Gargiulo et al. 2024, Algorithm 1).
    Non-matrix tensors get the mean of the deltas.

    Args:
        deltas: T task matrices, (m, n) each, or deltas of a non-matrix tensor.
        rank: Triplets kept per task; by default min(m, n) // T, at least 1.
        scale: Factor on merged matrices (the paper's alpha).
        rest_scale: Factor on the mean of non-matrix tensors.
        cut: Singular values that are dropped. `numerical`: up to 1e-6 of the task matrix's largest. `noise`: also those
            that rounding to the stored dtype can explain. `none`: only those beyond `rank`. `auto`: `noise` for
            weights stored in half precision, else `numerical`.
        tolerance: Directions of the joined singular vectors smaller than this share of the largest are
            dropped: they hold only what two tasks already have in common.
        parity: `paper` follows the authors' code exactly: no cut, no tolerance, one scale for everything,
            rank int(min(m, n) * (1 / T)) even if that is 0; conv kernels and text_projection don't count as matrices.
    """
    if parity == "paper":
        cut, tolerance, rest_scale = "none", 0.0, scale
    if not deltas.is_matrix:
        return deltas.weighted_sum().mul_(rest_scale / len(deltas))
    side, num_tasks = min(deltas.shape), len(deltas)
    if rank is None:
        # The authors' product of floats is sometimes one less than the quotient of integers.
        rank = int(side * (1 / num_tasks)) if parity == "paper" else max(1, side // num_tasks)
    u, s, vh = _joined(deltas, rank, cut)
    if not s.numel():
        return deltas.zeros()
    polar = partial(nearest_orthogonal, tolerance=tolerance, sketch=deltas.svd == "sketch")
    left = polar(u).mul_(s)  # (m, K): U_perp diag(s)
    del u  # for a tall matrix, as large as the matrix itself
    merged: Tensor = left @ polar(vh)  # (m, n)
    return merged.mul_(scale)


def _joined(deltas: Deltas, rank: int, cut: Cut) -> tuple[Tensor, Tensor, Tensor]:
    """Return all K triplets of all tasks side by side: u (m, K), s (K,), vh (K, n).

    They are filled in place, because a tall matrix's u is as large as the matrix. Notes per task the rank and the share
    of the squared norm that are kept.
    """
    m, n = deltas.shape
    room = len(deltas) * min(rank, m, n)
    u = torch.empty((m, room), dtype=deltas.dtype)
    s = torch.empty(room, dtype=deltas.dtype)
    vh = torch.empty((room, n), dtype=deltas.dtype)
    used = 0
    ranks, energies = [], []
    for t, weight in enumerate(deltas.weights):
        task = _triplets(deltas, t, rank if weight else 0, cut)  # a task of weight 0 adds no directions either
        end = used + task.s.numel()
        u[:, used:end], s[used:end], vh[used:end] = task.u, weight * task.s, task.vh
        used = end
        of_kept = float(task.s.double().square().sum())
        ranks.append(task.s.numel())
        energies.append(round(of_kept / task.energy, 4) if task.energy else 1.0)
    deltas.notes |= {"rank": ranks, "energy": energies}
    return u[:, :used], s[:used], vh[:used]


def _triplets(deltas: Deltas, t: int, rank: int, cut: Cut) -> Factors:
    """Return one task's leading triplets above the cut, at most `rank`."""
    # Without a cut, a task keeps `rank` triplets, which factors of a lower rank don't have.
    if cut != "none" and (known := deltas.factors(t)):
        return replace(known, u=known.u[:, :rank], s=known.s[:rank], vh=known.vh[:rank])
    rtol = 0.0 if cut == "none" else NUMERICAL_RANK
    ends_at_noise = cut == "noise" or (cut == "auto" and deltas.is_half(t))
    floor = deltas.noise(t) if ends_at_noise else 0.0
    delta = deltas[t]
    with deltas.naming(t):
        return truncated_svd(delta, rank, mode=deltas.svd, rtol=rtol, floor=floor)
