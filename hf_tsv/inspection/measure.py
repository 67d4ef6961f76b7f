"""One pass over the task vectors of a recipe, which measures a few numbers per task and tensor."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from hf_tsv.checkpoints.modules import Kind
from hf_tsv.checkpoints.protocol import TensorInfo
from hf_tsv.errors import MethodError
from hf_tsv.linalg import (
    Factors,
    interference_by_chance,
    interference_left,
    pairwise_interference,
    singular_task_interference,
    truncated_svd,
)
from hf_tsv.linalg import masks as mask_bits
from hf_tsv.linalg.masks import Use
from hf_tsv.linalg.ranks import Spectrum, pooled
from hf_tsv.merging.cost import total_work
from hf_tsv.merging.engine import check_memory
from hf_tsv.merging.plan import Plan, Step
from hf_tsv.merging.pool import each_step, one_thread_each
from hf_tsv.merging.progress import Progress
from hf_tsv.merging.resources import Resources
from hf_tsv.merging.stored import StoredTensor
from hf_tsv.methods import Deltas
from hf_tsv.methods.tall_mask import tall_mask
from hf_tsv.methods.tsv_m import NUMERICAL_RANK
from hf_tsv.recipe import is_local

MASK_LAMBDA: float = tall_mask.parameters["mask_lambda"].default
PIECE = 2**22  # entries of all tasks together that are compared at once


@dataclass(frozen=True)
class Entries:
    """A comparison of T deltas entry by entry, for one tensor or summed over several.

    Attributes:
        inner: The deltas' inner products, (T, T) float64; the diagonal holds the squared norms.
        both: The number of entries that both tasks of a pair changed, (T, T) int64; on the diagonal, that one changed.
        opposed: The number of entries that a pair moved in opposite directions, (T, T) int64.
        use: The number of changed entries by how many tasks' TALL-masks they are in. The masks are on the tasks' sum,
            at the default lambda of `consensus_ta` and `tall_mask`.
        numel: The number of entries of one task.
    """

    inner: Tensor
    both: Tensor
    opposed: Tensor
    use: Use
    numel: int

    @property
    def norms(self) -> Tensor:
        """The deltas' Frobenius norms, (T,) float64."""
        return self.inner.diagonal().sqrt()

    @property
    def cosines(self) -> Tensor:
        """The cosines of the angles between the tasks, (T, T) float64; 0 for a task that changed nothing."""
        products = self.norms[:, None] * self.norms  # (T, T)
        return self.inner / products.clamp(min=torch.finfo(torch.float64).tiny)

    @property
    def opposed_shares(self) -> Tensor:
        """The share of entries changed by both of a pair that they moved in opposite directions, (T, T) float64."""
        return self.opposed / self.both.clamp(min=1)

    @staticmethod
    def sum(parts: Iterable["Entries"]) -> "Entries":
        parts = list(parts)
        use = parts[0].use
        for part in parts[1:]:
            use += part.use
        return Entries(
            inner=_sum(part.inner for part in parts),
            both=_sum(part.both for part in parts),
            opposed=_sum(part.opposed for part in parts),
            use=use,
            numel=sum(part.numel for part in parts),
        )


@dataclass(frozen=True)
class Interference:
    """The interference of T task matrices at the rank that TSV-Merge keeps, for one tensor or summed over several.

    Attributes:
        before: The Singular Task Interference of the task matrices as they are.
        left: The interference after TSV-Merge's orthogonalisation.
        chance: The interference that unrelated subspaces would have.
        pairs: The interference of task j in the directions of task i, (T, T) float64.
        pairs_by_chance: The same for unrelated subspaces, (T, T) float64.
    """

    before: float
    left: float
    chance: float
    pairs: Tensor
    pairs_by_chance: Tensor

    @property
    def times_chance(self) -> float:
        """Interference as a multiple of chance: about 1 for random directions, 0 for orthogonal ones."""
        return self.before / self.chance if self.chance else 0.0

    @property
    def clashes(self) -> Tensor:
        """The interference of each pair of tasks as a multiple of chance, (T, T) float64, symmetric."""
        both = self.pairs + self.pairs.T
        chance = self.pairs_by_chance + self.pairs_by_chance.T
        return torch.where(chance > 0, both / chance, 0.0)  # 0 / 0 if a task changed nothing

    @staticmethod
    def sum(parts: Iterable["Interference"]) -> "Interference":
        parts = list(parts)
        return Interference(
            before=sum(part.before for part in parts),
            left=sum(part.left for part in parts),
            chance=sum(part.chance for part in parts),
            pairs=_sum(part.pairs for part in parts),
            pairs_by_chance=_sum(part.pairs_by_chance for part in parts),
        )


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    """Sum tensors of one shape."""
    return torch.stack(list(tensors)).sum(dim=0)


@dataclass(frozen=True)
class Matrices:
    """Measurements of a tensor as T task matrices; those of stacked experts are combined.

    Attributes:
        rank: The singular triplets that TSV-Merge keeps of each task: min(m, n) // T, at least 1.
        interference: The matrices' interference at that rank.
        spectra: All singular values, one spectrum per task.
    """

    rank: int
    interference: Interference
    spectra: tuple[Spectrum, ...]


@dataclass(frozen=True)
class Inspected:
    """Measurements of one tensor. `matrices` is None for non-matrix tensors, and if no task changed anything."""

    info: TensorInfo
    kind: Kind
    entries: Entries
    matrices: Matrices | None


@dataclass(frozen=True)
class Inspection:
    """Measurements of a recipe's task vectors, tensor by tensor in the base's order.

    Attributes:
        base: The base model's name.
        tasks: The tasks' names, in recipe order.
        checkpoint_bytes: The bytes of the base's tensors.
        tensors: Measurements of the tensors that would be merged.
    """

    base: str
    tasks: tuple[str, ...]
    checkpoint_bytes: int
    tensors: tuple[Inspected, ...]


def inspect_plan(plan: Plan, resources: Resources, progress: Progress) -> Inspection:
    """Measure every tensor that a plan merges, a few at a time.

    The task vectors are taken as they are: neither the recipe's methods nor its weights matter.

    Raises:
        HfTsvError: a source can't be read, or contains NaN or infinity; or there isn't enough memory.
    """
    # Singular vectors determine memory and work, whatever the recipe's method.
    steps = [
        replace(step, method="tsv_m", parameters={}, weights=(1.0,) * len(step.weights), base_weight=0.0)
        for step in plan.merged
    ]
    check_memory(replace(plan, steps=tuple(steps)), resources)
    measured: dict[str, Inspected] = {}
    lock = Lock()

    def measure(step: Step) -> None:
        try:
            entries = _entries(plan, step)
            has_changed = bool(entries.both.diagonal().any())
            matrices = _matrices(plan, step) if step.view and has_changed else None
        except MethodError as error:
            raise MethodError(f"{step.name} {step.info.shape}: {error}") from error
        with lock:  # several threads measure at once
            measured[step.name] = Inspected(step.info, step.kind, entries, matrices)

    base = plan.recipe.base.path
    progress.begin(total_work(plan, steps))
    with one_thread_each():
        each_step(steps, measure, plan, resources, progress)
    return Inspection(
        base=Path(base).name if is_local(base) else base,  # the path to a folder is left out, because it is private
        tasks=plan.tasks,
        checkpoint_bytes=sum(step.info.nbytes for step in plan.steps),
        tensors=tuple(measured[step.name] for step in steps),
    )


def _entries(plan: Plan, step: Step) -> Entries:
    """Compare a tensor's deltas entry by entry, `PIECE` entries of all tasks together at a time."""
    num_tasks = len(plan.tasks)
    as_stored = replace(step, view=None)  # entries are compared without their matrix structure
    inner = torch.zeros(num_tasks, num_tasks, dtype=torch.float64)
    both, balance = inner.clone(), inner.clone()  # whole numbers, exact in float64
    use = Use((0,) * (num_tasks + 1))
    pieces: list[tuple[int, int] | None] = [None]  # ranges of rows; None for a scalar, which has no rows
    shape = step.info.shape
    if shape:
        # Rows in one piece: `PIECE` entries of all tasks together, or a single larger row.
        at_once = max(1, PIECE // num_tasks * shape[0] // max(1, step.info.numel))
        pieces = [(first, min(first + at_once, shape[0])) for first in range(0, shape[0], at_once)]
    for rows in pieces:
        stored = StoredTensor(plan, as_stored, rows)
        deltas = torch.stack([delta.flatten() for delta in stored.deltas()])  # (T, n)
        inner += _gram(deltas)
        merged = torch.zeros_like(deltas[0])  # (n,)
        for delta in deltas:
            merged += delta  # one by one, because the order of a sum decides how it rounds
        # (n,): the number of tasks' masks that contain each entry
        in_masks = torch.zeros(deltas.shape[1:], dtype=torch.int32)
        for delta in deltas:
            in_masks += mask_bits.tall_mask(delta, merged, MASK_LAMBDA)
        use += Use.of(in_masks, deltas.any(dim=0), num_tasks)
        # In place, to save memory: products of signs (-1, 0, 1) count agreeing entries minus opposed ones.
        balance += _gram(deltas.sign_())
        # Products of magnitudes (0, 1) count the entries that both tasks changed: agreeing plus opposed.
        both += _gram(deltas.abs_())
    opposed = (both - balance) / 2
    return Entries(inner, both.long(), opposed.long(), use, step.info.numel)


def _gram(rows: Tensor) -> Tensor:
    """Compute the inner products, (T, T) float64, of the rows (T, n)."""
    wide = rows.double()
    return wide @ wide.T


def _matrices(plan: Plan, step: Step) -> Matrices:
    """Compare a tensor's task matrices by their singular vectors, stacked experts one by one."""
    assert step.view is not None
    rank = max(1, min(step.view.m, step.view.n) // len(plan.tasks))
    # Stacked experts are stacked along the first dimension.
    stack: list[tuple[int, int] | None] = [None]
    if step.view.count > 1:
        stack = [(i, i + 1) for i in range(step.view.count)]
    interferences: list[Interference] = []
    spectra: list[list[Spectrum]] = []  # by matrix, then by task
    for rows in stack:
        deltas = StoredTensor(plan, step, rows, as_matrix=True).deltas()
        interference, of_matrix = _one_matrix(deltas, rank)
        interferences.append(interference)
        spectra.append(of_matrix)
    by_task = tuple(pooled(of_task) for of_task in zip(*spectra, strict=True))
    return Matrices(rank, Interference.sum(interferences), by_task)


def _one_matrix(deltas: Deltas, rank: int) -> tuple[Interference, list[Spectrum]]:
    """Compute the interference of T task matrices at a rank, and all their singular values, one spectrum per task."""
    m, n = deltas.shape
    factors: list[Factors] = []
    spectra: list[Spectrum] = []
    for t in range(len(deltas)):
        noise = deltas.noise(t)
        floor = noise if deltas.is_half(t) else 0.0  # the default cut of TSV-Merge
        # An adapter's own factors are exact, and save a decomposition of the full matrix.
        known = deltas.factors(t) or truncated_svd(deltas[t], rank, rtol=NUMERICAL_RANK, floor=floor)
        factors.append(replace(known, u=known.u[:, :rank], s=known.s[:rank], vh=known.vh[:rank]))
        values = known.s.double() if known.values is None else known.values  # all, not only the leading ones
        largest = float(values[0]) if len(values) else 0.0
        spectra.append(Spectrum(values, m, n, noise=max(noise, NUMERICAL_RANK * largest)))
    chance, pairs_by_chance = interference_by_chance(factors)
    interference = Interference(
        before=singular_task_interference(factors),
        left=interference_left(factors),
        chance=chance,
        pairs=pairwise_interference(factors),
        pairs_by_chance=pairs_by_chance,
    )
    return interference, spectra
