"""Choose the output's vocabulary as the recipe asks, and find each model's rows; report a clash that it must settle."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from hf_tsv.checkpoints.modules import vocabulary_axes
from hf_tsv.checkpoints.protocol import AdapterCheckpoint, Checkpoint
from hf_tsv.errors import CheckpointError, PlanError
from hf_tsv.recipe import UNION, ModelRef, Recipe
from hf_tsv.vocabulary.rows import ABSENT, OfAdapter, OfBase, OfTask, Vocabulary
from hf_tsv.vocabulary.tokenizer import Tokenizer, read_tokenizer, same_files

MULTIPLE = 128  # the largest multiple that rows are padded to, unless the recipe says otherwise


@dataclass(frozen=True)
class Matched:
    """Models in the form in which they are merged.

    Attributes:
        base: The base model.
        finetuned: The fine-tuned models.
        vocabulary: The vocabulary that their rows were matched to; None if the models are merged as stored.
        clashes: The reason why a tensor with one row per token can't be merged, by the tensor's name.
    """

    base: Checkpoint
    finetuned: tuple[Checkpoint, ...]
    vocabulary: Vocabulary | None = None
    clashes: Mapping[str, str] = field(default_factory=dict)


FindTokenizer = Callable[[], Path | None]  # gives the folder of a model's tokenizer or None; may download it


def match_vocabularies(
    recipe: Recipe,
    base: Checkpoint,
    finetuned: Sequence[Checkpoint],
    folders: Sequence[FindTokenizer],
    look_alike: Callable[[], bool] = lambda: False,
) -> Matched:
    """Return the models in the vocabulary that the recipe asks for.

    Args:
        recipe: The recipe of the merge.
        base: The base model's checkpoint.
        finetuned: The fine-tuned models' checkpoints, under the base's names.
        folders: Functions that find the models' tokenizers, the base's first.
        look_alike: Function that returns True if the tokenizers need not be read when all models have the same rows.

    Raises:
        PlanError: a tokenizer that is needed can't be read, or the models' tokenizers have no union.
    """
    as_stored = Matched(base, tuple(finetuned))
    axes = vocabulary_axes([base.info(name) for name in base.names()])
    if not axes:
        return as_stored
    matcher = _Matcher(recipe, base, finetuned, axes)
    if matcher.is_possible_as_stored and look_alike():
        return as_stored
    tokenizers, clash = matcher.tokenizers(folders)
    if clash:
        return replace(as_stored, clashes=dict.fromkeys(axes, clash))
    if not tokenizers or matcher.is_settled(tokenizers):
        return as_stored
    vocabulary = matcher.vocabulary(tokenizers)
    base_view = OfBase(base, finetuned, vocabulary, axes)
    views: list[Checkpoint] = []
    for t, checkpoint in enumerate(finetuned):
        if isinstance(checkpoint, AdapterCheckpoint):
            views.append(OfAdapter(base_view, checkpoint, t))
        else:
            views.append(OfTask(base_view, checkpoint, t))
    return Matched(base_view, tuple(views), vocabulary)


class _Matcher:
    """The vocabularies of a recipe's models, and the recipe's choice among them.

    Models are numbered: 0 is the base, t + 1 is the fine-tuned model t.
    """

    def __init__(
        self, recipe: Recipe, base: Checkpoint, finetuned: Sequence[Checkpoint], axes: Mapping[str, int]
    ) -> None:
        self._recipe, self._choice = recipe, recipe.tokenizer
        self._models = (base, *finetuned)
        self._words = ("the base", *(f"'{model.name}'" for model in recipe.models))  # the models' names in messages
        self._axes = axes
        # The tensor with the most rows. Its rows are the ones that messages state.
        self._largest_name = max(axes, key=lambda name: (base.info(name).shape[axes[name]], name))
        self._names = [frozenset(model.names()) for model in self._models]

    def _rows(self, model: int, name: str) -> int:
        """Return the rows of a tensor that has one per token; 0 if the model doesn't have the tensor."""
        if name not in self._names[model]:
            return 0
        shape, axis = self._models[model].info(name).shape, self._axes[name]
        return shape[axis] if axis < len(shape) else 0

    def _largest(self, model: int) -> int:
        return max(self._rows(model, name) for name in self._axes)

    def _rows_differ(self, model: int) -> bool:
        """Return True if a tensor of the model has another number of rows than the base's. Missing ones don't count."""
        return any(self._rows(model, name) not in (0, self._rows(0, name)) for name in self._axes)

    def tokenizers(self, folders: Sequence[FindTokenizer]) -> tuple[list[Tokenizer], str]:
        """Read the models' tokenizers; return them, and why the recipe must settle a clash (empty if it needn't).

        A model without a tokenizer is assumed to have the base's if it has as many rows. The list is empty if one can't
        be read: either the models can be merged as stored anyway, or the reason is in the text.

        Raises:
            PlanError: a tokenizer that the recipe needs can't be read.
        """
        places = [find() for find in folders]
        problems: list[str] = []
        read: list[Tokenizer] = []
        for model, place in enumerate(places):
            try:
                if place is None and (model == 0 or self._rows_differ(model)):
                    raise CheckpointError(f"{self._models[model].label}: no tokenizer in it")
                if place is None or (model > 0 and places[0] is not None and same_files(place, places[0])):
                    read.append(read[0])  # the base's: read once, and the same object
                else:
                    read.append(read_tokenizer(place))
            except CheckpointError as error:
                problems.append(self._unreadable(str(error)))
                if model == 0:
                    break  # nothing to match the others with
                read.append(read[0])
        if not problems:
            return read, "" if self._choice.source else self._clash(read)
        if self.is_possible_as_stored and self._choice.source in (None, self._recipe.base):
            return [], ""
        if self._choice.source:
            raise PlanError(problems)
        # The clash is between the numbers of rows; the reasons why rows can't be matched come after it.
        reasons = []
        for model in range(1, len(self._models)):
            for name in self._axes:
                rows, base = self._rows(model, name), self._rows(0, name)
                if rows not in (0, base):
                    reasons.append(f"{self._words[model]} has {rows} rows, the base has {base}")
                    break  # one statement per model
        return [], "; ".join([*reasons, *problems])

    def _unreadable(self, problem: str) -> str:
        also = ", without tokenizer_source" if self._choice.source else ""
        return (
            f"{problem}, but rows are matched by it. Put a tokenizer.json beside the weights, which"
            " AutoTokenizer.from_pretrained(...).save_pretrained(...) writes, or keep the base's embeddings by an"
            f" override with merge_method: base{also}"
        )

    def _ids_with_rows(self, model: int, tokenizer: Tokenizer) -> dict[str, int]:
        """Return the ids of the tokens that have a row: a tokenizer may have more tokens than its model has rows."""
        rows = self._largest(model)
        return {token: i for token, i in tokenizer.ids.items() if i < rows}

    def _clash(self, tokenizers: Sequence[Tokenizer]) -> str:
        """Return how the vocabularies differ, and the recipe's choices; empty if every task has the base's tokens."""
        differences = []
        base = self._ids_with_rows(0, tokenizers[0])
        for i, tokenizer in enumerate(tokenizers[1:], start=1):
            own = self._ids_with_rows(i, tokenizer)
            new = [token for token in own if token not in base]
            moved = [token for token, at in own.items() if base.get(token, at) != at]
            parts = []
            if new:
                parts.append(f"{_counted(new)} that the base lacks")
            if moved:
                parts.append(f"another id for {_counted(moved)} of the base")
            if parts:
                differences.append(f"{self._words[i]} has {' and '.join(parts)}")
        if not differences:
            return ""
        return (
            f"the vocabularies differ: {'; '.join(differences)}. Say whose the output gets: tokenizer_source: base"
            " leaves new tokens out, union takes all, a model's name takes that model's; rows are then matched by"
            " token. Or keep the base's embeddings by an override with merge_method: base"
        )

    @property
    def is_possible_as_stored(self) -> bool:
        """True if all models have the same numbers of rows, and the recipe asks for no padding."""
        if self._choice.pad_to_multiple_of:
            return False
        return not any(map(self._rows_differ, range(len(self._models))))

    def is_settled(self, tokenizers: Sequence[Tokenizer]) -> bool:
        """Return True if row i means the same in all models, and the output's rows are the base's."""
        # Without a source, differences between the tokens with rows were reported as a clash before.
        same = all(t is tokenizers[0] or t.ids == tokenizers[0].ids for t in tokenizers)
        return self.is_possible_as_stored and (same or not self._choice.source)

    def vocabulary(self, tokenizers: Sequence[Tokenizer]) -> Vocabulary:
        """Make the output's vocabulary, as the recipe asks for it.

        Raises:
            PlanError: the models' tokenizers have no union.
        """
        known = [self._ids_with_rows(model, tokenizer) for model, tokenizer in enumerate(tokenizers)]
        # The vocabulary's name, and the model that it belongs to: for a union the base, whose ids it keeps.
        source, owner = "base", 0
        choice = self._choice.source
        if choice == UNION:
            source = UNION
        elif isinstance(choice, ModelRef) and choice != self._recipe.base:
            owner = next(i for i, model in enumerate(self._recipe.models, start=1) if model.ref == choice)
            source = self._recipe.models[owner - 1].name
        added: dict[str, int] = {}
        if source == UNION:
            added = self._new_tokens(tokenizers, known)
            ids = {**tokenizers[0].ids, **added}
        else:
            ids = dict(tokenizers[owner].ids)
        rows = {name: self._out_rows(name, source, owner, ids, tokenizers[0]) for name in self._axes}
        length = max(rows.values())
        own = []  # by model, (length,): the model's row of each of the output's ids
        for theirs in known:
            positions = torch.full((length,), ABSENT, dtype=torch.int64)
            shared = [(i, theirs[token]) for token, i in ids.items() if token in theirs and i < length]
            if shared:
                at, their_ids = torch.tensor(shared).T
                positions[at] = their_ids
            own.append(positions)
        if owner == 0:
            # The base's padding rows, which belong to no token, stay where they are unless a token takes their place.
            is_token = torch.zeros(length, dtype=torch.bool)
            is_token[[i for i in ids.values() if i < length]] = True
            same_place = torch.arange(length)
            is_padding = ~is_token & (same_place < self._largest(0))
            own[0] = torch.where(is_padding, same_place, own[0])
        notes = tuple(self._notes(source, ids, added, known, rows))
        base_rows = {name: self._rows(0, name) for name in self._axes}
        return Vocabulary(source, ids, tuple(own), rows, base_rows, added, tuple(tokenizers), notes)

    def _new_tokens(self, tokenizers: Sequence[Tokenizer], known: Sequence[Mapping[str, int]]) -> dict[str, int]:
        """Return the tokens that the base lacks and their new ids, in the recipe's order of models, then by id there.

        Args:
            tokenizers: The models' tokenizers.
            known: Ids of the tokens that have a row, by model.

        Raises:
            PlanError: tokens can't be added to the base's tokenizer, or another tokenizer cuts words differently.
        """
        base = tokenizers[0].ids
        added: dict[str, int] = {}
        first = max(base.values()) + 1
        problems = []
        for i, theirs in enumerate(known[1:], start=1):
            new = [token for token in sorted(theirs, key=theirs.__getitem__) if token not in base]
            kinds = tokenizers[0].kind, tokenizers[i].kind
            if kinds[0] is None and new:
                problems.append(self._unreadable(f"{self._models[0].label}: no tokenizer.json in it to add tokens to"))
            elif any(token not in tokenizers[i].added for token in new) and kinds[0] != kinds[1]:
                problems.append(
                    f"{self._words[i]}: its tokenizer is of kind {kinds[1]}, expected {kinds[0]} as the base's, for the"
                    " union to be one that cuts words. Write tokenizer_source: base, or the name of a model"
                )
            # A token that several tasks have gets its id from the first one.
            for token in new:
                added.setdefault(token, first + len(added))
        if problems:
            raise PlanError(dict.fromkeys(problems))
        return added

    def _out_rows(self, name: str, source: str, owner: int, ids: Mapping[str, int], base: Tokenizer) -> int:
        """Return a tensor's number of rows in the output."""
        needed, in_base = max(ids.values()) + 1, self._rows(0, name)
        if multiple := self._choice.pad_to_multiple_of:
            return _padded(needed, multiple)
        if owner:
            return self._rows(owner, name) or self._largest(owner)  # 0 rows: the owner lacks the tensor
        if source != UNION or needed <= in_base:
            return in_base
        is_base_padded = in_base > max(base.ids.values()) + 1
        if not is_base_padded:
            return needed
        power_of_two = in_base & -in_base  # the largest one that divides the base's rows
        return _padded(needed, min(power_of_two, MULTIPLE))

    def _notes(
        self,
        source: str,
        ids: Mapping[str, int],
        added: Mapping[str, int],
        known: Sequence[Mapping[str, int]],
        rows: Mapping[str, int],
    ) -> Iterator[str]:
        """Yield remarks for a person on the output's vocabulary. Arguments are the variables of `vocabulary`."""
        if source == UNION:
            whose = "the union of all vocabularies"
        elif source == "base":
            whose = "the vocabulary of the base"
        else:
            whose = f"the vocabulary of '{source}'"
        yield (
            f"embeddings are matched by token, into {whose}: {len(ids)} tokens in {rows[self._largest_name]} rows;"
            f" the base has {self._rows(0, self._largest_name)} rows"
        )
        if added:
            yield f"added to the base's: {_counted(list(added))}"
        length = max(rows.values())
        new = [token for token, i in ids.items() if token not in known[0] and i < length]
        owners: Counter[str] = Counter()  # token to the number of tasks that have it
        for theirs in known[1:]:
            owners.update(theirs.keys())
        several = [token for token in new if owners[token] > 1]
        if several:
            yield f"the mean of the rows of the tasks that have it, for what the base lacks: {_counted(several)}"
        orphans = [token for token in new if not owners[token]]
        if orphans:
            yield f"the mean of the base's rows, for what has a row in no model: {_counted(orphans)}"
        for words, theirs in zip(self._words, known, strict=True):
            lost = [token for token in theirs if token not in ids]
            if lost:
                yield f"left out of what {words} has: {_counted(lost)}"


def _padded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _counted(tokens: Sequence[str], most: int = 3) -> str:
    """Return the number of tokens, and the first `most` of them as JSON strings: a token may hold anything."""
    shown = []
    for token in tokens[:most]:
        short = token if len(token) <= 40 else f"{token[:39]}…"
        shown.append(json.dumps(short, ensure_ascii=False))
    rest = f" and {len(tokens) - most} more" if len(tokens) > most else ""
    return f"{len(tokens)} token{'s' if len(tokens) > 1 else ''} ({', '.join(shown)}{rest})"
