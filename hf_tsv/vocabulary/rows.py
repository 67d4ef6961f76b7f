"""Models with different vocabularies: rows of embeddings and heads matched by token, as they are read.

Every model is seen through a checkpoint in which row i of such a tensor is the i-th token of the output's vocabulary:

* a token that base and task have: the task's row;
* a token that a task lacks: the base's row, so that the task changes nothing there;
* a token that the base lacks: in all models alike the mean of the rows of the tasks that have it, in the base's dtype.
  No task changes anything there either, so that the merged row is that mean, whatever the method. As a change of its
  own a new row would be one against nothing: as long as the embedding itself, it would take the leading singular
  directions of a task matrix;
* a row that is no token's: the base's, or where the base has none the mean of the rows of the base's tokens.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_tsv.checkpoints.memory import NAMES_OF_DTYPES
from hf_tsv.checkpoints.protocol import AdapterCheckpoint, Checkpoint, LowRank, TensorInfo
from hf_tsv.checkpoints.safetensors import TORCH_DTYPES
from hf_tsv.recipe import UNION
from hf_tsv.vocabulary.tokenizer import Tokenizer, write_with_tokens

PIECE = 2**22  # entries that are averaged at a time
ABSENT = -1


@dataclass(frozen=True)
class Vocabulary:
    """The output's vocabulary, and where each model has its tokens.

    Attributes:
        source: `base`, `union` or a task.
        ids: Token to id in the output.
        own: By model, the base first, the id there of each id of the output, ABSENT where it has none; int64.
        rows: Rows in the output, of each tensor that has one a token.
        base_rows: Rows in the base, likewise.
        added: Tokens that the base's tokenizer lacks, in the order of their ids; their ids.
        tokenizers: The models', the base's first.
        notes: What a person should know.
    """

    source: str
    ids: Mapping[str, int]
    own: tuple[Tensor, ...]
    rows: Mapping[str, int]
    base_rows: Mapping[str, int]
    added: Mapping[str, int]
    tokenizers: tuple[Tokenizer, ...]
    notes: tuple[str, ...]

    @property
    def is_bases(self) -> bool:
        """Whether every row is the base's of the same place, so that what is made on top fits the base itself."""
        return self.source == "base" and self.rows == self.base_rows

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that the merged bytes and the written tokenizer depend on."""
        digest = hashlib.sha256(json.dumps([self.source, self.ids, self.rows], sort_keys=True).encode())
        for own in self.own:
            digest.update(own.numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What the record says of it."""
        return {
            "source": self.source,
            "tokens": len(self.ids),
            "new": len(self.added),
            "rows": dict(self.rows),
        }

    def write(self, folder: Path) -> None:
        """Make the base's tokenizer in a folder the union's; nothing where the output has one of the models' own."""
        if self.source == UNION and self.added:
            write_with_tokens(folder, self.tokenizers[0], self.added, self.tokenizers[1:])


class OfBase:
    """The base model in the output's vocabulary."""

    def __init__(
        self, base: Checkpoint, finetuned: Sequence[Checkpoint], vocabulary: Vocabulary, axes: Mapping[str, int]
    ) -> None:
        self.label = base.label
        self.raw = base
        self.vocabulary = vocabulary
        self.axes = axes
        self._finetuned = [(checkpoint, frozenset(checkpoint.names())) for checkpoint in finetuned]
        self._means: dict[str, Tensor] = {}

    def names(self) -> Sequence[str]:
        return self.raw.names()

    def info(self, name: str) -> TensorInfo:
        info = self.raw.info(name)
        return self.with_rows(info) if name in self.axes else info

    def fits(self, info: TensorInfo) -> bool:
        """Whether a task's tensor has one row a token, and otherwise the base's shape: else it is told as a misfit."""
        axis, base = self.axes[info.name], self.raw.info(info.name)
        return info.is_float and _without(info.shape, axis) == _without(base.shape, axis)

    def with_rows(self, info: TensorInfo) -> TensorInfo:
        shape = list(info.shape)
        shape[self.axes[info.name]] = self.vocabulary.rows[info.name]
        return TensorInfo(info.name, tuple(shape), info.dtype)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        if name not in self.axes:
            return self.raw.read(name, rows)
        first, end = self.span(name, rows)
        return self.lying(name, self.of_tokens(name, first, end))

    def span(self, name: str, rows: tuple[int, int] | None) -> tuple[int, int]:
        """The tokens that some rows of a tensor are; all where they lie along the second axis."""
        return rows if rows and not self.axes[name] else (0, self.vocabulary.rows[name])

    def lying(self, name: str, by_token: Tensor) -> Tensor:
        return by_token[None] if self.axes[name] else by_token

    def own(self, model: int, checkpoint: Checkpoint, name: str, first: int, end: int) -> Tensor:
        """Where a model has some tokens' rows; ABSENT where its tensor ends before them."""
        ids, held = self.vocabulary.own[model][first:end], checkpoint.info(name).shape[self.axes[name]]
        return torch.where(ids < held, ids, ABSENT)

    def of_tokens(self, name: str, first: int, end: int) -> Tensor:
        ids = self.own(0, self.raw, name, first, end)
        if bool((ids >= 0).all()):
            return gathered(self.raw, name, self.axes[name], ids)
        known = gathered(self.raw, name, self.axes[name], ids[ids >= 0])
        out = known.new_empty((end - first, *known.shape[1:]))
        out[ids >= 0] = known
        out[ids < 0] = self._means_of_tasks(name, first, end, ids < 0).to(out.dtype)
        return out

    def _means_of_tasks(self, name: str, first: int, end: int, wanted: Tensor) -> Tensor:
        """Rows of tokens that the base lacks, in the arithmetic's dtype."""
        shape = self.raw.info(name).shape[1:] if not self.axes[name] else ()
        dtype = torch.promote_types(TORCH_DTYPES[self.raw.info(name).dtype], torch.float32)
        total = torch.zeros((int(wanted.sum()), *shape), dtype=dtype)
        found = torch.zeros(len(total), dtype=dtype)
        for model, (checkpoint, held) in enumerate(self._finetuned, start=1):
            if name not in held or not self.fits(checkpoint.info(name)):
                continue
            ids = self.own(model, checkpoint, name, first, end)[wanted]
            has = ids >= 0
            if has.any():
                total[has] += gathered(checkpoint, name, self.axes[name], ids[has]).to(dtype)
                found[has] += 1
        mean = total / found.clamp(min=1).reshape(-1, *[1] * (total.dim() - 1))
        if (found == 0).any():
            mean[found == 0] = self._mean(name).to(dtype)
        return mean

    def _mean(self, name: str) -> Tensor:
        """The mean of the rows of the base's tokens, float64; in pieces that depend on nothing but the tensor."""
        if name not in self._means:
            rows = self.raw.info(name).shape[self.axes[name]]
            held = sorted({i for i in self.vocabulary.tokenizers[0].ids.values() if i < rows})
            ids = torch.tensor(held, dtype=torch.int64)
            at_once = max(1, PIECE * rows // self.raw.info(name).numel)
            pieces = (ids[first : first + at_once] for first in range(0, len(ids), at_once))
            sums = [gathered(self.raw, name, self.axes[name], piece).double().sum(dim=0) for piece in pieces]
            self._means[name] = torch.stack(sums).sum(dim=0) / max(1, len(ids))
        return self._means[name]

    def will_need(self, name: str) -> None:
        self.raw.will_need(name)

    def fingerprint(self) -> str:
        return _joined(self.raw, self.vocabulary)


class OfTask:
    """A fine-tuned model in the output's vocabulary."""

    def __init__(self, base: OfBase, checkpoint: Checkpoint, t: int) -> None:
        self.label = checkpoint.label
        self._base, self._raw, self._model = base, checkpoint, t + 1
        self._held = frozenset(checkpoint.names())

    def names(self) -> Sequence[str]:
        return self._raw.names()

    def info(self, name: str) -> TensorInfo:
        """In a dtype that holds the base's rows exactly, for those that the task lacks."""
        info = self._raw.info(name)
        if not self._is_over(name):
            return info
        dtype = torch.promote_types(TORCH_DTYPES[info.dtype], TORCH_DTYPES[self._base.raw.info(name).dtype])
        return self._base.with_rows(TensorInfo(name, info.shape, NAMES_OF_DTYPES[dtype]))

    def _is_over(self, name: str) -> bool:
        return name in self._base.axes and name in self._held and self._base.fits(self._raw.info(name))

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        if not self._is_over(name):
            return self._raw.read(name, rows)
        first, end = self._base.span(name, rows)
        ids = self._shared(name, first, end)
        dtype, axis = TORCH_DTYPES[self.info(name).dtype], self._base.axes[name]
        if bool((ids >= 0).all()):
            return self._base.lying(name, gathered(self._raw, name, axis, ids).to(dtype))
        out = self._base.of_tokens(name, first, end).to(dtype)
        out[ids >= 0] = gathered(self._raw, name, axis, ids[ids >= 0]).to(dtype)
        return self._base.lying(name, out)

    def _shared(self, name: str, first: int, end: int) -> Tensor:
        """Its rows of tokens that the base has too; ABSENT for the others."""
        own = self._base.own(self._model, self._raw, name, first, end)
        return torch.where(self._base.own(0, self._base.raw, name, first, end) >= 0, own, ABSENT)

    def will_need(self, name: str) -> None:
        self._raw.will_need(name)

    def fingerprint(self) -> str:
        return _joined(self._raw, self._base.vocabulary)


class OfAdapter(OfTask):
    """An adapter on the base, in the output's vocabulary. Its change stays exact; of embeddings it comes dense."""

    def __init__(self, base: OfBase, adapter: AdapterCheckpoint, t: int) -> None:
        super().__init__(base, adapter, t)
        self._adapter = adapter
        self.notes = adapter.notes

    def is_changed(self, name: str) -> bool:
        return self._adapter.is_changed(name) or (self._is_over(name) and self._is_resized(name))

    def _is_resized(self, name: str) -> bool:
        return self._adapter.info(name).shape != self._base.raw.info(name).shape

    def delta(self, name: str, base: Tensor, dtype: torch.dtype, rows: tuple[int, int] | None = None) -> Tensor:
        if not self._is_over(name):
            return self._adapter.delta(name, base, dtype, rows)
        first, end = self._base.span(name, rows)
        own, ours = self._shared(name, first, end), self._base.own(0, self._base.raw, name, first, end)
        if self._is_resized(name) or not torch.equal(own[own >= 0], ours[own >= 0]):
            return self.read(name, rows).to(dtype).sub_(base)
        delta = torch.zeros_like(base, dtype=dtype)
        by_token, axis = (delta[0] if self._base.axes[name] else delta), self._base.axes[name]
        at = (own >= 0).nonzero().flatten()
        for piece in _runs(own[at]):
            start = int(own[at[piece.start]])
            run = (start, start + piece.stop - piece.start)
            raw = self._base.raw.read(name, None if axis else run)
            change = self._adapter.delta(name, raw, dtype, None if axis else run)
            by_token[at[piece]] = change[0, slice(*run)] if axis else change
        return delta

    def low_rank(self, name: str, row: int | None = None) -> LowRank | None:
        return None if self._is_over(name) else self._adapter.low_rank(name, row)

    def nbytes(self, name: str) -> int:
        return self._adapter.nbytes(name)


def gathered(checkpoint: Checkpoint, name: str, axis: int, ids: Tensor) -> Tensor:
    """The rows of these tokens, in their order: (len(ids), *rest), in the stored dtype.

    Read run by run; in one go, with what lies between, where that is no more than twice as much.
    """
    if axis:
        return checkpoint.read(name)[0][ids]
    if not len(ids):
        info = checkpoint.info(name)
        return torch.empty((0, *info.shape[1:]), dtype=TORCH_DTYPES[info.dtype])
    runs = list(_runs(ids))
    low, high = int(ids.min()), int(ids.max()) + 1
    if len(runs) > 1 and high - low <= 2 * len(ids):
        return checkpoint.read(name, (low, high))[ids - low]
    found = [checkpoint.read(name, (int(ids[run.start]), int(ids[run.stop - 1]) + 1)) for run in runs]
    return found[0] if len(found) == 1 else torch.cat(found)


def _runs(ids: Tensor) -> Iterator[slice]:
    """Where ids follow one another by one."""
    ends = [0, *((ids.diff() != 1).nonzero().flatten() + 1).tolist(), len(ids)]
    return (slice(first, end) for first, end in pairwise(ends) if end > first)


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def _joined(checkpoint: Checkpoint, vocabulary: Vocabulary) -> str:
    return f"{checkpoint.fingerprint()}\0{vocabulary.fingerprint}"
