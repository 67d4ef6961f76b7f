"""What a merge method is given: one tensor's deltas, one a task, read on demand."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, overload

import torch
from torch import Tensor

from hf_tsv.errors import MethodError
from hf_tsv.linalg import Factors, SvdMode

DRAWN_AT_ONCE = 2**18  # entries; changing this number changes the draws


@dataclass(frozen=True)
class TensorSource:
    """The functions that read one tensor, or a piece of it. Those that aren't available are None.

    Attributes:
        delta: Reads theta_t - theta_0 of task t into a tensor that the caller may change.
        base: Reads theta_0.
        noise: Returns the largest singular value that rounding task t's stored weights can explain.
        half: Per task, True if its checkpoint stores this tensor in half precision; empty if none does.
        factors: Returns all singular triplets of task t's matrix without forming its delta, or None.
        product: Returns B (m, r) and A (r, n) with delta_t = B A if task t is stored as such a product, else None.
        name: The tensor's name.
        offset: The piece's first entry in the flattened tensor.
    """

    delta: Callable[[int], Tensor]
    base: Callable[[], Tensor] | None = None
    noise: Callable[[int], float] | None = None
    half: Sequence[bool] = ()
    factors: Callable[[int], Factors | None] | None = None
    product: Callable[[int], tuple[Tensor, Tensor] | None] | None = None
    name: str = ""
    offset: int = 0


@dataclass(frozen=True)
class Tasks:
    """The fine-tuned models that are merged.

    Attributes:
        names: The tasks' names.
        weights: One factor per task, the recipe's `weight`.
        base_weight: The base's own factor if it counts as one of the averaged models.
    """

    names: Sequence[str]
    weights: Sequence[float]
    base_weight: float = 0.0

    @classmethod
    def alike(cls, number: int) -> "Tasks":
        """Return this many tasks of weight 1, called task0, task1, ..."""
        return cls([f"task{t}" for t in range(number)], [1.0] * number)


class Deltas(Sequence[Tensor]):
    """The T deltas (theta_t - theta_0) of one tensor, in task order, each read on access.

    A method may iterate, index and read again as it likes, and should hold no more of them at once than it needs:
    that keeps a merge of many models within the memory of a few tensors. Every access may return a fresh tensor,
    which the method may change.

    Attributes:
        shape: Shape of every delta: (m, n) for task matrices, else the tensor's.
        dtype: Arithmetic dtype of every delta, float32 or float64.
        is_matrix: True if they are treated as task matrices; a bias, norm or table of two rows may not be.
        weights: One factor per task, the recipe's `weight`.
        base_weight: The base's own factor if it counts as one of the averaged models.
        tasks: The tasks' names, for random draws and messages.
        name: The tensor's name, on which random draws depend.
        offset: The first entry of these deltas in the flattened tensor, if they are a piece of it.
        svd: The way singular vectors are computed.
        survey: Result of the method's first pass over the whole task vectors, or None if there are no tensors
            but this one.
        notes: Facts about the method's work on this tensor; the engine writes them to the record.
    """

    def __init__(
        self,
        source: TensorSource,
        tasks: Tasks,
        *,
        shape: Sequence[int],
        dtype: torch.dtype,
        is_matrix: bool,
        svd: SvdMode = "exact",
        survey: Any = None,
    ) -> None:
        self._source = source
        self.shape = tuple(shape)
        self.dtype = dtype
        self.tasks = tuple(tasks.names)
        self.weights = tuple(tasks.weights)
        self.base_weight = tasks.base_weight
        self.is_matrix = is_matrix
        self.svd: SvdMode = svd
        self.survey = survey
        self.name = source.name
        self.offset = source.offset
        self.notes: dict[str, Any] = {}

    @classmethod
    def of(
        cls,
        deltas: Tensor | Sequence[Tensor],
        *,
        weights: Sequence[float] | None = None,
        tasks: Sequence[str] | None = None,
        noise: Callable[[int], float] | None = None,
        half: bool = False,
    ) -> "Deltas":
        """Wrap deltas held in memory, to call a method directly: shape (T, *shape), float32 or float64."""
        given = list(deltas)  # cloned on access, because a method may change them
        alike = Tasks.alike(len(given))
        return cls(
            TensorSource(lambda t: given[t].clone(), noise=noise, half=[half] * len(given)),
            Tasks(tasks or alike.names, alike.weights if weights is None else weights),
            shape=given[0].shape,
            dtype=given[0].dtype,
            is_matrix=given[0].ndim == 2,
        )

    def __len__(self) -> int:
        return len(self.tasks)

    @overload
    def __getitem__(self, t: int) -> Tensor: ...
    @overload
    def __getitem__(self, t: slice) -> list[Tensor]: ...
    def __getitem__(self, t: int | slice) -> Tensor | list[Tensor]:
        if isinstance(t, slice):
            return [self._source.delta(i) for i in range(*t.indices(len(self)))]
        return self._source.delta(range(len(self))[t])

    def __iter__(self) -> Iterator[Tensor]:
        return (self._source.delta(t) for t in range(len(self)))

    @property
    def base(self) -> Tensor:
        """theta_0 of this tensor, for the few methods that need more than the change; zeros if unknown."""
        return self._source.base() if self._source.base else torch.zeros(self.shape, dtype=self.dtype)

    def is_half(self, t: int) -> bool:
        """True if task t's checkpoint stores this tensor in half precision."""
        return bool(self._source.half) and self._source.half[t]

    def noise(self, t: int) -> float:
        """Return the largest singular value that rounding task t's stored weights can explain; 0 if unknown."""
        return self._source.noise(t) if self._source.noise else 0.0

    def factors(self, t: int) -> Factors | None:
        """Return all singular triplets of task t's matrix if it is stored as a product of thin factors, as an adapter's
        is, without forming its delta. None if only the delta itself is known."""
        return self._source.factors(t) if self._source.factors else None

    def product(self, t: int) -> tuple[Tensor, Tensor] | None:
        """Return B (m, r) and A (r, n) with delta_t = B A if task t is stored as such a product, else None.

        The caller must not change them."""
        return self._source.product(t) if self._source.product else None

    def uniform(self, t: int, seed: int) -> Tensor:
        """Draw a float32 from [0, 1) for every entry of task t's delta.

        The draw depends only on the seed, the task's name, the tensor's name and the entry's place in it: not on the
        other tasks, earlier draws, or the pieces in which the tensor comes.
        """
        # Each block of entries has a generator of its own, so that a piece can start in the middle of the tensor.
        end = self.offset + math.prod(self.shape)
        first = self.offset // DRAWN_AT_ONCE
        drawn = []
        for block in range(first, -(-end // DRAWN_AT_ONCE)):
            count = min(DRAWN_AT_ONCE, end - block * DRAWN_AT_ONCE)
            key = f"{seed}\0{self.tasks[t]}\0{self.name}\0{block}"
            digest = blake2b(key.encode(), digest_size=8).digest()
            # Not the global generator, which is the caller's; on the CPU, so that every device draws the same.
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
            numbers = torch.rand(count, generator=generator, device="cpu")
            drawn.append(numbers.to(torch.get_default_device()))
        if not drawn:
            return torch.empty(self.shape)
        start = self.offset - first * DRAWN_AT_ONCE
        return torch.cat(drawn)[start:].reshape(self.shape)

    @contextmanager
    def naming(self, t: int) -> Iterator[None]:
        """Prefix a MethodError with the name of task t, whose delta caused it."""
        try:
            yield
        except MethodError as error:
            raise MethodError(f"task '{self.tasks[t]}': {error}") from error

    def scaled(self, t: int) -> Tensor:
        """Return w_t delta_t, for methods without weights of their own, where a weight is a factor on the change."""
        return self[t].mul_(self.weights[t])

    @property
    def active(self) -> list[int]:
        """Indices of the tasks whose weight isn't 0."""
        return [t for t, weight in enumerate(self.weights) if weight]

    def zeros(self) -> Tensor:
        return torch.zeros(self.shape, dtype=self.dtype)

    def weighted_sum(self) -> Tensor:
        """Return sum_t w_t delta_t, holding one delta at a time."""
        total = self.zeros()
        for delta, weight in zip(self, self.weights, strict=True):
            total.add_(delta, alpha=weight)
        return total


def per_task(value: float | Sequence[float], num_tasks: int) -> tuple[float, ...]:
    """Return one number per task, from one number for all or one for each."""
    return tuple(value) if isinstance(value, Sequence) else (value,) * num_tasks
