"""Whose vocabulary the output gets, and where each model has its tokens: what a recipe asks for, or why it must ask."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from hf_tsv.checkpoints.modules import vocabulary_axes
from hf_tsv.checkpoints.protocol import AdapterCheckpoint, Checkpoint
from hf_tsv.errors import CheckpointError, PlanError
from hf_tsv.recipe import UNION, ModelRef, Recipe
from hf_tsv.vocabulary.rows import ABSENT, OfAdapter, OfBase, OfTask, Vocabulary
from hf_tsv.vocabulary.tokenizer import Tokenizer, read_tokenizer, same_files

MULTIPLE = 128  # the most that rows are padded to without being told


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
    tokenizers, clash = matcher.tokenizers(folders)
    if clash:
        return replace(matched, clashes=dict.fromkeys(axes, clash))
    if not tokenizers or matcher.is_settled(tokenizers):
        return matched
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

    def tokenizers(self, folders: Sequence[Find]) -> tuple[list[Tokenizer], str]:
        """One a model, and what the recipe has to say of them first.

        A model without a tokenizer is taken to have the base's where it has as many rows. There are none where one
        can't be read and the models can be merged as they lie anyway.
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
            return read, "" if self._choice.source else self._clash(read)
        if self.is_possible_as_it_lies and self._choice.source in (None, self._recipe.base):
            return [], ""
        if self._choice.source:
            raise PlanError(problems)
        return [], "; ".join([*self._other_rows(), *problems])

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

    def _clash(self, tokenizers: Sequence[Tokenizer]) -> str:
        """What is to be decided about vocabularies that differ; empty when a task has no other token at any id."""
        told = []
        base = self._held_ids(0, tokenizers[0])
        for i, tokenizer in enumerate(tokenizers[1:], start=1):
            own = self._held_ids(i, tokenizer)
            new = [token for token in own if token not in base]
            moved = [token for token, at in own.items() if base.get(token, at) != at]
            if new or moved:
                parts = [f"{_counted(new)} that the base lacks"] if new else []
                parts += [f"another id for {_counted(moved)} of the base"] if moved else []
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
        length = max(rows.values())
        own = [_positions(ids, theirs, length) for theirs in held]
        if owner == 0:  # the base's padding stays where no token has come into it
            taken = torch.zeros(length, dtype=torch.bool)
            taken[[i for i in ids.values() if i < length]] = True
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
            f" base has {self._rows(0, self._input)} rows"
        )
        if added:
            yield f"added to the base's: {_counted(list(added))}"
        new = [token for token, i in ids.items() if token not in held[0] and i < max(rows.values())]
        if several := [token for token in new if sum(token in theirs for theirs in held[1:]) > 1]:
            yield f"the mean of the rows of the tasks that have it, for what the base lacks: {_counted(several)}"
        if orphans := [token for token in new if not any(token in theirs for theirs in held[1:])]:
            yield f"the mean of the base's rows, for what has a row in no model: {_counted(orphans)}"
        for words, theirs in zip(self._words, held, strict=True):
            if lost := [token for token in theirs if token not in ids]:
                yield f"left out of what {words} has: {_counted(lost)}"


def _of_task(base: OfBase, checkpoint: Checkpoint, t: int) -> OfTask:
    return OfAdapter(base, checkpoint, t) if isinstance(checkpoint, AdapterCheckpoint) else OfTask(base, checkpoint, t)


def _positions(ids: Mapping[str, int], theirs: Mapping[str, int], length: int) -> Tensor:
    own = torch.full((length,), ABSENT, dtype=torch.int64)
    shared = [(i, theirs[token]) for token, i in ids.items() if token in theirs and i < length]
    if shared:
        at, found = torch.tensor(shared).T
        own[at] = found
    return own


def _padded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _quoted(source: str) -> str:
    return "the base" if source == "base" else f"'{source}'"


def _counted(tokens: Sequence[str], most: int = 3) -> str:
    """How many tokens, and the first few, each as JSON writes it: a token may hold anything."""
    shown = [json.dumps(token if len(token) <= 40 else f"{token[:39]}…", ensure_ascii=False) for token in tokens[:most]]
    rest = f" and {len(tokens) - most} more" if len(tokens) > most else ""
    return f"{len(tokens)} token{'s' if len(tokens) > 1 else ''} ({', '.join(shown)}{rest})"
