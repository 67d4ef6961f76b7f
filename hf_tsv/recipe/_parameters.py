"""Reading a recipe's parameters, in each place where it can have some."""

from collections.abc import Mapping, Sequence
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
    """Reader that checks parameters against the methods in use, and notes mistakes in the document.

    Attributes:
        filters: The filters of each list of filter and value, by the path of the list.
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
            path: The path of the block.
            block: The parameters as written, if there are any.
            methods: The methods that use the parameters.
            all_known: True if all methods are known, so that a parameter that none of them takes is a mistake.
        """
        block = block or {}
        per_model = path[0] == "models"
        for name, written in block.items():
            here = (*path, name)
            items = written if isinstance(written, list) else []
            for i, item in enumerate(items):
                if isinstance(item, schema.Choice) and item.value is ABSENT:
                    self._document.tell_missing((*here, i, "value"), "Write what it is where the filter matches.")
            is_taken = False
            for method in methods:
                parameter = _taken(method, name)
                if parameter is None or (per_model and not parameter.per_task):
                    continue
                is_taken = True
                # A method can take a parameter under two names. If both are written, the second is the mistake.
                first = next(word for word in block if _taken(method, word) == parameter)
                if first != name and not self._document.has_problem(here):
                    problem = f"'{name}' and '{first}' mean the same for {method.name}. Keep one of them."
                    self._document.tell(here, problem)
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
        """The settings of a method's parameter in these places, the most specific first."""
        blocks = [self._settings.get((place, method.name), {}) for place in places]
        return Chain(tuple(block[name] for block in blocks if name in block))

    def filter(self, path: Path, written: schema.KindFilter | str | None) -> Filter:
        """The filter written in the mapping at `path`."""
        line = self._document.line((*path, "filter"))
        if isinstance(written, schema.KindFilter):
            return by_kind(written.kind, line)
        return by_name(EVERYTHING if written is None else written, line)

    def _setting(self, path: Path, written: Any, parameter: Parameter, label: str) -> Setting:
        """The setting written at `path`: a list of filter and value, a gradient, or one value."""
        has_filters = isinstance(written, list) and isinstance(written[0], schema.Choice)
        if not has_filters:
            return self._value(path, written, parameter, label)
        if path not in self.filters:  # the filters are the same for every method that takes the parameter
            self.filters[path] = tuple(self.filter((*path, i), choice.filter) for i, choice in enumerate(written))
        choices: list[tuple[Filter, Constant | Gradient]] = []
        for i, chooser in enumerate(self.filters[path]):
            value = self._value((*path, i, "value"), written[i].value, parameter, label)
            choices.append((chooser, value))
        return Filtered(tuple(choices))

    def _value(self, path: Path, written: Any, parameter: Parameter, label: str) -> Constant | Gradient:
        if not isinstance(written, list):
            return Constant(self._checked(path, written, parameter, label))
        values = [self._checked((*path, i), value, parameter, label) for i, value in enumerate(written)]
        return Gradient(tuple(values))

    def _checked(self, path: Path, value: Any, parameter: Parameter, label: str) -> Any:
        """The value as the method takes it; ABSENT after noting a mistake if it is wrong."""
        try:
            return parameter.adapter.validate_python(value, strict=True)
        except ValidationError as error:
            if not self._document.has_problem(path):
                self._document.tell(path, wrong_value(label, error))
            return ABSENT


def _taken(method: MergeMethod, name: str) -> Parameter | None:
    """The parameter that a method takes under this name, or None."""
    own_name = method.aliases.get(name, name)
    own = method.parameters.get(own_name)
    if own is None and name == WEIGHT.name:
        return WEIGHT
    return own


def _not_taken(name: str, methods: Sequence[MergeMethod], per_model: bool) -> str:
    """A message about a parameter that none of the methods takes in its place."""
    takers = [method.name for method in methods if _taken(method, name)]
    if takers:
        whose = joined(takers, "and")
        return f"'{name}' of {whose} is one for all models. Write it under the recipe's own 'parameters'."
    known: dict[str, str] = {}  # from each name or alias to the parameter's own name
    lists: dict[str, str] = {}  # each method's parameters, by the method's name
    with_parameters = [method for method in methods if method.parameters]
    for method in with_parameters or methods:
        names = [p.name for p in method.parameters.values() if p.per_task or not per_model]
        known |= {name: name for name in names}
        known |= {alias: meant for alias, meant in method.aliases.items() if meant in names}
        known[WEIGHT.name] = WEIGHT.name
        if WEIGHT.name not in names:
            names.append(WEIGHT.name)
        lists[method.name] = ", ".join(names)
    problem = f"unknown parameter '{name}' for {joined(list(lists), 'and')}.{did_you_mean(name, known)}"
    per = " per model" if per_model else ""
    distinct = set(lists.values())
    if len(distinct) > 1:
        all_taken = "; ".join(f"{method} takes{per}: {taken}" for method, taken in lists.items())
        return f"{problem} {all_taken}."
    subject = "It takes" if len(lists) == 1 else "They take"
    return f"{problem} {subject}{per}: {distinct.pop()}."
