"""What a merge method is given: one tensor's deltas, one a task, read when they are asked for."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, overload

import torch
from torch import Tensor

from hf_tsv.errors import MethodError
from hf_tsv.linalg import Factors, SvdMode

DRAWN_AT_ONCE = 2**18


class Deltas(Sequence[Tensor]):
    """The T deltas (theta_t - theta_0) of one tensor, in task order, each read on access.

    A method iterates, indexes and asks again as it likes, and holds no more of them at once than it needs:
    that is what keeps a merge of many models within the memory of a few tensors. Every access may return
    a fresh tensor, which the method may change.

    Attributes:
        shape: Shape of every delta: (m, n) when they are task matrices, else whatever the tensor has.
        dtype: Arithmetic dtype of every delta, float32 or float64.
        is_matrix: Whether they are to be seen as task matrices; a bias, norm or table of two rows may not be.
        weights: One factor a task, as the recipe's `weight` gives it.
        base_weight: The base's own factor where it counts as one of the models that are averaged.
        tasks: The tasks' names, for methods that draw at random and for messages.
        name: The tensor's name, on which random draws depend.
        offset: Where in the tensor these deltas begin, in entries, when they are a piece of it.
        svd: How singular vectors are computed.
        survey: What the method's first pass over the whole task vectors found, or None when this tensor is
            all there is.
        notes: What the method has to tell about its work here; the engine puts it into the record.
    """

    def __init__(
        self,
        read: Callable[[int], Tensor],
        *,
        shape: Sequence[int],
        dtype: torch.dtype,
        tasks: Sequence[str],
        weights: Sequence[float],
        is_matrix: bool,
        svd: SvdMode = "exact",
        survey: Any = None,
        base: Callable[[], Tensor] | None = None,
        noise: Callable[[int], float] | None = None,
        half: Sequence[bool] = (),
        base_weight: float = 0.0,
        factors: Callable[[int], Factors | None] | None = None,
        name: str = "",
        offset: int = 0,
    ) -> None:
        self._read = read
        self._factors = factors
        self._base = base
        self._noise = noise
        self._half = tuple(half)
        self.shape = tuple(shape)
        self.dtype = dtype
        self.tasks = tuple(tasks)
        self.weights = tuple(weights)
        self.base_weight = base_weight
        self.is_matrix = is_matrix
        self.svd: SvdMode = svd
        self.survey = survey
        self.name = name
        self.offset = offset
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
        """Deltas held in memory, for calling a method by hand: shape (T, *shape), float32 or float64."""
        held = list(deltas)
        return cls(
            lambda t: held[t].clone(),
            shape=held[0].shape,
            dtype=held[0].dtype,
            tasks=tasks or [f"task{t}" for t in range(len(held))],
            weights=[1.0] * len(held) if weights is None else weights,
            is_matrix=held[0].ndim == 2,
            noise=noise,
            half=[half] * len(held),
        )

    def __len__(self) -> int:
        return len(self.tasks)

    @overload
    def __getitem__(self, t: int) -> Tensor: ...
    @overload
    def __getitem__(self, t: slice) -> list[Tensor]: ...
    def __getitem__(self, t: int | slice) -> Tensor | list[Tensor]:
        if isinstance(t, slice):
            return [self._read(i) for i in range(*t.indices(len(self)))]
        return self._read(range(len(self))[t])

    def __iter__(self) -> Iterator[Tensor]:
        return (self._read(t) for t in range(len(self)))

    @property
    def base(self) -> Tensor:
        """theta_0 of this tensor, for the few methods that need more than the change; zeros when unknown."""
        return self._base() if self._base else torch.zeros(self.shape, dtype=self.dtype)

    def is_half(self, t: int) -> bool:
        """Whether task t's checkpoint stores this tensor in half precision."""
        return bool(self._half) and self._half[t]

    def noise(self, t: int) -> float:
        """Largest singular value that storing task t's weights rounded can explain; 0 when unknown."""
        return self._noise(t) if self._noise else 0.0

    def factors(self, t: int) -> Factors | None:
        """All singular triplets of task t's matrix where it is stored as a product of thin factors, as an adapter's
        is; its delta is never formed for them. None where only the delta itself is known."""
        return self._factors(t) if self._factors else None

    def uniform(self, t: int, seed: int) -> Tensor:
        """A float32 draw from [0, 1) for every entry of task t's delta.

        It depends on the seed, the task's name and the entry's place in the tensor alone: not on the other tasks,
        on what was drawn before, or on the pieces in which the tensor comes.
        """
        end = self.offset + math.prod(self.shape)
        first = self.offset // DRAWN_AT_ONCE
        blocks = range(first, -(-end // DRAWN_AT_ONCE))
        drawn = [_drawn(min(DRAWN_AT_ONCE, end - b * DRAWN_AT_ONCE), seed, self.tasks[t], self.name, b) for b in blocks]
        start = self.offset - first * DRAWN_AT_ONCE
        return torch.cat(drawn)[start:].reshape(self.shape) if drawn else torch.empty(self.shape)

    @contextmanager
    def naming(self, t: int) -> Iterator[None]:
        """Add the task's name to an error that its delta alone is to blame for."""
        try:
            yield
        except MethodError as error:
            raise MethodError(f"task '{self.tasks[t]}': {error}") from error

    def scaled(self, t: int) -> Tensor:
        """w_t delta_t, for methods that have no weights of their own: a weight there is a factor on the change."""
        return self[t].mul_(self.weights[t])

    @property
    def active(self) -> list[int]:
        """The tasks whose weight isn't 0."""
        return [t for t, weight in enumerate(self.weights) if weight]

    def zeros(self) -> Tensor:
        return torch.zeros(self.shape, dtype=self.dtype)

    def weighted_sum(self) -> Tensor:
        """sum_t w_t delta_t, holding one delta at a time."""
        total = self.zeros()
        for delta, weight in zip(self, self.weights, strict=True):
            total.add_(delta, alpha=weight)
        return total


def _drawn(count: int, *key: object) -> Tensor:
    digest = blake2b("\0".join(map(str, key)).encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    return torch.rand(count, generator=generator, device="cpu").to(torch.get_default_device())


def per_task(value: float | Sequence[float], num_tasks: int) -> tuple[float, ...]:
    """One number a task, from one for all or one for each."""
    return tuple(value) if isinstance(value, Sequence) else (value,) * num_tasks
