"""Models with different vocabularies: rows of embeddings and heads are matched by token as they are read.

Every model is seen through a checkpoint in which row i of such a tensor is the i-th token of the output's vocabulary:

* a token that base and task have: the task's row;
* a token that a task lacks: the base's row, so the task changes nothing there;
* a token that the base lacks: in all models, the mean of the rows of the tasks that have it, in the base's dtype.
  So no task changes anything there either, and the merged row is that mean, whatever the method. A new row treated as
  a change would be a change from zero: as long as the embedding itself, it would take the leading singular directions
  of a task matrix;
* a row that belongs to no token: the base's, or if the base has none, the mean of the rows of the base's tokens.
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

from hf_tsv.checkpoints.dtypes import BY_TORCH
from hf_tsv.checkpoints.protocol import AdapterCheckpoint, Checkpoint, LowRank, Rows, TensorInfo
from hf_tsv.checkpoints.view import View
from hf_tsv.recipe import UNION
from hf_tsv.vocabulary.tokenizer import Tokenizer, write_with_tokens

PIECE = 2**22  # entries averaged at a time; another number would round the mean differently
ABSENT = -1  # the row of a token that a model lacks


@dataclass(frozen=True)
class Vocabulary:
    """The output's vocabulary, and each model's rows of its tokens.

    Attributes:
        source: The vocabulary's origin: `base`, `union` or a task.
        ids: Token to id in the output.
        own: One int64 tensor per model, the base first: the model's row for each id of the output, or ABSENT.
        rows: Rows in the output of each tensor that has one row per token.
        base_rows: Rows in the base of the same tensors.
        added: Tokens that the base's tokenizer lacks, with their ids, in the order of the ids.
        tokenizers: The models' tokenizers, the base's first.
        notes: Remarks for a person.
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
        """True if the rows are the base's in the same order, so that an adapter made here fits the base itself."""
        return self.source == "base" and self.rows == self.base_rows

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that the merged bytes and the written tokenizer depend on."""
        text = json.dumps([self.source, self.ids, self.rows], sort_keys=True)
        digest = hashlib.sha256(text.encode())
        for own in self.own:
            digest.update(own.numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return the vocabulary's entry in the record."""
        return {"source": self.source, "tokens": len(self.ids), "new": len(self.added), "rows": dict(self.rows)}

    def write(self, folder: Path) -> None:
        """Turn the base's tokenizer in a folder into the union's; do nothing if the output has a model's own."""
        if self.source == UNION and self.added:
            write_with_tokens(folder, self.tokenizers[0], self.added, self.tokenizers[1:])


class OfBase(View):
    """The base model in the output's vocabulary.

    Attributes:
        inner: The base model as it is stored.
        vocabulary: The output's vocabulary.
        axes: The axis of the tokens, by the name of each tensor with one row per token.
    """

    def __init__(
        self, base: Checkpoint, finetuned: Sequence[Checkpoint], vocabulary: Vocabulary, axes: Mapping[str, int]
    ) -> None:
        super().__init__(base)
        self.vocabulary = vocabulary
        self.axes = axes
        self._finetuned = [(checkpoint, frozenset(checkpoint.names())) for checkpoint in finetuned]
        self._means: dict[str, Tensor] = {}

    def info(self, name: str) -> TensorInfo:
        info = super().info(name)
        return self.with_rows(info) if name in self.axes else info

    def read(self, name: str, rows: Rows = None) -> Tensor:
        if name not in self.axes:
            return super().read(name, rows)
        first, end = self.span(name, rows)
        return self.as_stored(name, self.rows_of(name, first, end))

    def fingerprint(self) -> str:
        return f"{super().fingerprint()}\0{self.vocabulary.fingerprint}"

    def fits(self, info: TensorInfo) -> bool:
        """Return True if a task's tensor has one row per token, and otherwise the base's shape.

        A tensor that doesn't is passed on unchanged, so that the plan can report that it doesn't fit.
        """
        axis, base = self.axes[info.name], self.inner.info(info.name)
        return info.is_float and _without(info.shape, axis) == _without(base.shape, axis)

    def with_rows(self, info: TensorInfo) -> TensorInfo:
        """Return a header with the output's number of rows."""
        shape = list(info.shape)
        shape[self.axes[info.name]] = self.vocabulary.rows[info.name]
        return TensorInfo(info.name, tuple(shape), info.dtype)

    def span(self, name: str, rows: Rows) -> tuple[int, int]:
        """Return the first and past-the-last token of `rows`; all tokens if they are along axis 1."""
        if rows and not self.axes[name]:
            return rows
        return 0, self.vocabulary.rows[name]

    def as_stored(self, name: str, by_token: Tensor) -> Tensor:
        """Return (tokens, *rest) in the tensor's stored layout: (1, tokens) if the tokens are along axis 1."""
        return by_token[None] if self.axes[name] else by_token

    def positions(self, model: int, checkpoint: Checkpoint, name: str, first: int, end: int) -> Tensor:
        """Return a model's rows of the tokens [first, end), int64; ABSENT where its tensor has no such row."""
        ids = self.vocabulary.own[model][first:end]
        length = checkpoint.info(name).shape[self.axes[name]]
        return torch.where(ids < length, ids, ABSENT)

    def rows_of(self, name: str, first: int, end: int) -> Tensor:
        """Read the base's rows of the tokens [first, end): (end - first, *rest), in the base's dtype."""
        ids = self.positions(0, self.inner, name, first, end)
        is_known = ids >= 0
        if bool(is_known.all()):
            return gathered(self.inner, name, self.axes[name], ids)
        known = gathered(self.inner, name, self.axes[name], ids[is_known])
        out = known.new_empty((end - first, *known.shape[1:]))
        out[is_known] = known
        out[~is_known] = self._means_of_tasks(name, first, end, ~is_known).to(out.dtype)
        return out

    def _means_of_tasks(self, name: str, first: int, end: int, wanted: Tensor) -> Tensor:
        """Return rows of tokens that the base lacks: the mean over the tasks that have them, in at least float32.

        Args:
            name: The tensor's name.
            first: The first token of the range.
            end: The token past the last one.
            wanted: True for each token of the range to compute, (end - first,) bool.
        """
        base = self.inner.info(name)
        shape = () if self.axes[name] else base.shape[1:]
        dtype = torch.promote_types(base.torch_dtype, torch.float32)
        total = torch.zeros((int(wanted.sum()), *shape), dtype=dtype)
        count = torch.zeros(len(total), dtype=dtype)  # number of tasks that have each token
        for model, (checkpoint, names) in enumerate(self._finetuned, start=1):
            if name not in names or not self.fits(checkpoint.info(name)):
                continue
            ids = self.positions(model, checkpoint, name, first, end)[wanted]
            has = ids >= 0
            if has.any():
                total[has] += gathered(checkpoint, name, self.axes[name], ids[has]).to(dtype)
                count[has] += 1
        per_row = (len(total), *[1] * (total.dim() - 1))
        mean = total / count.clamp(min=1).reshape(per_row)
        if (count == 0).any():
            mean[count == 0] = self._mean_of_base(name).to(dtype)
        return mean

    def _mean_of_base(self, name: str) -> Tensor:
        """Return the mean of the rows of the base's tokens, float64. Computed once per tensor.

        It is summed in pieces whose size depends only on the tensor, so that its bits depend on nothing else.
        """
        if name not in self._means:
            info = self.inner.info(name)
            rows = info.shape[self.axes[name]]
            tokens = sorted({i for i in self.vocabulary.tokenizers[0].ids.values() if i < rows})
            ids = torch.tensor(tokens, dtype=torch.int64)
            rows_at_once = max(1, PIECE * rows // info.numel)
            # The rows get no name, so that one piece is freed before the next is read.
            sums = [
                gathered(self.inner, name, self.axes[name], piece).double().sum(dim=0)
                for piece in torch.split(ids, rows_at_once)
            ]
            self._means[name] = torch.stack(sums).sum(dim=0) / max(1, len(ids))
        return self._means[name]


class OfTask(View):
    """A fine-tuned model in the output's vocabulary."""

    def __init__(self, base: OfBase, checkpoint: Checkpoint, t: int) -> None:
        super().__init__(checkpoint)
        self._base = base
        self._model = t + 1  # in the vocabulary, where the base comes first
        self._inner_names = frozenset(checkpoint.names())

    def info(self, name: str) -> TensorInfo:
        """Return the header. Its dtype holds the base's rows exactly, because they replace rows that the task lacks."""
        info = super().info(name)
        if not self._is_by_token(name):
            return info
        dtype = torch.promote_types(info.torch_dtype, self._base.inner.info(name).torch_dtype)
        return self._base.with_rows(TensorInfo(name, info.shape, BY_TORCH[dtype].name))

    def read(self, name: str, rows: Rows = None) -> Tensor:
        if not self._is_by_token(name):
            return super().read(name, rows)
        first, end = self._base.span(name, rows)
        ids = self._shared_positions(name, first, end)
        is_shared = ids >= 0
        dtype, axis = self.info(name).torch_dtype, self._base.axes[name]
        if bool(is_shared.all()):
            return self._base.as_stored(name, gathered(self.inner, name, axis, ids).to(dtype))
        out = self._base.rows_of(name, first, end).to(dtype)  # (end - first, *rest)
        out[is_shared] = gathered(self.inner, name, axis, ids[is_shared]).to(dtype)
        return self._base.as_stored(name, out)

    def fingerprint(self) -> str:
        return f"{super().fingerprint()}\0{self._base.vocabulary.fingerprint}"

    def _is_by_token(self, name: str) -> bool:
        """Return True if the model has the tensor, with one row per token."""
        return name in self._base.axes and name in self._inner_names and self._base.fits(self.inner.info(name))

    def _shared_positions(self, name: str, first: int, end: int) -> Tensor:
        """Return the model's rows of the tokens that the base has too, ABSENT for the others: (end - first,) int64."""
        own = self._base.positions(self._model, self.inner, name, first, end)
        in_base = self._base.positions(0, self._base.inner, name, first, end)
        return torch.where(in_base >= 0, own, ABSENT)


class OfAdapter(OfTask):
    """An adapter on the base, in the output's vocabulary. Its change stays exact; for embeddings it is dense."""

    def __init__(self, base: OfBase, adapter: AdapterCheckpoint, t: int) -> None:
        super().__init__(base, adapter, t)
        self._adapter = adapter
        self.notes = adapter.notes

    def is_changed(self, name: str) -> bool:
        # A tensor with another number of rows than the base's is changed, whatever the adapter says.
        is_resized = self._is_by_token(name) and self._is_resized(name)
        return is_resized or self._adapter.is_changed(name)

    def delta(self, name: str, base: Tensor, dtype: torch.dtype, rows: Rows = None) -> Tensor:
        if not self._is_by_token(name):
            return self._adapter.delta(name, base, dtype, rows)
        first, end = self._base.span(name, rows)
        ids = self._shared_positions(name, first, end)
        in_base = self._base.positions(0, self._base.inner, name, first, end)
        # The adapter's own delta belongs to the base's tensor, row by row. It can be used only if both number the
        # tokens alike.
        if self._is_resized(name) or not torch.equal(ids[ids >= 0], in_base[ids >= 0]):
            return self.read(name, rows).to(dtype).sub_(base)
        axis = self._base.axes[name]
        delta = torch.zeros_like(base, dtype=dtype)
        by_token = delta[0] if axis else delta  # (tokens, *rest)
        known = (ids >= 0).nonzero().flatten()
        for piece in _consecutive(ids[known]):
            start = int(ids[known[piece.start]])
            run = (start, start + piece.stop - piece.start)
            # Rows are read along axis 0 only, so a tensor with its tokens along axis 1 is read whole.
            read = None if axis else run
            stored = self._base.inner.read(name, read)
            change = self._adapter.delta(name, stored, dtype, read)
            by_token[known[piece]] = change[0, slice(*run)] if axis else change
        return delta

    def low_rank(self, name: str, row: int | None = None) -> LowRank | None:
        return None if self._is_by_token(name) else self._adapter.low_rank(name, row)

    def nbytes(self, name: str) -> int:
        return self._adapter.nbytes(name)

    def _is_resized(self, name: str) -> bool:
        """Return True if the adapter's tensor has another number of rows than the base's."""
        return self._adapter.info(name).shape != self._base.inner.info(name).shape


def gathered(checkpoint: Checkpoint, name: str, axis: int, ids: Tensor) -> Tensor:
    """Read the rows of these tokens, in their order: (len(ids), *rest), in the stored dtype.

    Each run of consecutive ids is one read; or all are one read with the rows between them, if that is no more than
    twice as much.
    """
    if axis:
        return checkpoint.read(name)[0][ids]
    if not len(ids):
        info = checkpoint.info(name)
        return torch.empty((0, *info.shape[1:]), dtype=info.torch_dtype)
    runs = list(_consecutive(ids))
    low, high = int(ids.min()), int(ids.max()) + 1
    if len(runs) > 1 and high - low <= 2 * len(ids):
        return checkpoint.read(name, (low, high))[ids - low]
    pieces = []
    for run in runs:
        first, last = int(ids[run.start]), int(ids[run.stop - 1])
        pieces.append(checkpoint.read(name, (first, last + 1)))
    # One piece is the tensor itself: torch.cat would copy it.
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _consecutive(ids: Tensor) -> Iterator[slice]:
    """Yield the longest slices of `ids` in which each id is one more than the id before it."""
    breaks = (ids.diff() != 1).nonzero().flatten() + 1
    ends = [0, *breaks.tolist(), len(ids)]
    for first, end in pairwise(ends):
        if end > first:  # without ids there would be one empty slice
            yield slice(first, end)


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])
