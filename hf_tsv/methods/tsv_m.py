"""TSV-Merge: join every task's leading singular vectors, then undo their interference."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from hf_tsv.linalg import Factors, IllConditionedError, SvdMode, nearest_orthogonal, truncated_svd
from hf_tsv.methods._deltas import Deltas
from hf_tsv.methods._registry import merge_method

Cut = Literal["auto", "noise", "numerical", "none"]
NUMERICAL_RANK = 1e-6  # of the largest singular value; below it fp32 weights hold nothing


@merge_method(
    "tsv_m",
    paper="https://arxiv.org/abs/2412.00081",
    matrices=True,
    cost="T singular value decompositions and 2 polar factors of a matrix; from factors where the model is an adapter",
)
def tsv_m(
    deltas: Deltas,
    *,
    rank: Annotated[int, Ge(1)] | None = None,
    scale: float = 1.0,
    rest_scale: float = 1.0,
    cut: Cut = "auto",
    tolerance: Annotated[float, Ge(0), Lt(1)] = 1e-7,
    parity: Literal["none", "paper"] = "none",
) -> Tensor:
    """Give each task an equal share of the rank, then make the tasks' singular vectors orthogonal.

    M = scale * U_perp diag(s) Vh_perp, with U_perp and Vh_perp the nearest orthonormal matrices to all
    tasks' leading left and right singular vectors side by side (Gargiulo et al. 2024, Algorithm 1).
    What is no matrix gets the mean of the deltas.

    Args:
        deltas: T task matrices, (m, n) each, or deltas of a tensor that is no matrix.
        rank: Triplets kept per task; min(m, n) // T, at least 1, unless given.
        scale: Factor on merged matrices (the paper's alpha).
        rest_scale: Factor on the mean of what is no matrix.
        cut: Where a task matrix ends. `numerical`: at 1e-6 of its largest singular value. `noise`: also at what
            rounding to the stored dtype explains. `none`: at `rank`. `auto`: noise for what is
            stored in half precision, else numerical.
        tolerance: Directions of the joined singular vectors smaller than this share of the largest are
            dropped: they carry nothing but what two tasks have in common already.
        parity: `paper` follows the authors' code to the letter: no cut, no tolerance, one scale for everything,
            rank int(min(m, n) * (1 / T)) even when that is 0; conv kernels and text_projection count as no matrices.
    """
    if parity == "paper":
        cut, tolerance, rest_scale = "none", 0.0, scale
    if not deltas.is_matrix:
        return deltas.weighted_sum().mul_(rest_scale / len(deltas))
    rank = rank or _equal_share(deltas, parity)
    try:
        return _merged(deltas, rank, cut, tolerance, deltas.svd).mul_(scale)
    except IllConditionedError:  # tasks so alike that what `fast` left open would show
        merged = _merged(deltas, rank, cut, tolerance, "exact").mul_(scale)
        deltas.notes["fell_back"] = len(deltas)
        return merged


def _merged(deltas: Deltas, rank: int, cut: Cut, tolerance: float, mode: SvdMode) -> Tensor:
    tasks, u, s, vh = _joined(deltas, rank, cut, mode)
    deltas.notes |= _notes(tasks)
    if not s.numel():
        return deltas.zeros()
    error = max(task.error for task in tasks)
    polar = partial(nearest_orthogonal, tolerance=tolerance, error=error, sketch=mode == "sketch")
    left = polar(u).mul_(s)
    del u  # of a tall matrix as large as the matrix itself
    return left @ polar(vh)


def _equal_share(deltas: Deltas, parity: str) -> int:
    side = min(deltas.shape)
    return int(side * (1 / len(deltas))) if parity == "paper" else max(1, side // len(deltas))


def _joined(deltas: Deltas, rank: int, cut: Cut, mode: SvdMode) -> tuple[list[Factors], Tensor, Tensor, Tensor]:
    """What is known of each task's triplets, and all of them side by side: u (m, K), s (K,), vh (K, n).

    Filled in place, because a tall matrix's u is as large as the matrix.
    """
    (m, n), room = deltas.shape, len(deltas) * min(rank, *deltas.shape)
    u = torch.empty((m, room), dtype=deltas.dtype)
    s = torch.empty(room, dtype=deltas.dtype)
    vh = torch.empty((room, n), dtype=deltas.dtype)
    used, told = 0, []
    for t, weight in enumerate(deltas.weights):
        task = _triplets(deltas, t, rank if weight else 0, cut, mode)
        end = used + task.s.numel()
        u[:, used:end], s[used:end], vh[used:end] = task.u, weight * task.s, task.vh
        used = end
        told.append(replace(task, u=task.u[:, :0], vh=task.vh[:0]))
    return told, u[:, :used], s[:used], vh[:used]


def _triplets(deltas: Deltas, t: int, rank: int, cut: Cut, mode: SvdMode) -> Factors:
    # Without a cut a task keeps `rank` triplets, and factors of a lower rank don't have as many.
    if cut != "none" and (known := deltas.factors(t)):
        return replace(known, u=known.u[:, :rank], s=known.s[:rank], vh=known.vh[:rank])
    rtol = 0.0 if cut == "none" else NUMERICAL_RANK
    floor = deltas.noise(t) if cut == "noise" or (cut == "auto" and deltas.is_half(t)) else 0.0
    delta = deltas[t]
    with deltas.naming(t):
        return truncated_svd(delta, rank, mode=mode, rtol=rtol, floor=floor)


def _notes(tasks: Sequence[Factors]) -> dict[str, Any]:
    """For the record: per task the rank kept and the share of the squared norm in it."""
    kept = [float(task.s.double().square().sum()) for task in tasks]
    energy = [share / task.energy if task.energy else 1.0 for share, task in zip(kept, tasks, strict=True)]
    notes: dict[str, Any] = {"rank": [task.s.numel() for task in tasks], "energy": [round(e, 4) for e in energy]}
    if fell_back := sum(task.fell_back for task in tasks):
        notes["fell_back"] = fell_back
    return notes
