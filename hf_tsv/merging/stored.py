"""One tensor as the base and the fine-tuned models store it, read on demand."""

import math
from collections.abc import Callable
from functools import cached_property
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from hf_tsv import linalg
from hf_tsv.checkpoints.dtypes import BY_WORD
from hf_tsv.checkpoints.protocol import AdapterCheckpoint
from hf_tsv.errors import MethodError
from hf_tsv.merging.plan import Plan, Step
from hf_tsv.merging.resources import CPU
from hf_tsv.methods import METHODS, Deltas, Survey, Tasks, TensorSource

_P = ParamSpec("_P")
_T = TypeVar("_T")


def change(value: Tensor, base: Tensor, dtype: torch.dtype) -> Tensor:
    """Return value - base, rounded once, to `dtype`. Equal values give exactly 0. May reuse value's memory."""
    wide = torch.promote_types(torch.promote_types(value.dtype, base.dtype), dtype)
    return value.to(wide).sub_(base).to(dtype)


class StoredTensor:
    """One tensor (or one expert of it) as the base and the fine-tuned models store it.

    Attributes:
        base: The base's tensor, in its stored dtype.
        view: The tensor's division into task matrices; None when the step's method takes tensors as they are.
    """

    def __init__(
        self,
        plan: Plan,
        step: Step,
        rows: tuple[int, int] | None,
        *,
        as_matrix: bool | None = None,
        device: torch.device = CPU,
    ) -> None:
        """
        Args:
            plan: The step's plan.
            step: The tensor's step.
            rows: The rows [first, past-the-last) to read; None for all.
            as_matrix: True to divide the tensor into task matrices, False to take it as it is; None for what the step's
                method needs.
            device: Device for the deltas.
        """
        self._device = device
        self._plan = plan
        self._step = step
        self._rows = rows
        self._dtype = BY_WORD[plan.recipe.dtype].torch
        if as_matrix is None:
            as_matrix = METHODS[step.method].matrices is not None
        self.view = step.view if as_matrix else None
        self._kept: tuple[object, Tensor] | None = None
        self.base = plan.base.read(step.name, rows)

    def changed(self) -> bool:
        """Return whether any task changed the tensor. Stops at the first that did; it need not be read again."""
        return any(map(self.is_changed, range(len(self._plan.tasks))))

    def value(self, t: int) -> Tensor:
        """Return task t's tensor, in its stored dtype."""
        return self._plan.finetuned[t].read(self._step.name, self._rows) if self._adapter(t) else self._stored(t)

    def deltas(self, survey: Survey | None = None) -> Deltas:
        view = self.view
        info = self._step.info
        halves = [c.info(info.name).is_half for c in self._plan.finetuned]
        offset = 0  # entries before the first of these rows
        if self._rows:
            entries_per_row = info.numel // info.shape[0]
            offset = self._rows[0] * entries_per_row
        source = TensorSource(
            self._read_by(self._delta),
            base=self._read_by(lambda: self.base.to(self._device).to(self._dtype, copy=True)),
            noise=self._read_by(self._noise),
            # An adapter's change isn't stored rounded to the model's dtype.
            half=[half and not self._adapter(t) for t, half in enumerate(halves)],
            factors=self._read_by(self._factors) if view else None,
            product=self._read_by(self._product) if view else None,
            name=info.name,
            offset=offset,
        )
        return Deltas(
            source,
            Tasks(self._plan.tasks, self._step.weights, self._step.base_weight),
            shape=(view.m, view.n) if view else tuple(self.base.shape),
            dtype=self._dtype,
            is_matrix=view is not None,
            svd=self._plan.recipe.svd,
            survey=survey,
        )

    def _read_by(self, read: Callable[_P, _T]) -> Callable[_P, _T]:
        """Wrap `read` to run on the CPU even while a method runs, when torch's default device is the method's."""

        def by_cpu(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            with CPU:
                return read(*args, **kwargs)

        return read if self._device == CPU else by_cpu

    def _adapter(self, t: int) -> AdapterCheckpoint | None:
        return self._plan.adapters[t]

    def is_changed(self, t: int) -> bool:
        """Return whether task t changed the tensor."""
        adapter = self._adapter(t)
        return adapter.is_changed(self._step.name) if adapter else not torch.equal(self._stored(t), self.base)

    def _stored(self, t: int) -> Tensor:
        """Return task t's tensor. The caller must not change it, because the last one is kept for the next call."""
        checkpoint = self._plan.finetuned[t]
        if self._kept is None or self._kept[0] is not checkpoint:
            self._kept = (checkpoint, checkpoint.read(self._step.name, self._rows))
        return self._kept[1]

    def _delta(self, t: int) -> Tensor:
        if self.base_is_finite or self.is_changed(t):
            delta = self._change(t)
            self._check_finite(t, delta)
        else:
            # All models may have the same minus infinity in a mask, and the difference would be NaN.
            delta = torch.zeros(self.base.shape, dtype=self._dtype, device=self._device)
        return delta.reshape(self.view.m, self.view.n) if self.view else delta

    def _change(self, t: int) -> Tensor:
        if adapter := self._adapter(t):
            return adapter.delta(self._step.name, self.base, self._dtype, self._rows).to(self._device)
        base = self._wide_base if self._rows else self.base.to(self._device)
        stored = self._stored(t)
        self._kept = None  # `change` may write the delta into its memory
        return change(stored.to(self._device), base, self._dtype)

    @cached_property
    def _wide_base(self) -> Tensor:
        """The base's tensor, widened once for all tasks. Used only for slices, which are small enough."""
        return self.base.to(self._device).to(torch.promote_types(self.base.dtype, self._dtype))

    def _factors(self, t: int) -> linalg.Factors | None:
        adapter, view = self._adapter(t), self.view
        if adapter is None or view is None:
            return None
        if not adapter.is_changed(self._step.name):
            nothing = self.base.new_empty(0, dtype=self._dtype, device=self._device)
            return linalg.Factors(nothing.reshape(view.m, 0), nothing, nothing.reshape(0, view.n), energy=0.0)
        stored = self._low_rank(t)
        return linalg.factored_svd(*stored) if stored else None

    def _product(self, t: int) -> tuple[Tensor, Tensor] | None:
        """Return B (m, r) and A (r, n) whose product is task t's change; None where there are none to use."""
        stored = self._low_rank(t)
        if not stored:
            return None
        b, a, scale = stored
        # Each factor gets the square root of the scale, so that neither outgrows the other; the sign goes into A.
        return b * (abs(scale) ** 0.5), a * math.copysign(abs(scale) ** 0.5, scale)

    def _low_rank(self, t: int) -> tuple[Tensor, Tensor, float] | None:
        """Return an adapter's B (m, r) and A (r, n), and the scale of their product; None if it has none to use."""
        adapter, view = self._adapter(t), self.view
        if adapter is None or view is None or not adapter.is_changed(self._step.name):
            return None
        found = adapter.low_rank(self._step.name, self._rows[0] if self._rows else None)
        # Factors whose product doesn't have the shape of the step's matrix can't be used here.
        if found is None or (len(found.b), found.a.shape[1]) != (view.m, view.n):
            return None
        b = found.b.to(self._device).to(self._dtype)
        a = found.a.to(self._device).to(self._dtype)
        self._check_finite(t, b, a)
        return b, a, found.scale

    def _check_finite(self, t: int, *tensors: Tensor) -> None:
        """Check that tensors of task t and the base are finite. NaN in the base wouldn't show in an adapter's delta.

        Raises:
            MethodError: a tensor or the base holds NaN or infinity; names the task or the base.
        """
        if self.base_is_finite and all(map(is_finite, tensors)):
            return
        at_fault = f"task '{self._plan.tasks[t]}'" if self.base_is_finite else self._plan.base.label
        raise MethodError(f"the weights of {at_fault} hold NaN or infinity. Get them again, or leave them out")

    @cached_property
    def base_is_finite(self) -> bool:
        """Whether no entry of the base's tensor is NaN or infinite."""
        return is_finite(self.base)

    def _noise(self, t: int) -> float:
        """Return the rounding noise in task t's matrix (`linalg.rounding_edge`); 0 for adapters and non-matrices."""
        if self._adapter(t) or not self.view:
            return 0.0
        stored = self._stored(t)
        return linalg.rounding_edge(stored.reshape(self.view.m, self.view.n), stored.dtype)


def is_finite(tensor: Tensor) -> bool:
    """Return whether every entry is finite."""
    # A sum is the cheapest check. It may overflow although every entry is finite, so then each entry is checked.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
