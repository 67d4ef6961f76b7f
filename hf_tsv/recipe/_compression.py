"""Changes of a recipe's output: one adapter per task, as `hf-tsv compress` makes, or one adapter for the merge."""

import copy
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from hf_tsv.linalg.ranks import RULES
from hf_tsv.methods import METHODS
from hf_tsv.methods.base import base
from hf_tsv.methods.tsv_c import tsv_c
from hf_tsv.recipe._edit import edited, models_of, own_value, put_key, put_keys, remove_key
from hf_tsv.recipe._parameters import NO_EFFECT, WEIGHT
from hf_tsv.recipe._recipe import Recipe

COMPRESSING = tsv_c.name  # the method that stores every task's change in an adapter
BASE = base.name  # the method that changes nothing


def as_compression(
    recipe: Recipe, rule: Mapping[str, Any] | None = None, adapters: Mapping[str, Any] | None = None
) -> Recipe:
    """Return the recipe that compresses each task's change into an adapter, instead of merging.

    Every method becomes `tsv_c`, without the parameters of the method it replaces and so with the default rule for
    ranks. `base` stays if the recipe has another method too: it chooses the tensors that aren't compressed. If a method
    is replaced, nothing is merged any more and `residuals` is removed.

    Args:
        recipe: A parsed recipe.
        rule: One rule for the ranks of all tensors, such as `{"rank": 8}`, which replaces the recipe's own.
        adapters: Keys of the recipe's `adapters` to set: `profiles`, `rank`, `factor_dtype`.

    Returns:
        The new recipe, with the author's comments; the same object if nothing has to change.

    Raises:
        RecipeError: the rule or the keys aren't valid in a recipe.
    """

    def change(document: CommentedMap) -> None:
        _replace_methods(document, recipe)
        remove_key(document, "output")
        if rule is not None:
            put_keys(document, "parameters", {name: _in_yaml(value) for name, value in rule.items()})
            # One rule for all ranks. Models have none of their own, because a rule may not differ from task to task.
            _remove_parameters(document, RULES.keys() - rule.keys())
            for i, entry in enumerate(document.get("overrides") or []):
                if RULES.keys() & _given(entry):
                    overrides = own_value(document, "overrides")
                    _remove_parameters(own_value(overrides, i), RULES.keys())
        if adapters:
            put_keys(document, "adapters", {key: _in_yaml(value) for key, value in adapters.items()})

    compression = edited(recipe, change)
    replaced = sorted(set(recipe.methods) - set(compression.methods))
    if not replaced:
        return compression
    note = f"{recipe.source}: compressed by {COMPRESSING}, in place of {', '.join(replaced)}"
    return replace(compression, notes=(*compression.notes, note))


def as_adapter_output(recipe: Recipe, rule: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe whose output is one adapter on the base with the merged change.

    Args:
        recipe: A parsed recipe.
        rule: One rule for the ranks of all tensors, such as `{"rank": 8}`, which replaces the recipe's own; None for
            the recipe's own rule, or the whole change if it has none.

    Returns:
        The new recipe, with the author's comments; the same object if nothing has to change.

    Raises:
        RecipeError: the rule isn't valid in a recipe, or the recipe stores parts of single tasks, which an adapter
            can't contain.
    """

    def change(document: CommentedMap) -> None:
        if rule is not None and recipe.output is not None:
            remove_key(document, "output")
        put_keys(document, "output", {"form": "adapter", **(rule or {})})

    return edited(recipe, change)


def _replace_methods(document: CommentedMap, recipe: Recipe) -> None:
    """Replace every method by `tsv_c`, except `base` beside another method."""
    methods = set(recipe.methods)
    # If `base` were the only method and stayed, nothing would be compressed.
    stay = set() if methods == {BASE} else methods & {COMPRESSING, BASE}
    if stay == methods:
        return
    _replace_in_overrides(document, recipe, stay)
    if recipe.merge_method not in stay:
        put_key(document, "merge_method", COMPRESSING)
        remove_key(document, "parameters")
    remove_key(document, "residuals")
    if not document.get("base_model"):  # some methods need none: the first model is then the base
        put_key(document, "base_model", recipe.base.text)
    # The parameters that are left may belong to other methods too.
    of_every_method = {WEIGHT.name, *NO_EFFECT}
    taken = {*of_every_method, *METHODS[COMPRESSING].parameters, *METHODS[COMPRESSING].aliases}
    _remove_parameters(document, _given(document) - taken)
    for i, entry in enumerate(models_of(document)):
        unknown = _given(entry) - of_every_method
        if unknown:
            models = models_of(document)
            _remove_parameters(own_value(models, i), unknown)


def _replace_in_overrides(document: CommentedMap, recipe: Recipe, stay: Set[str]) -> None:
    """Replace the method of every override by `tsv_c`, unless it is one of those that stay."""
    # Parameters that an override with `tsv_c` inherits from the recipe: copied to it if the recipe's own are removed.
    inherited: dict[str, Any] = {}
    if recipe.merge_method not in stay:
        shared = document.get("parameters") or {}
        inherited = {name: value for name, value in shared.items() if name in METHODS[COMPRESSING].parameters}
    for i, branch in enumerate(recipe.branches[:-1]):  # the last branch is the recipe's own
        missing = inherited.keys() - _given(document["overrides"][i])
        # Only changed parts are copied, so that a recipe that needs no change stays the same object.
        if branch.method not in stay:
            overrides = own_value(document, "overrides")
            entry = own_value(overrides, i)
            remove_key(entry, "parameters")
            if entry.get("merge_method"):
                put_key(entry, "merge_method", COMPRESSING)
        elif branch.method == COMPRESSING and missing:
            overrides = own_value(document, "overrides")
            entry = own_value(overrides, i)
            put_keys(entry, "parameters", {name: copy.deepcopy(inherited[name]) for name in sorted(missing)})


def _given(entry: CommentedMap) -> Set[str]:
    """The names of the parameters given directly in the recipe, an override or a model."""
    return set(entry.get("parameters") or {})


def _remove_parameters(entry: CommentedMap, names: Set[str]) -> None:
    given = _given(entry)
    if not given & names:
        return
    if given <= names:  # no empty mapping is left behind
        remove_key(entry, "parameters")
        return
    parameters = own_value(entry, "parameters")
    for name in sorted(given & names):
        remove_key(parameters, name)


def _in_yaml(value: Any) -> Any:
    """A value as ruamel.yaml writes it: a list goes on one line."""
    if not isinstance(value, list | tuple):
        return value
    written = CommentedSeq(value)
    written.fa.set_flow_style()
    return written
