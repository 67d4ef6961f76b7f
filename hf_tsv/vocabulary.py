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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_tsv.checkpoint import AdapterCheckpoint, Checkpoint, LowRank, TensorInfo
from hf_tsv.errors import CheckpointError, PlanError
from hf_tsv.loaders import NAMES_OF_DTYPES, TORCH_DTYPES
from hf_tsv.modules import vocabulary_axes
from hf_tsv.recipe import UNION, ModelRef, Recipe
from hf_tsv.tokenizer import Tokenizer, read_tokenizer, same_files, write_with_tokens

MULTIPLE = 128  # the most that rows are padded to without being told
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
            "notes": list(self.notes),
        }

    def write(self, folder: Path) -> None:
        """Make the base's tokenizer in a folder the union's; nothing where the output has one of the models' own."""
        if self.source == UNION and self.added:
            write_with_tokens(folder, self.tokenizers[0], self.added, self.tokenizers[1:])


@dataclass(frozen=True)
class Matched:
    """Models as they are merged.

    Attributes:
        base: The base model.
        finetuned: The fine-tuned ones.
        vocabulary: What their rows were matched by; None where they are merged as they lie.
        clashes: Why tensors with one row a token can't be merged, by name.
    """

    base: Checkpoint
    finetuned: tuple[Checkpoint, ...]
    vocabulary: Vocabulary | None = None
    clashes: Mapping[str, str] = field(default_factory=dict)


Find = Callable[[], Path | None]  # the folder of a model's tokenizer, None where it has none


def match_vocabularies(
    recipe: Recipe,
    base: Checkpoint,
    finetuned: Sequence[Checkpoint],
    folders: Sequence[Find],
    look_alike: Callable[[], bool] = lambda: False,
) -> Matched:
    """Models in the vocabulary that the recipe asks for.

    Args:
        recipe: What to do.
        base: The base model's checkpoint.
        finetuned: The fine-tuned models', under the base's names.
        folders: Where their tokenizers are, the base's first.
        look_alike: Whether they need not be read as long as all models have the same rows.

    Raises:
        PlanError: a tokenizer that is needed can't be read, or the union is none.
    """
    matched = Matched(base, tuple(finetuned))
    axes = vocabulary_axes([base.info(name) for name in base.names()])
    if not axes:
        return matched
    matcher = _Matcher(recipe, base, finetuned, axes)
    if matcher.is_possible_as_it_lies and look_alike():
        return matched
    found = matcher.tokenizers(folders)
    clash = found if isinstance(found, str) else "" if recipe.tokenizer.source else matcher.clash(found)
    if clash or isinstance(found, str):
        return replace(matched, clashes=dict.fromkeys(axes, clash) if clash else {})
    if matcher.is_settled(found):
        return matched
    tokenizers = found
    vocabulary = matcher.vocabulary(tokenizers)
    seen = OfBase(base, finetuned, vocabulary, axes)
    views = [_of_task(seen, checkpoint, t) for t, checkpoint in enumerate(finetuned)]
    return Matched(seen, tuple(views), vocabulary)


class _Matcher:
    """What is asked of the models' vocabularies, and what they are."""

    def __init__(
        self, recipe: Recipe, base: Checkpoint, finetuned: Sequence[Checkpoint], axes: Mapping[str, int]
    ) -> None:
        self._recipe, self._choice = recipe, recipe.tokenizer
        self._models = (base, *finetuned)
        self._words = ("the base", *(f"'{model.name}'" for model in recipe.models))
        self._axes = axes
        self._input = max(axes, key=lambda name: (base.info(name).shape[axes[name]], name))  # the largest tells rows
        self._held = [frozenset(model.names()) for model in self._models]

    def _rows(self, model: int, name: str) -> int:
        if name not in self._held[model]:
            return 0
        shape, axis = self._models[model].info(name).shape, self._axes[name]
        return shape[axis] if axis < len(shape) else 0

    def _largest(self, model: int) -> int:
        return max(self._rows(model, name) for name in self._axes)

    def _rows_differ(self, model: int) -> bool:
        return any(self._rows(model, name) not in (0, self._rows(0, name)) for name in self._axes)

    def tokenizers(self, folders: Sequence[Find]) -> list[Tokenizer] | str:
        """One a model, or why there is none; nothing to tell where the models can be merged as they lie anyway.

        A model without a tokenizer is taken to have the base's where it has as many rows.
        """
        places, problems = [find() for find in folders], []
        read: list[Tokenizer] = []
        for i, place in enumerate(places):
            try:
                if place is None and (i == 0 or self._rows_differ(i)):
                    raise CheckpointError(f"{self._models[i].label}: no tokenizer in it")
                known = i and (place is None or (places[0] and same_files(place, places[0])))
                read.append(read[0] if known or place is None else read_tokenizer(place))
            except CheckpointError as error:
                problems.append(self._unreadable(str(error)))
                if i == 0:
                    break
                read.append(read[0])
        if not problems:
            return read
        if self.is_possible_as_it_lies and self._choice.source in (None, self._recipe.base):
            return ""
        if self._choice.source:
            raise PlanError(problems)
        return "; ".join([*self._other_rows(), *problems])

    def _other_rows(self) -> Iterator[str]:
        for model in range(1, len(self._models)):
            for name in self._axes:
                rows, base = self._rows(model, name), self._rows(0, name)
                if rows not in (0, base):
                    yield f"{self._words[model]} has {rows} rows, the base has {base}"
                    break

    def _unreadable(self, problem: str) -> str:
        return (
            f"{problem}, expected one to match rows by. Put a tokenizer.json beside the weights, which"
            " AutoTokenizer.from_pretrained(...).save_pretrained(...) writes, or keep the base's embeddings by an"
            " override with merge_method: base" + (", without tokenizer_source" if self._choice.source else "")
        )

    def _held_ids(self, model: int, tokenizer: Tokenizer) -> dict[str, int]:
        """The tokens that have a row."""
        rows = self._largest(model)
        return {token: i for token, i in tokenizer.ids.items() if i < rows}

    def clash(self, tokenizers: Sequence[Tokenizer]) -> str:
        """What is to be decided about vocabularies that differ; empty when a task has no other token at any id."""
        told = []
        base = self._held_ids(0, tokenizers[0])
        for i, tokenizer in enumerate(tokenizers[1:], start=1):
            own = self._held_ids(i, tokenizer)
            new = [token for token in own if token not in base]
            moved = [token for token, at in own.items() if base.get(token, at) != at]
            if new or moved:
                parts = [f"{len(new)} tokens that the base lacks ({_some(new)})"] if new else []
                parts += [f"another id for {len(moved)} of the base's ({_some(moved)})"] if moved else []
                told.append(f"{self._words[i]} has {' and '.join(parts)}")
        if not told:
            return ""
        return (
            f"the vocabularies differ: {'; '.join(told)}. Say whose the output gets: tokenizer_source: base leaves new"
            " tokens out, union takes all, a model's name takes that model's; rows are then matched by token. Or keep"
            " the base's embeddings by an override with merge_method: base"
        )

    @property
    def is_possible_as_it_lies(self) -> bool:
        """Whether all models have the same rows, which are the output's."""
        return not self._choice.pad_to_multiple_of and not any(map(self._rows_differ, range(len(self._models))))

    def is_settled(self, tokenizers: Sequence[Tokenizer]) -> bool:
        """Whether row i means the same in all models, and the output's rows are the base's."""
        same = all(t is tokenizers[0] or t.ids == tokenizers[0].ids for t in tokenizers)
        return self.is_possible_as_it_lies and (same or not self._choice.source)

    def vocabulary(self, tokenizers: Sequence[Tokenizer]) -> Vocabulary:
        held = [self._held_ids(i, tokenizer) for i, tokenizer in enumerate(tokenizers)]
        source, owner = self._source()
        added: dict[str, int] = {}
        if source == UNION:
            added = self._new_tokens(tokenizers, held)
            ids = {**tokenizers[0].ids, **added}
        else:
            ids = dict(tokenizers[owner].ids)
        rows = {name: self._out_rows(name, source, owner, ids, tokenizers[0]) for name in self._axes}
        length = max(*rows.values(), max(ids.values()) + 1)
        own = [_positions(ids, theirs, length) for theirs in held]
        if owner == 0:  # the base's padding stays where no token has come into it
            taken = torch.zeros(length, dtype=torch.bool)
            taken[list(ids.values())] = True
            padding = torch.arange(length)
            own[0] = torch.where(taken | (padding >= self._largest(0)), own[0], padding)
        notes = tuple(self._notes(source, ids, added, held, rows))
        base_rows = {name: self._rows(0, name) for name in self._axes}
        return Vocabulary(source, ids, tuple(own), rows, base_rows, added, tuple(tokenizers), notes)

    def _source(self) -> tuple[str, int]:
        """What the vocabulary is called, and the model whose it is: for a union the base, whose ids it keeps."""
        source = self._choice.source
        if not isinstance(source, ModelRef) or source == self._recipe.base:
            return (UNION if source == UNION else "base"), 0
        owner = next(i for i, model in enumerate(self._recipe.models, start=1) if model.ref == source)
        return self._recipe.models[owner - 1].name, owner

    def _new_tokens(self, tokenizers: Sequence[Tokenizer], held: Sequence[Mapping[str, int]]) -> dict[str, int]:
        """The fine-tuned models' own tokens: model by model in the recipe's order, by their ids there."""
        base, added = tokenizers[0].ids, dict[str, int]()
        first = max(base.values()) + 1
        problems = []
        for i, theirs in enumerate(held[1:], start=1):
            new = [token for token in sorted(theirs, key=lambda token: theirs[token]) if token not in base]
            kinds = tokenizers[0].kind, tokenizers[i].kind
            if kinds[0] is None and new:
                problems.append(self._unreadable(f"{self._models[0].label}: no tokenizer.json in it to add tokens to"))
            elif any(token not in tokenizers[i].added for token in new) and kinds[0] != kinds[1]:
                problems.append(
                    f"{self._words[i]}: its tokenizer is of kind {kinds[1]}, expected {kinds[0]} as the base's, for the"
                    " union to be one that cuts words. Write tokenizer_source: base, or the name of a model"
                )
            for token in new:
                added.setdefault(token, first + len(added))
        if problems:
            raise PlanError(dict.fromkeys(problems))
        return added

    def _out_rows(self, name: str, source: str, owner: int, ids: Mapping[str, int], base: Tokenizer) -> int:
        needed, ours = max(ids.values()) + 1, self._rows(0, name)
        if multiple := self._choice.pad_to_multiple_of:
            return _padded(needed, multiple)
        if owner:
            return self._rows(owner, name) or self._largest(owner)
        if source != UNION or needed <= ours:
            return ours
        is_padded = ours > max(base.ids.values()) + 1
        return _padded(needed, min(ours & -ours, MULTIPLE)) if is_padded else needed

    def _notes(
        self,
        source: str,
        ids: Mapping[str, int],
        added: Mapping[str, int],
        held: Sequence[Mapping[str, int]],
        rows: Mapping[str, int],
    ) -> Iterator[str]:
        whose = "the union of all vocabularies" if source == UNION else f"the vocabulary of {_quoted(source)}"
        yield (
            f"embeddings are matched by token, into {whose}: {len(ids)} tokens in {rows[self._input]} rows; the"
            f" base has {self._rows(0, self._input)}"
        )
        if added:
            yield f"{len(added)} tokens are added to the base's: {_some(list(added))}"
        new = [token for token, i in ids.items() if token not in held[0] and i < max(rows.values())]
        if several := sum(sum(token in theirs for theirs in held[1:]) > 1 for token in new):
            yield f"{several} tokens that the base lacks get the mean of the rows of the tasks that have them"
        if orphans := [token for token in new if not any(token in theirs for theirs in held[1:])]:
            yield f"{len(orphans)} tokens have a row in no model and get the mean of the base's: {_some(orphans)}"
        for words, theirs in zip(self._words, held, strict=True):
            if lost := [token for token in theirs if token not in ids]:
                yield f"{words} has {len(lost)} tokens that the output leaves out: {_some(lost)}"


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
            if name not in held:
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
        """Whether it has one row a token, and otherwise the base's shape: else it is told as a misfit."""
        axis = self._base.axes.get(name)
        if axis is None or name not in self._held:
            return False
        info, base = self._raw.info(name), self._base.raw.info(name)
        return info.is_float and base.is_float and _without(info.shape, axis) == _without(base.shape, axis)

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


def _of_task(base: OfBase, checkpoint: Checkpoint, t: int) -> OfTask:
    return OfAdapter(base, checkpoint, t) if isinstance(checkpoint, AdapterCheckpoint) else OfTask(base, checkpoint, t)


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


def _positions(ids: Mapping[str, int], theirs: Mapping[str, int], length: int) -> Tensor:
    own = torch.full((length,), ABSENT, dtype=torch.int64)
    shared = [(i, theirs[token]) for token, i in ids.items() if token in theirs]
    if shared:
        at, found = torch.tensor(shared).T
        own[at] = found
    return own


def _padded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def _joined(checkpoint: Checkpoint, vocabulary: Vocabulary) -> str:
    return f"{checkpoint.fingerprint()}\0{vocabulary.fingerprint}"


def _quoted(source: str) -> str:
    return "the base" if source == "base" else f"'{source}'"


def _some(tokens: Sequence[str], most: int = 3) -> str:
    """The first few tokens, each as JSON writes it: a token may hold anything."""
    shown = [json.dumps(token if len(token) <= 40 else f"{token[:39]}…", ensure_ascii=False) for token in tokens[:most]]
    return ", ".join(shown) + (f" and {len(tokens) - most} more" if len(tokens) > most else "")


__all__ = ["Matched", "OfAdapter", "OfBase", "OfTask", "Vocabulary", "match_vocabularies"]
