"""What a recipe says, ready to be looked up tensor by tensor."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from hf_tsv.checkpoints.dtypes import ArithmeticWord, FactorWord
from hf_tsv.files.names import Profile
from hf_tsv.linalg import SvdMode
from hf_tsv.recipe._refs import ModelRef
from hf_tsv.recipe._settings import ABSENT, Chain, Filter, idle_filters

UNION: Final = "union"


@dataclass(frozen=True)
class RecipeModel:
    """A fine-tuned model of the recipe.

    Attributes:
        ref: Where it is.
        name: Its task's name, fit for a file name and unlike every other task's.
        line: Where it was written.
        entry: Which of the recipe's `models` it is, from 0; the base may be among them.
    """

    ref: ModelRef
    name: str
    line: int
    entry: int


@dataclass(frozen=True)
class TokenizerChoice:
    """Whose vocabulary, and with it whose tokenizer, the output gets.

    Attributes:
        source: A model, or the union of all vocabularies; None where the recipe doesn't say, which is the base's as
            long as the models' vocabularies don't differ.
        pad_to_multiple_of: What the embedding's rows are padded to; None for what the base's are.
    """

    source: ModelRef | Literal["union"] | None = None
    pad_to_multiple_of: int | None = None


@dataclass(frozen=True)
class RecipeAdapters:
    """How adapters are written, as far as the recipe says.

    Attributes:
        profiles: Names of the formats to write.
        rank: Rank of all factors in formats with one rank.
        factor_dtype: Dtype of the factors.
        together: Whether the adapters share their budgets.
        verify: How PEFT's reading of an adapter is compared with what was meant.
    """

    profiles: tuple[Profile, ...] | None = None
    rank: int | None = None
    factor_dtype: FactorWord | None = None
    together: bool = False
    verify: Literal["weights", "forward"] = "weights"


@dataclass(frozen=True)
class Rule:
    """What to do with one tensor.

    Attributes:
        method: The merge method, a key of METHODS.
        parameters: Those of its keywords that the recipe gives: one value each, or one per task where it takes that.
        weights: One factor per task.
        base_weight: The base's own factor where it is averaged as one of the models: it is a task without any
            change, which matters to a normalised `linear`. 0 elsewhere.
        line: Where the method was written.
    """

    method: str
    parameters: Mapping[str, Any]
    weights: tuple[float, ...]
    base_weight: float
    line: int


@dataclass(frozen=True)
class Branch:
    """How the tensors that one filter chooses are merged.

    Attributes:
        filter: Which tensors, None for all that no other branch takes.
        method: Their merge method.
        line: Where it was written.
        shared: The method's parameters that have one value for all tasks.
        per_task: Those that have a value for each task, each with the default for a task that gives none.
        weights: One per task.
        base_weight: None where the base isn't one of the models.
    """

    filter: Filter | None
    method: str
    line: int
    shared: Mapping[str, Chain]
    per_task: Mapping[str, tuple[Any, tuple[Chain, ...]]]
    weights: tuple[Chain, ...]
    base_weight: Chain | None

    def takes(self, name: str, kind: str) -> bool:
        return self.filter is None or self.filter.matches(name, kind)

    def rule(self, name: str, kind: str, depth: float) -> Rule:
        return self._constant or self._rule(name, kind, depth)

    @cached_property
    def _constant(self) -> Rule | None:
        """The rule of all its tensors, where it depends on none of them; models may have many thousands."""
        chains = [*self.shared.values(), *self.weights]
        for _, of_tasks in self.per_task.values():
            chains += of_tasks
        if self.base_weight is not None:
            chains.append(self.base_weight)
        if not all(chain.is_constant for chain in chains):
            return None
        return self._rule("", "other", 0.0)  # the same for any name, kind and depth

    def _rule(self, name: str, kind: str, depth: float) -> Rule:
        """The rule for one tensor. Parameters without a value are left out, so that the method's own default counts."""

        def at(chain: Chain, default: Any) -> Any:
            value = chain.at(name, kind, depth)
            return default if value is ABSENT else value

        parameters: dict[str, Any] = {}
        for key, chain in self.shared.items():
            value = at(chain, ABSENT)
            if value is not ABSENT:
                parameters[key] = value
        for key, (default, chains) in self.per_task.items():
            values = [at(chain, ABSENT) for chain in chains]
            if any(value is not ABSENT for value in values):  # else the method's own default counts for all
                parameters[key] = tuple(at(chain, default) for chain in chains)
        weights = tuple(float(at(chain, 1.0)) for chain in self.weights)
        base_weight = 0.0 if self.base_weight is None else float(at(self.base_weight, 1.0))
        return Rule(self.method, parameters, weights, base_weight, self.line)


@dataclass(frozen=True)
class Recipe:
    """What to merge, and how.

    Attributes:
        text: The recipe as it was written.
        source: What messages call its file.
        merge_method: The method of every tensor that no override takes.
        base: The base model, which for `linear` alone may be the first of the models.
        models: The fine-tuned models, one a task, without the base.
        dtype: Arithmetic dtype.
        out_dtype: Dtype of the output's floating-point tensors, None for the base's own, tensor by tensor.
        tokenizer: Whose vocabulary and tokenizer the output gets.
        chat_template: The Jinja text of the output's chat template, `auto` for the models' most common one, None for
            that of the tokenizer's model.
        svd: How singular vectors are computed.
        residuals: How much of what a merge loses of each task goes into an adapter on the merged model, as parameters
            of `tsv_c`; None for nothing.
        adapters: How adapters are written.
        output: How much of the merged change goes into one adapter, as parameters of `tsv_c` and empty for all of it;
            None where the output is what the methods make.
        notes: What the recipe asks for that has no effect, or a different one than its words suggest.
        branches: The overrides in their order, and last what is left.
        filters: Every list of filters of which the first match counts.
        layers: How many layers it says the models have, and the line; None where it doesn't say.
        folder: Where it lies, for models' relative paths; None where it comes from no file.
    """

    text: str = field(repr=False)
    source: str
    merge_method: str
    base: ModelRef
    models: tuple[RecipeModel, ...]
    dtype: ArithmeticWord
    out_dtype: str | None
    tokenizer: TokenizerChoice
    chat_template: str | None
    svd: SvdMode
    residuals: Mapping[str, Any] | None
    adapters: RecipeAdapters
    output: Mapping[str, Any] | None
    notes: tuple[str, ...]
    branches: tuple[Branch, ...] = field(repr=False)
    filters: tuple[tuple[Filter, ...], ...] = field(repr=False)
    layers: tuple[int, int] | None = None
    folder: Path | None = None

    @property
    def tokenizer_model(self) -> ModelRef:
        """The model whose tokenizer's files the output gets; a union's tokens are added to the base's."""
        source = self.tokenizer.source
        return source if isinstance(source, ModelRef) else self.base  # for a union too, or if the recipe doesn't say

    @property
    def methods(self) -> tuple[str, ...]:
        """Every merge method that it names, each once."""
        in_order = [self.merge_method, *(branch.method for branch in self.branches)]
        return tuple(dict.fromkeys(in_order))

    def rule_at(self, name: str, kind: str, depth: float) -> Rule:
        """What to do with a tensor, by its name, its kind and its depth from 0 (first layer) to 1 (last)."""
        # There is one: the last takes every tensor.
        branch = next(branch for branch in self.branches if branch.takes(name, kind))
        return branch.rule(name, kind, depth)

    def unmatched_filters(self, tensors: Iterable[tuple[str, str]]) -> list[str]:
        """A message for every filter that chooses none of these tensors, given as (name, kind), in recipe order."""
        tensors = list(tensors)  # read once for every list of filters
        idle: list[tuple[Filter, str]] = []
        for filters in self.filters:
            idle += idle_filters(filters, tensors)
        idle.sort(key=lambda pair: pair[0].line)
        return [f"{self.where(f.line)}: filter '{f.text}' has no effect: {why}" for f, why in idle]

    def wrong_layers(self, of_base: int) -> list[str]:
        """A message if the base's number of layers isn't what the recipe says."""
        if self.layers is None or self.layers[0] == of_base:
            return []
        stated, line = self.layers
        problem = f"'layer_range' ends at {stated}, but the base has {of_base} layers, and models are merged whole."
        way_out = "List the models under 'models', and treat single layers by 'overrides'."
        return [f"{self.where(line)}: {problem} {way_out}"]

    def where(self, line: int) -> str:
        """A line of the recipe as messages call it."""
        return f"{self.source}:{line}"
