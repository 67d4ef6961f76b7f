"""A LoRA adapter saved by PEFT, on top of a base model: together they act as the fine-tuned model's checkpoint."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from hf_tsv.checkpoints.folder import STEMS
from hf_tsv.checkpoints.protocol import Checkpoint, LowRank, TensorInfo
from hf_tsv.checkpoints.safetensors import SafetensorsCheckpoint
from hf_tsv.checkpoints.view import View
from hf_tsv.errors import CheckpointError, some
from hf_tsv.lora.format import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PICKLED_ADAPTER, SIDECAR_FILE, AdapterConfig
from hf_tsv.lora.read.changes import Change, Pair, Places, Value
from hf_tsv.lora.read.config import read_config
from hf_tsv.lora.read.keys import changes_of
from hf_tsv.lora.read.sidecar import RestTensor, read_sidecar


class Adapter:
    """An adapter's configuration and tensors, not yet on a model.

    Attributes:
        tensors: The tensors that PEFT loads.
        config: The adapter's configuration.
        rest: The tensors in the sidecar, by the name of the base's tensor.
    """

    def __init__(self, tensors: Checkpoint, config: AdapterConfig, rest: Mapping[str, RestTensor]) -> None:
        self.tensors = tensors
        self.config = config
        self.rest = rest

    @property
    def label(self) -> str:
        return self.tensors.label

    def on(
        self, base: Checkpoint, *, notes: Sequence[str] = (), places: Callable[[], Places] | None = None
    ) -> "AdapterOnBase":
        """Put the adapter on the merge's own base, so that its change is known as factors.

        Args:
            base: The merge's base model.
            notes: The caller's notes on the adapter, which come before its own.
            places: Returns the places of parameters in the base's files; called only if the names don't match.

        Raises:
            CheckpointError: the adapter doesn't fit; everything that doesn't is reported.
        """
        return AdapterOnBase(self, base, places, notes)

    def applied_to(self, model: Checkpoint, *, places: Callable[[], Places] | None = None) -> "AppliedAdapter":
        """Put the adapter on a model other than the merge's base. Arguments as for `on`.

        Raises:
            CheckpointError: the adapter doesn't fit; everything that doesn't is reported.
        """
        return AppliedAdapter(self, model, places)


def is_adapter(folder: Path) -> bool:
    """Check whether a folder holds an adapter and no full model."""
    return (folder / ADAPTER_CONFIG).is_file() and not is_model(folder)


def is_model(folder: Path) -> bool:
    """Check whether a folder holds a full model."""
    for stem in STEMS:
        weights = folder / f"{stem}.safetensors"
        index = folder / f"{stem}.safetensors.index.json"  # for a model in several files
        if weights.is_file() or index.is_file():
            return True
    return False


def open_adapter(folder: Path, *, label: str | None = None) -> Adapter:
    """Open the LoRA adapter in a folder. Only headers are read.

    Raises:
        CheckpointError: the folder has no adapter, or it is pickled, broken or not a plain LoRA.
    """
    label = label or str(folder)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(f"{label}: no {ADAPTER_CONFIG} in it, expected an adapter as PEFT saves it")
    config = read_config(folder, label)
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        if (folder / PICKLED_ADAPTER).is_file():
            raise CheckpointError(
                f"{label}: only pickled weights ({PICKLED_ADAPTER}), which can run code when they are read. Convert"
                " them: load the adapter with PEFT and call save_pretrained, which writes safetensors"
            )
        raise CheckpointError(f"{label}: no {ADAPTER_WEIGHTS} in it, expected an adapter as PEFT saves it")
    tensors = SafetensorsCheckpoint([weights], label=label)
    return Adapter(tensors, config, read_sidecar(folder))


class AppliedAdapter(View):
    """A model with an adapter on top. Tensors that only the adapter has, such as a head, follow the model's.

    Raises:
        CheckpointError: the adapter doesn't fit; everything that doesn't is reported.
    """

    def __init__(self, adapter: Adapter, model: Checkpoint, places: Callable[[], Places] | None) -> None:
        super().__init__(model, label=adapter.label)
        changes = changes_of(adapter.tensors, adapter.config, model, places)
        self.notes = changes.notes
        self._adapter = adapter
        self._changes = changes.of
        self._own = changes.own
        self._rest = adapter.rest
        lost = sorted(self._rest.keys() - set(model.names()))
        if lost:
            raise CheckpointError(
                f"{self.label}: {SIDECAR_FILE} holds {some(lost)}, which {model.label} lacks. It is of another base"
            )
        # The experts of a layer share their factors and are read one after another.
        self._factor = lru_cache(maxsize=4)(lambda key: adapter.tensors.read(key).flatten(1))

    def names(self) -> Sequence[str]:
        names = self.inner.names()
        return (*names, *sorted(self._own.keys() - set(names)))

    def info(self, name: str) -> TensorInfo:
        key = self._own.get(name)
        if key:
            stored = self._adapter.tensors.info(key)
            return TensorInfo(name, stored.shape, stored.dtype)
        return self.inner.info(name)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """Read base plus change, added in float32 (or float64 like the base) and rounded once to the stored dtype."""
        own = self._own.get(name)
        tensor = self._adapter.tensors.read(own, rows) if own else self.inner.read(name, rows)
        dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        if name in self._rest:
            tuned = self._rest[name].applied(tensor.to(dtype), rows)
        elif name in self._changes:
            tuned = self._delta(name, tensor, dtype, rows).add_(tensor)
        else:
            return tensor
        return tuned.to(self.info(name).torch_dtype)

    def will_need(self, name: str) -> None:
        if name in self._changes:
            for key in self._changes[name].keys:
                self._adapter.tensors.will_need(key)
        if name not in self._own:
            self.inner.will_need(name)

    def fingerprint(self) -> str:
        """Return a hash of the fingerprints of model, adapter and sidecar, and of the adapter's configuration."""
        parts = [self.inner.fingerprint(), self._adapter.tensors.fingerprint(), self._adapter.config.model_dump_json()]
        parts += {rest.fingerprint for rest in self._rest.values()}
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _delta(self, name: str, base: Tensor, dtype: torch.dtype, rows: tuple[int, int] | None) -> Tensor:
        change = self._changes[name]
        if change.pair and len(change.keys) == 2:  # factors only
            return self._product(change.pair, dtype, rows).reshape(base.shape)
        if change.value:
            delta = self._value(change.value, rows).to(dtype, copy=True).sub_(base)
        else:
            delta = torch.zeros_like(base, dtype=dtype)
        if change.tokens:
            key, trained = change.tokens
            first, end = rows or (0, len(base))
            # Indices of the trained rows among those read: in the key's tensor, and in the base's rows.
            positions = [i for i, row in enumerate(trained) if first <= row < end]
            here = [trained[i] - first for i in positions]
            new = self._to(key, dtype)[positions]  # (len(here), columns)
            delta[here] = new.sub_(base[here])
        if change.bias:
            key, scale = change.bias
            delta.add_(self._to(key, dtype, rows), alpha=scale)
        if change.pair:
            delta.add_(self._product(change.pair, dtype, rows).reshape(base.shape))
        return delta

    def _value(self, value: Value, rows: tuple[int, int] | None = None) -> Tensor:
        """Read the tensor's new value, or some rows of it, from the part of the key that holds it."""
        first, end = rows or (0, None)
        if value.rows:
            start, stop = value.rows
            first += start
            end = stop if end is None else start + end
        if value.expert is not None:
            stack = self._adapter.tensors.read(value.key, (value.expert, value.expert + 1))  # (1, rows, columns)
            return stack[0, first:end]
        return self._adapter.tensors.read(value.key, None if end is None else (first, end))

    def _to(self, key: str, dtype: torch.dtype, rows: tuple[int, int] | None = None) -> Tensor:
        return self._adapter.tensors.read(key, rows).to(dtype)

    def _product(self, pair: Pair, dtype: torch.dtype, rows: tuple[int, int] | None) -> Tensor:
        if pair.is_stacked:  # its rows are experts
            experts = range(*rows) if rows else range(pair.experts)
            return torch.stack([self._low_rank(pair, expert).product(dtype) for expert in experts])
        low_rank = self._low_rank(pair, 0)
        if rows:
            low_rank = replace(low_rank, b=low_rank.b[slice(*rows)])
        return low_rank.product(dtype)

    def _low_rank(self, pair: Pair, expert: int) -> LowRank:
        a = self._factor(pair.a)  # (experts * r, in)
        b = self._factor(pair.b)  # (out, r * experts)
        if pair.experts > 1:  # PEFT stacks A with the expert outermost, B with the expert innermost
            if pair.expert is not None:
                expert = pair.expert
            rank = len(a) // pair.experts
            a = a[expert * rank : (expert + 1) * rank]  # (r, in)
            b = b[:, expert :: pair.experts]  # (out, r)
        if pair.rows:
            b = b[slice(*pair.rows)]
        if pair.transposed:  # the tensor is stored (in, out): (B A)^T is A^T B^T
            return LowRank(a.T, b.T, pair.scale)
        return LowRank(b, a, pair.scale)


class AdapterOnBase(AppliedAdapter):
    """An adapter on the base of the merge, so that its change is known exactly, and as factors."""

    def __init__(
        self, adapter: Adapter, base: Checkpoint, places: Callable[[], Places] | None, notes: Sequence[str]
    ) -> None:
        super().__init__(adapter, base, places)
        self.notes = (*notes, *self.notes)

    def is_changed(self, name: str) -> bool:
        return name in self._changes or name in self._rest

    def delta(self, name: str, base: Tensor, dtype: torch.dtype, rows: tuple[int, int] | None = None) -> Tensor:
        if name in self._rest:
            return self._rest[name].delta(base, dtype, rows)
        if name not in self._changes:
            return torch.zeros_like(base, dtype=dtype)
        return self._delta(name, base, dtype, rows)

    def low_rank(self, name: str, row: int | None = None) -> LowRank | None:
        if name in self._rest:
            return self._rest[name].low_rank(row or 0)
        change = self._changes.get(name, Change())
        pair = change.pair
        if pair is None or change.tokens or (pair.is_stacked and row is None):
            return None
        if change.value:
            # PEFT also saves the embedding itself beside the factors of its change, usually unchanged.
            stored, base = self._value(change.value), self.inner.read(name)
            dtype = torch.promote_types(stored.dtype, base.dtype)
            if stored.shape != base.shape or not torch.equal(stored.to(dtype), base.to(dtype)):
                return None
        return self._low_rank(pair, row or 0)

    def nbytes(self, name: str) -> int:
        """Return how many bytes of the adapter's files a tensor's change needs."""
        if name in self._rest:
            return self._rest[name].nbytes
        change = self._changes.get(name, Change())
        if change.value and (change.value.rows or change.value.expert is not None):
            # Only a part of the key's tensor: as many bytes as the model's tensor.
            return self.inner.info(name).nbytes
        # One key holds the factors of all experts of a layer, but the model's files may have one tensor per expert.
        shared_by = change.pair.experts if change.pair and not change.pair.is_stacked else 1
        return sum(self._adapter.tensors.info(key).nbytes for key in change.keys) // shared_by
