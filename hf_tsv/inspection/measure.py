"""One pass over the task vectors of a recipe, which leaves a few numbers per task and tensor."""

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
PIECE = 2**22  # entries, of all tasks together, that are compared at a time


@dataclass(frozen=True)
class Entries:
    """T deltas compared entry by entry; of one tensor, or summed over several.

    Attributes:
        inner: Their inner products, (T, T) float64; the diagonal holds the squared norms.
        both: Entries that both tasks of a pair changed, (T, T) int64; the diagonal holds those that a task changed.
        opposed: Entries that a pair moved in opposite directions, (T, T) int64.
        use: How many of the entries that any task changed are in how many of the tasks' TALL-masks on their sum, at
            the default lambda of `consensus_ta` and `tall_mask`.
        numel: Entries of a task.
    """

    inner: Tensor
    both: Tensor
    opposed: Tensor
    use: Use
    numel: int

    @property
    def norms(self) -> Tensor:
        """Frobenius norms, (T,) float64."""
        return self.inner.diagonal().sqrt()

    @property
    def cosines(self) -> Tensor:
        """Cosines of the angles between the tasks, (T, T) float64; 0 beside a task that changed nothing."""
        products = self.norms[:, None] * self.norms  # (T, T)
        return self.inner / products.clamp(min=torch.finfo(torch.float64).tiny)

    @property
    def opposed_shares(self) -> Tensor:
        """Of the entries that both tasks of a pair changed, those moved in opposite directions, (T, T) float64."""
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
    """How T task matrices disturb each other at the rank that TSV-Merge keeps; of one, or summed over several.

    Attributes:
        before: Singular Task Interference.
        left: The same after TSV-Merge's orthogonalisation.
        chance: What it would be for subspaces that have nothing to do with each other.
        pairs: What task j leaves in the directions of task i, (T, T) float64.
        pairs_by_chance: What that would be by chance, (T, T) float64.
    """

    before: float
    left: float
    chance: float
    pairs: Tensor
    pairs_by_chance: Tensor

    @property
    def times_chance(self) -> float:
        """1 where the tasks' directions are as good as random, 0 where they are orthogonal."""
        return self.before / self.chance if self.chance else 0.0

    @property
    def clashes(self) -> Tensor:
        """What two tasks leave in each other's directions, in units of chance: (T, T) float64, symmetric."""
        both = self.pairs + self.pairs.T
        chance = self.pairs_by_chance + self.pairs_by_chance.T
        return torch.where(chance > 0, both / chance, 0.0)  # 0 / 0 where a task changed nothing

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
    """The sum of tensors of one shape."""
    return torch.stack(list(tensors)).sum(dim=0)


@dataclass(frozen=True)
class Matrices:
    """A tensor as T task matrices; stacked experts as one.

    Attributes:
        rank: Singular triplets that TSV-Merge keeps of each task: min(m, n) // T, at least 1.
        interference: How they disturb each other at that rank.
        spectra: All singular values, one spectrum per task.
    """

    rank: int
    interference: Interference
    spectra: tuple[Spectrum, ...]


@dataclass(frozen=True)
class Inspected:
    """One tensor. `matrices` is None for non-matrix tensors, and where no task changed anything."""

    info: TensorInfo
    kind: Kind
    entries: Entries
    matrices: Matrices | None


@dataclass(frozen=True)
class Inspection:
    """The task vectors of a recipe, tensor by tensor in the base's order.

    Attributes:
        base: What the base model is called.
        tasks: The tasks' names, in recipe order.
        checkpoint_bytes: Bytes of the base's tensors.
        tensors: What would be merged.
    """

    base: str
    tasks: tuple[str, ...]
    checkpoint_bytes: int
    tensors: tuple[Inspected, ...]


def inspect_plan(plan: Plan, resources: Resources, progress: Progress) -> Inspection:
    """Measure every tensor that a plan merges, a few at a time.

    The task vectors are taken as they are: neither the recipe's methods nor its weights matter.

    Raises:
        HfTsvError: a source can't be read, or contains NaN or infinity; or memory does not suffice.
    """
    # Memory and work are those of singular vectors, whatever the recipe's method.
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
        base=Path(base).name if is_local(base) else base,  # where a folder lies is nobody's business
        tasks=plan.tasks,
        checkpoint_bytes=sum(step.info.nbytes for step in plan.steps),
        tensors=tuple(measured[step.name] for step in steps),
    )


def _entries(plan: Plan, step: Step) -> Entries:
    """Compare a tensor's deltas entry by entry, `PIECE` entries of all tasks together at a time."""
    num_tasks = len(plan.tasks)
    as_stored = replace(step, view=None)  # entries don't care for the matrix they lie in
    inner = torch.zeros(num_tasks, num_tasks, dtype=torch.float64)
    both, balance = inner.clone(), inner.clone()  # whole numbers, exact in float64
    use = Use((0,) * (num_tasks + 1))
    pieces: list[tuple[int, int] | None] = [None]  # ranges of rows; a scalar has none
    shape = step.info.shape
    if shape:
        at_once = max(1, PIECE // num_tasks * shape[0] // max(1, step.info.numel))
        pieces = [(first, min(first + at_once, shape[0])) for first in range(0, shape[0], at_once)]
    for rows in pieces:
        stored = StoredTensor(plan, as_stored, rows)
        deltas = torch.stack([delta.flatten() for delta in stored.deltas()])  # (T, n)
        inner += _gram(deltas)
        merged = torch.zeros_like(deltas[0])  # (n,)
        for delta in deltas:
            merged += delta  # one by one: the order of a sum decides how it rounds
        in_masks = torch.zeros(deltas.shape[1:], dtype=torch.int32)  # (n,): in how many tasks' masks each entry is
        for delta in deltas:
            in_masks += mask_bits.tall_mask(delta, merged, MASK_LAMBDA)
        use += Use.of(in_masks, deltas.any(dim=0), num_tasks)
        # In place, for memory: signs (-1, 0, 1) count pairs that agree less pairs that don't, their magnitudes both.
        balance += _gram(deltas.sign_())
        both += _gram(deltas.abs_())
    opposed = (both - balance) / 2
    return Entries(inner, both.long(), opposed.long(), use, step.info.numel)


def _gram(rows: Tensor) -> Tensor:
    """Inner products of the rows (T, n): (T, T) float64."""
    wide = rows.double()
    return wide @ wide.T


def _matrices(plan: Plan, step: Step) -> Matrices:
    """Compare a tensor's task matrices by their singular vectors; stacked experts one after the other."""
    assert step.view is not None
    rank = max(1, min(step.view.m, step.view.n) // len(plan.tasks))
    # Stacked experts lie one after the other along the first dimension.
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
    """The interference of T task matrices at a rank, and all their singular values, one spectrum a task."""
    m, n = deltas.shape
    factors: list[Factors] = []
    spectra: list[Spectrum] = []
    for t in range(len(deltas)):
        noise = deltas.noise(t)
        floor = noise if deltas.is_half(t) else 0.0  # as TSV-Merge cuts them by default
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
