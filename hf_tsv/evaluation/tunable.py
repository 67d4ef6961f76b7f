"""What of a recipe can be chosen by scores, and the recipe in which it is chosen."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from hf_tsv.checkpoints.modules import group_of
from hf_tsv.errors import PlanError
from hf_tsv.evaluation.options import By
from hf_tsv.merging.plan import MASKED, Step
from hf_tsv.methods import METHODS
from hf_tsv.recipe import Document, Recipe, parse_recipe, read_yaml

REST = "rest"  # of methods with a `rest_scale`: what is no matrix, whose factor that is
# Whose scale is a factor on all that they merge; CART's is one on what lies around the center.
SCALED = tuple(sorted(name for name, method in METHODS.items() if "scale" in method.parameters and name != "cart"))
LOCALIZED = "tall_mask"  # whose masks' lambda is chosen
_LAMBDA = "mask_lambda"
_SCALES = ("scale", "rest_scale")


@dataclass(frozen=True)
class Group:
    """Tensors that share a scale.

    Attributes:
        name: `all`, a kind of tensor, a module type's name with `*`, or `rest`.
        override: The place, in the recipe, of the override that takes them; None where none does.
        filter: That override's filter, as it was written.
    """

    name: str
    override: int | None = None
    filter: str = ""

    def __str__(self) -> str:
        return self.name if self.override is None else f"{self.filter}: {self.name}"


@dataclass(frozen=True)
class Choice:
    """One choice of all that can be chosen.

    Attributes:
        scales: By group.
        lambdas: The masks' lambda by task; what the recipe says where a task has none here.
    """

    scales: Mapping[Group, float] = field(default_factory=dict)
    lambdas: Mapping[str, float] = field(default_factory=dict)


def at_scale_one(recipe: Recipe) -> Recipe:
    """The recipe whose deltas are scaled: not rounded to the output's dtype, and with every scale that can be chosen 1.

    Raises:
        PlanError: there is nothing to choose, or another method depends on what is chosen.
    """
    _check(recipe)
    places = [place for place, method in _methods(recipe) if method in SCALED]
    text = _text(recipe, {place: dict.fromkeys(_SCALES, 1.0) for place in places}, {})
    return replace(_parsed(text, recipe), out_dtype=recipe.dtype)


def groups_of(recipe: Recipe, steps: Sequence[Step], by: By) -> dict[str, Group]:
    """Which tensors share a scale, by tensor name; without those that have none to choose."""
    overrides = len(recipe.branches) - 1
    found: dict[str, Group] = {}
    for step in steps:
        if step.method in SCALED:
            place = next(i for i, branch in enumerate(recipe.branches) if branch.takes(step.name, step.kind))
            chooser = recipe.branches[place].filter
            own = (place, chooser.text) if chooser and place < overrides else (None, "")
            found[step.name] = Group(_name(step, by), *own)
    return found


def chosen_text(recipe: Recipe, choice: Choice) -> str:
    """The recipe with a choice: scales as mergekit's lists of filter and value, lambdas at their models."""
    settings: dict[int | None, dict[str, Any]] = {}
    for place in dict.fromkeys(group.override for group in choice.scales):
        settings[place] = _scales({g.name: s for g, s in choice.scales.items() if g.override == place})
    text = _text(recipe, settings, choice.lambdas)
    _parsed(text, recipe)
    return text


def _check(recipe: Recipe) -> None:
    used = set(recipe.methods)
    if not used & {*SCALED, LOCALIZED}:
        known = ", ".join((*SCALED, LOCALIZED))
        raise PlanError(f"{recipe.source}: {', '.join(recipe.methods)}: nothing to tune, expected one of {known}.")
    if others := used & set(MASKED) - {LOCALIZED}:
        raise PlanError(
            f"{recipe.source}: the masks of {others.pop()} can't be tuned with, expected {LOCALIZED}. Leave it out, and"
            " add it after."
        )
    sharing = [name for name in recipe.methods if name != LOCALIZED and _LAMBDA in METHODS[name].parameters]
    if LOCALIZED in used and sharing:
        raise PlanError(
            f"{recipe.source}: {sharing[0]} takes the {_LAMBDA} that is chosen for {LOCALIZED}, expected one of them."
            " Leave it out, and add it after."
        )


def _name(step: Step, by: By) -> str:
    has_rest = "rest_scale" in METHODS[step.method].parameters and step.parameters.get("parity") != "paper"
    if has_rest and step.view is None:
        return REST
    return {"all": "all", "kind": step.kind, "type": group_of(step.name)}[by]


def _methods(recipe: Recipe) -> Iterator[tuple[int | None, str]]:
    """The method of every override, by its place, and at None the recipe's own."""
    *overrides, own = recipe.branches
    yield from ((place, branch.method) for place, branch in enumerate(overrides))
    yield None, own.method


def _scales(scales: Mapping[str, float]) -> dict[str, Any]:
    """As parameters. A glob matches longer names too, whose own filters therefore come first."""
    own = [name for name in sorted(scales, key=len, reverse=True) if name != REST]
    filters = [{"filter": _filter(name), "value": scales[name]} for name in own]
    settings: dict[str, Any] = {"scale": scales.get("all", [*filters, {"value": 1.0}])} if own else {}
    return settings | ({"rest_scale": scales[REST]} if REST in scales else {})


def _filter(name: str) -> Any:
    return name if "." in name or "*" in name else {"kind": name}


def _text(recipe: Recipe, scales: Mapping[int | None, Mapping[str, Any]], lambdas: Mapping[str, float]) -> str:
    """The recipe's text with these scales in their places, and these lambdas at their tasks."""
    document = read_yaml(recipe.text, recipe.source)
    data = document.data
    shared = dict(data.get("parameters") or {})
    for place, method in _methods(recipe):
        block = data if place is None else data["overrides"][place]
        given = dict(block.get("parameters") or {})
        if place is not None and method not in SCALED:  # what it has from the whole recipe isn't to change
            given = {name: value for name, value in shared.items() if _meaning(name, method) in _SCALES} | given
        if place in scales:
            taken = {name: value for name, value in scales[place].items() if name in METHODS[method].parameters}
            given = {name: value for name, value in given.items() if _meaning(name, method) not in taken} | taken
        if given:
            block["parameters"] = given
    for entry, task in _entries(document, recipe):
        if task in lambdas:
            entry["parameters"] = {**(entry.get("parameters") or {}), _LAMBDA: lambdas[task]}
    return yaml.safe_dump(data, sort_keys=False)


def _meaning(name: str, method: str) -> str | None:
    """The parameter that a method takes under this name."""
    real = METHODS[method].aliases.get(name, name)
    return real if real in METHODS[method].parameters else None


def _entries(document: Document, recipe: Recipe) -> Iterator[tuple[dict[str, Any], str]]:
    """Each task's entry among the recipe's models."""
    place = ("models",) if "models" in document.data else ("slices", 0, "sources")
    entries = document.data["models"] if len(place) == 1 else document.data["slices"][0]["sources"]
    by_line = {model.line: model.name for model in recipe.models}
    for i, entry in enumerate(entries):
        if task := by_line.get(document.line((*place, i))):
            yield entry, task


def _parsed(text: str, recipe: Recipe) -> Recipe:
    """What is written in the recipe alone changes, not what was said beside it."""
    parsed = parse_recipe(text, recipe.source, Path(recipe.source).parent)
    return replace(parsed, svd=recipe.svd)
