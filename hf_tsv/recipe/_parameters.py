"""Reads the parameters that a recipe gives, in each of the places where it may give them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from hf_tsv.methods import MergeMethod, Parameter
from hf_tsv.recipe import _schema as schema
from hf_tsv.recipe._document import Document, Path
from hf_tsv.recipe._messages import did_you_mean, joined, wrong_value
from hf_tsv.recipe._settings import (
    ABSENT,
    EVERYTHING,
    Chain,
    Constant,
    Filter,
    Filtered,
    Gradient,
    Setting,
    by_kind,
    by_name,
)

WEIGHT = Parameter("weight", float, 1.0, per_task=True)  # every method takes it
NO_EFFECT = {"int8_mask": "weights are streamed tensor by tensor as it is"}


class ParameterReader:
    """Checks parameters against the methods that are used, and notes what is wrong in the document.

    Attributes:
        filters: The filters of every list of filter and value, by its place.
    """

    def __init__(self, document: Document) -> None:
        self._document = document
        self._settings: dict[tuple[Path, str], dict[str, Setting]] = {}
        self.filters: dict[Path, tuple[Filter, ...]] = {}

    def read(
        self, path: Path, block: Mapping[str, Any] | None, methods: Sequence[MergeMethod], *, all_known: bool = True
    ) -> None:
        """Read the parameters written at `path`.

        Args:
            path: The place of the block.
            block: The parameters as they are written, if there are any.
            methods: The methods that they are for.
            all_known: Whether these are all, so that what none of them takes is a mistake.
        """
        block = block or {}
        per_model = path[0] == "models"
        for name, written in block.items():
            here = (*path, name)
            self._check_complete(here, written)
            is_taken = False
            for method in methods:
                parameter = _taken(method, name)
                if parameter is None or (per_model and not parameter.per_task):
                    continue
                is_taken = True
                self._check_written_once(here, block, method, parameter)
                whose = "" if parameter is WEIGHT else f" of {method.name}"
                settings = self._settings.setdefault((path, method.name), {})
                settings[parameter.name] = self._setting(here, written, parameter, f"'{name}'{whose}")
            if is_taken:
                continue
            if name in NO_EFFECT:
                self._document.note(here, f"{name} has no effect here: {NO_EFFECT[name]}.")
            elif all_known:
                self._document.tell(here, _not_taken(name, methods, per_model))

    def chain(self, name: str, method: MergeMethod, places: Sequence[Path]) -> Chain:
        """What was read of a method's parameter in these places, the most specific first."""
        blocks = [self._settings.get((place, method.name), {}) for place in places]
        return Chain(tuple(block[name] for block in blocks if name in block))

    def filter(self, path: Path, written: schema.KindFilter | str | None) -> Filter:
        """The filter written in the mapping at `path`."""
        line = self._document.line((*path, "filter"))
        if isinstance(written, schema.KindFilter):
            return by_kind(written.kind, line)
        return by_name(EVERYTHING if written is None else written, line)

    def _check_complete(self, path: Path, written: Any) -> None:
        if not isinstance(written, list):
            return
        for i, item in enumerate(written):
            if isinstance(item, schema.Choice) and item.value is ABSENT:
                self._document.tell_missing((*path, i, "value"), "Write what it is where the filter matches.")

    def _check_written_once(self, path: Path, block: Iterable[str], method: MergeMethod, parameter: Parameter) -> None:
        """Tell of a parameter that is written under two of its words, at the second."""
        first = next(name for name in block if _taken(method, name) == parameter)
        if first != path[-1] and not self._document.has_problem(path):
            self._document.tell(path, f"'{path[-1]}' and '{first}' mean the same for {method.name}. Keep one of them.")

    def _setting(self, path: Path, written: Any, parameter: Parameter, label: str) -> Setting:
        has_filters = isinstance(written, list) and isinstance(written[0], schema.Choice)
        if not has_filters:
            return self._value(path, written, parameter, label)
        if path not in self.filters:  # its filters are the same for every method that takes it
            self.filters[path] = tuple(self.filter((*path, i), choice.filter) for i, choice in enumerate(written))
        values = [self._value((*path, i, "value"), c.value, parameter, label) for i, c in enumerate(written)]
        return Filtered(tuple(zip(self.filters[path], values, strict=True)))

    def _value(self, path: Path, written: Any, parameter: Parameter, label: str) -> Constant | Gradient:
        if not isinstance(written, list):
            return Constant(self._checked(path, written, parameter, label))
        return Gradient(tuple(self._checked((*path, i), value, parameter, label) for i, value in enumerate(written)))

    def _checked(self, path: Path, value: Any, parameter: Parameter, label: str) -> Any:
        """The value as the method takes it; ABSENT where it is wrong, and noted to be."""
        try:
            return parameter.adapter.validate_python(value, strict=True)
        except ValidationError as error:
            if not self._document.has_problem(path):
                self._document.tell(path, wrong_value(label, error))
            return ABSENT


def _taken(method: MergeMethod, name: str) -> Parameter | None:
    """The parameter that a method takes under this name."""
    own = method.parameters.get(method.aliases.get(name, name))
    if own is None and name == WEIGHT.name:
        return WEIGHT
    return own


def _not_taken(name: str, methods: Sequence[MergeMethod], per_model: bool) -> str:
    """What is wrong with a parameter that none of the methods takes in its place."""
    takers = [method.name for method in methods if _taken(method, name)]
    if takers:
        whose = joined(takers, "and")
        return f"'{name}' of {whose} is one for all models. Write it under the recipe's own 'parameters'."
    with_parameters = [method for method in methods if method.parameters] or methods
    known: dict[str, str] = {}
    for method in with_parameters:
        known |= _words(method, per_model)
    names = joined([method.name for method in with_parameters], "and")
    hint = did_you_mean(name, known)
    return f"unknown parameter '{name}' for {names}.{hint} {_all_taken(with_parameters, per_model)}."


def _all_taken(methods: Sequence[MergeMethod], per_model: bool) -> str:
    """What the methods take, in words."""
    per = " per model" if per_model else ""
    lists: dict[str, str] = {}
    for method in methods:
        names = dict.fromkeys(_words(method, per_model).values())
        lists[method.name] = ", ".join(names)
    if len(set(lists.values())) == 1:
        subject = "It takes" if len(lists) == 1 else "They take"
        return f"{subject}{per}: {lists[methods[0].name]}"
    return "; ".join(f"{name} takes{per}: {names}" for name, names in lists.items())


def _words(method: MergeMethod, per_model: bool) -> dict[str, str]:
    """The words for what a method takes, each with the parameter's own name."""
    names = [p.name for p in method.parameters.values() if p.per_task or not per_model]
    aliases = {alias: name for alias, name in method.aliases.items() if name in names}
    return {**{name: name for name in names}, **aliases, WEIGHT.name: WEIGHT.name}
