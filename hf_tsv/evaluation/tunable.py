"""The parameters of a recipe that can be tuned by scores, and the recipe with chosen values."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ruamel.yaml.comments import CommentedMap

from hf_tsv.checkpoints.modules import group_of
from hf_tsv.errors import PlanError
from hf_tsv.evaluation.options import By
from hf_tsv.merging.plan import Step
from hf_tsv.methods import METHODS
from hf_tsv.recipe import Recipe, edited, models_of, own_value, put_keys, remove_key

REST = "rest"  # the group of non-matrix tensors, for methods that scale them by `rest_scale`
_SCALES = ("scale", "rest_scale")


@dataclass(frozen=True)
class Group:
    """Tensors that share a scale.

    Attributes:
        name: `all`, a kind of tensor, a module type's name with `*`, or `rest`.
        override: The index of the override that takes these tensors; None if none does.
        filter: The override's filter, as it is written in the recipe.
    """

    name: str
    override: int | None = None
    filter: str = ""

    def __str__(self) -> str:
        return self.name if self.override is None else f"{self.filter}: {self.name}"


@dataclass(frozen=True)
class Choice:
    """A value for every parameter that can be tuned.

    Attributes:
        scales: The scale of each group.
        lambdas: The tuned parameter of each task's mask; a task without an entry keeps the recipe's value.
    """

    scales: Mapping[Group, float] = field(default_factory=dict)
    lambdas: Mapping[str, float] = field(default_factory=dict)


def scaled_methods() -> tuple[str, ...]:
    """Return the methods whose scale can be tuned, because it is a factor on everything that they merge."""
    return tuple(sorted(name for name, method in METHODS.items() if method.is_scaled))


def tuned_of_mask(method: str) -> str:
    """Return the parameter of a method's masks that can be tuned per task; empty if there is none."""
    mask = METHODS[method].mask
    return mask.tuned if mask else ""


def at_scale_one(recipe: Recipe) -> Recipe:
    """Return the recipe with every tunable scale set to 1, and without rounding to the output's dtype.

    Raises:
        PlanError: there is nothing to tune, or another method depends on a tuned parameter.
    """
    _check(recipe)
    # Twice the scale is twice the delta, so the deltas at scale 1 give those at all other scales.
    places = [place for place, method in _methods(recipe) if METHODS[method].is_scaled]
    at_one = _edited(recipe, {place: dict.fromkeys(_SCALES, 1.0) for place in places}, {})
    return replace(at_one, out_dtype=recipe.dtype)


def groups_of(recipe: Recipe, steps: Sequence[Step], by: By) -> dict[str, Group]:
    """Return the group of each tensor, by name; tensors without a tunable scale are left out."""
    overrides = len(recipe.branches) - 1  # the last branch is the recipe itself, which takes the rest
    groups: dict[str, Group] = {}
    for step in steps:
        method = METHODS[step.method]
        if not method.is_scaled:
            continue
        has_rest = "rest_scale" in method.parameters and not method.is_as_paper(step.parameters)
        if has_rest and step.view is None:
            name = REST
        else:
            name = {"all": "all", "kind": step.kind, "type": group_of(step.name)}[by]
        place = next(i for i, branch in enumerate(recipe.branches) if branch.takes(step.name, step.kind))
        chooser = recipe.branches[place].filter
        if chooser and place < overrides:
            groups[step.name] = Group(name, place, chooser.text)
        else:
            groups[step.name] = Group(name)
    return groups


def chosen_text(recipe: Recipe, choice: Choice) -> str:
    """Write a choice into the recipe's text: scales as mergekit's lists of filter and value, lambdas per model."""
    settings: dict[int | None, dict[str, Any]] = {}
    for place in dict.fromkeys(group.override for group in choice.scales):
        scales = {group.name: scale for group, scale in choice.scales.items() if group.override == place}
        parameters: dict[str, Any] = {}
        # A glob also matches longer names, so the filters of these come first.
        names = [name for name in sorted(scales, key=len, reverse=True) if name != REST]
        filters: list[dict[str, Any]] = []
        for name in names:
            is_type = "." in name or "*" in name
            filters.append({"filter": name if is_type else {"kind": name}, "value": scales[name]})
        if "all" in scales:
            parameters["scale"] = scales["all"]
        elif filters:
            parameters["scale"] = [*filters, {"value": 1.0}]  # tensors that no filter matches aren't scaled
        if REST in scales:
            parameters["rest_scale"] = scales[REST]
        settings[place] = parameters
    return _edited(recipe, settings, choice.lambdas).text


def _check(recipe: Recipe) -> None:
    """Refuse a recipe that has nothing to tune, or in which a choice would change more than it should."""
    localized = [name for name in recipe.methods if tuned_of_mask(name)]
    if not localized and not any(METHODS[name].is_scaled for name in recipe.methods):
        known = ", ".join([*scaled_methods(), *sorted(filter(tuned_of_mask, METHODS))])
        raise PlanError(
            f"{recipe.source}: {', '.join(recipe.methods)}: nothing to tune. Methods that can be tuned: {known}."
        )
    for name in recipe.methods:
        if METHODS[name].keeps == "mask" and name not in localized:
            raise PlanError(
                f"{recipe.source}: the masks of {name} depend on the scales that are tried, and have nothing to tune"
                " themselves. Tune without it, and add it afterwards."
            )
    for chosen in localized:
        parameter = tuned_of_mask(chosen)
        for other in recipe.methods:
            if other != chosen and parameter in METHODS[other].parameters:
                raise PlanError(
                    f"{recipe.source}: {other} also takes the {parameter} that is chosen for {chosen}. Tune without it,"
                    " and add it afterwards."
                )


def _methods(recipe: Recipe) -> Iterator[tuple[int | None, str]]:
    """Yield each override's index and method, then None and the recipe's own method."""
    for place, branch in enumerate(recipe.branches[:-1]):
        yield place, branch.method
    yield None, recipe.branches[-1].method


def _edited(recipe: Recipe, scales: Mapping[int | None, Mapping[str, Any]], lambdas: Mapping[str, float]) -> Recipe:
    """Return the recipe with these scales, by override index, and these lambdas, by task."""

    def change(document: CommentedMap) -> None:
        shared = dict(document.get("parameters") or {})
        for place, method in _methods(recipe):
            settings = dict(scales.get(place, {}))
            if place is None:
                _set_parameters(document, method, settings)
                continue
            overrides = own_value(document, "overrides")
            entry = own_value(overrides, place)
            if not METHODS[method].is_scaled:  # a scale that it inherits from the recipe must not change
                given = entry.get("parameters") or {}
                for name, value in shared.items():
                    if _meaning(name, method) in _SCALES and name not in given:
                        settings[name] = copy.deepcopy(value)
            _set_parameters(entry, method, settings)
        # `_check` refuses a second method that takes this parameter.
        parameter = next((tuned_of_mask(method) for method in recipe.methods if tuned_of_mask(method)), "")
        for model in recipe.models:
            if model.name in lambdas:
                entry = own_value(models_of(document), model.entry)
                put_keys(entry, "parameters", {parameter: lambdas[model.name]})

    return edited(recipe, change)


def _set_parameters(entry: CommentedMap, method: str, settings: Mapping[str, Any]) -> None:
    """Set the parameters that the method takes, and remove the same ones under other names."""
    taken = {name: value for name, value in settings.items() if _meaning(name, method)}
    if not taken:
        return
    meanings = {_meaning(name, method) for name in taken}
    given = entry.get("parameters") or {}
    replaced = [name for name in given if name not in taken and _meaning(name, method) in meanings]
    put_keys(entry, "parameters", taken)
    for name in replaced:
        remove_key(own_value(entry, "parameters"), name)


def _meaning(name: str, method: str) -> str | None:
    """Return the parameter that a method takes under this name; None if it takes none."""
    real = METHODS[method].aliases.get(name, name)
    return real if real in METHODS[method].parameters else None
