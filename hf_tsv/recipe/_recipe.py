"""A recipe's content, ready to be looked up tensor by tensor."""

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
        ref: Reference to the model.
        name: Name of the model's task: valid as a file name, and unique.
        line: Line of the model in the recipe.
        entry: Index of the model in the recipe's `models`, from 0. That list may also contain the base.
    """

    ref: ModelRef
    name: str
    line: int
    entry: int


@dataclass(frozen=True)
class TokenizerChoice:
    """The choice of the output's vocabulary, and with it of its tokenizer.

    Attributes:
        source: A model, or the union of all vocabularies. None if the recipe doesn't say, which means the base's
            vocabulary as long as the models' don't differ.
        pad_to_multiple_of: The embedding's number of rows is padded to a multiple of this; None for the base's padding.
    """

    source: ModelRef | Literal["union"] | None = None
    pad_to_multiple_of: int | None = None


@dataclass(frozen=True)
class RecipeAdapters:
    """The recipe's settings for writing adapters. None for a format, rank or dtype that it doesn't give.

    Attributes:
        profiles: Names of the formats to write.
        rank: Rank of all factors in formats with one rank.
        factor_dtype: Dtype of the factors.
        together: True if the adapters share their budgets, so that a task that changed more gets more bytes.
        verify: How to check that PEFT reads an adapter as intended: by its `weights`, or by a `forward` pass too.
    """

    profiles: tuple[Profile, ...] | None = None
    rank: int | None = None
    factor_dtype: FactorWord | None = None
    together: bool = False
    verify: Literal["weights", "forward"] = "weights"


@dataclass(frozen=True)
class Rule:
    """The rule for merging one tensor.

    Attributes:
        method: The merge method, a key of METHODS.
        parameters: The method's keywords that the recipe gives: one value each, or one per task if it is per task.
        weights: One factor per task.
        base_weight: Factor of the base if it is averaged as one of the models, else 0. The base is then a task without
            any change, which matters to a normalised `linear`.
        line: Line of the method in the recipe.
    """

    method: str
    parameters: Mapping[str, Any]
    weights: tuple[float, ...]
    base_weight: float
    line: int


@dataclass(frozen=True)
class Branch:
    """The settings for merging the tensors that one filter chooses.

    Attributes:
        filter: Filter that chooses the tensors, None for all that no other branch takes.
        method: The tensors' merge method.
        line: Line of the method in the recipe.
        shared: Settings of the method's parameters with one value for all tasks, by parameter.
        per_task: Default, and one chain of settings per task, of the method's per-task parameters, by parameter.
        weights: The weight's settings, one chain per task.
        base_weight: Settings of the base's weight, None if the base isn't one of the merged models.
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
        """The rule of all tensors, if it is the same for all, else None. Cached: models may have many thousands."""
        chains = [*self.shared.values(), *self.weights]
        for _, of_tasks in self.per_task.values():
            chains += of_tasks
        if self.base_weight is not None:
            chains.append(self.base_weight)
        if not all(chain.is_constant for chain in chains):
            return None
        return self._rule("", "other", 0.0)  # the same for any name, kind and depth

    def _rule(self, name: str, kind: str, depth: float) -> Rule:
        """The rule for one tensor. Parameters without a value are left out, so that the method's default applies."""

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
            if any(value is not ABSENT for value in values):  # else the method's default applies to all tasks
                parameters[key] = tuple(at(chain, default) for chain in chains)
        weights = tuple(float(at(chain, 1.0)) for chain in self.weights)
        base_weight = 0.0 if self.base_weight is None else float(at(self.base_weight, 1.0))
        return Rule(self.method, parameters, weights, base_weight, self.line)


@dataclass(frozen=True)
class Recipe:
    """The models to merge, and the settings for merging them.

    Attributes:
        text: Text of the recipe as written.
        source: Name of the recipe's file in messages.
        merge_method: The method of every tensor that no override takes.
        base: The base model; for `linear` alone, it may be the first of the models.
        models: The fine-tuned models, one per task, without the base.
        dtype: Arithmetic dtype.
        out_dtype: Dtype of the output's floating-point tensors, None for the dtype of each of the base's tensors.
        tokenizer: The choice of the output's vocabulary and tokenizer.
        chat_template: Jinja text of the output's chat template; `auto` for the models' most common one; None for that
            of the tokenizer's model.
        svd: The way of computing singular vectors.
        residuals: Parameters of `tsv_c` for each task's residual adapter on the merged model, which holds part of what
            the merge loses of the task; None for no such adapters.
        adapters: Settings for writing adapters.
        output: Parameters of `tsv_c` for storing the merged change in one adapter, empty for the whole change; None if
            the output is what the methods make.
        notes: Messages about settings that have no effect, or another one than their words suggest.
        branches: The overrides in their order, then the branch of all other tensors.
        filters: All lists of filters. In each, the first filter that matches a tensor counts.
        layers: The models' number of layers by the recipe, and the line that gives it; None if the recipe doesn't say.
        folder: The recipe's folder, for models' relative paths; None if the recipe isn't from a file.
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
        """The model whose tokenizer files the output gets. A union adds its tokens to the base's."""
        source = self.tokenizer.source
        return source if isinstance(source, ModelRef) else self.base  # the base also for a union

    @property
    def methods(self) -> tuple[str, ...]:
        """The recipe's merge methods, each once."""
        in_order = [self.merge_method, *(branch.method for branch in self.branches)]
        return tuple(dict.fromkeys(in_order))

    def rule_at(self, name: str, kind: str, depth: float) -> Rule:
        """The rule for a tensor, by its name, its kind and its depth from 0 (first layer) to 1 (last)."""
        # Never StopIteration: the last branch takes every tensor.
        branch = next(branch for branch in self.branches if branch.takes(name, kind))
        return branch.rule(name, kind, depth)

    def unmatched_filters(self, tensors: Iterable[tuple[str, str]]) -> list[str]:
        """A message for each filter that chooses none of these tensors, given as (name, kind), in recipe order."""
        tensors = list(tensors)  # iterated once per list of filters
        idle: list[tuple[Filter, str]] = []
        for filters in self.filters:
            idle += idle_filters(filters, tensors)
        idle.sort(key=lambda pair: pair[0].line)
        return [f"{self.where(f.line)}: filter '{f.text}' has no effect: {why}" for f, why in idle]

    def wrong_layers(self, of_base: int) -> list[str]:
        """A list with a message if the base's number of layers isn't the recipe's; else an empty list."""
        if self.layers is None or self.layers[0] == of_base:
            return []
        stated, line = self.layers
        problem = f"'layer_range' ends at {stated}, but the base has {of_base} layers, and models are merged whole."
        way_out = "List the models under 'models', and treat single layers by 'overrides'."
        return [f"{self.where(line)}: {problem} {way_out}"]

    def where(self, line: int) -> str:
        """The name of a recipe's line in messages."""
        return f"{self.source}:{line}"
