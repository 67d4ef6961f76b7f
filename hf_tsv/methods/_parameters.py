"""What a method's keywords declare: types, ranges, and marks for what the rest of the package has to know of them."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from pydantic import TypeAdapter


@dataclass(frozen=True)
class PerTask:
    """Marks a parameter that may differ from task to task.

    `Annotated[float | Sequence[float], PerTask(), Ge(0)]`: one number for all tasks, or one for each.
    """


@dataclass(frozen=True)
class Factor:
    """Marks a parameter that multiplies the merged delta and does nothing else.

    `hf-tsv tune` merges once at scale 1 and multiplies, which is correct only for a `scale` with this mark.
    """


Scale = Annotated[float, Factor()]


@dataclass(frozen=True)
class Parameter:
    """One keyword of a method, as its signature declares it.

    Attributes:
        name: The parameter's name in recipes.
        annotation: Type and range of a value, as pydantic reads them; for a per-task parameter, of one task's value.
        default: The value used if the recipe gives none.
        per_task: True if the value may differ from task to task.
        is_factor: True if it is a factor on the merged delta and nothing else.
    """

    name: str
    annotation: Any
    default: Any
    per_task: bool
    is_factor: bool = False

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        """The validator of a value in a recipe (for a per-task parameter, of one task's value)."""
        return TypeAdapter(self.annotation)

    @property
    def type_name(self) -> str:
        return _type_name(self.annotation)

    @property
    def range(self) -> str:
        """The allowed numbers, in words; empty if the value isn't a number or has no bounds."""
        return range_of(self.adapter)


def parameters_of(fn: Callable[..., Any]) -> dict[str, Parameter]:
    """Return the keyword-only parameters of a method's function, by name."""
    hints = typing.get_type_hints(fn, include_extras=True)
    parameters: dict[str, Parameter] = {}
    for p in inspect.signature(fn).parameters.values():
        if p.kind is not p.KEYWORD_ONLY:
            continue
        annotation = hints[p.name]
        metadata = getattr(annotation, "__metadata__", ())
        marks = {type(mark) for mark in metadata}
        if PerTask in marks:
            annotation = float  # a recipe gives each task's number separately; the method gets them together
        elif metadata:
            annotation = typing.get_args(annotation)[0]
        # The marks are for this package; the rest, such as a range, is for pydantic.
        rest = tuple(mark for mark in metadata if not isinstance(mark, PerTask | Factor))
        if rest:
            annotation = Annotated[(annotation, *rest)]
        is_factor = Factor in marks
        parameters[p.name] = Parameter(p.name, annotation, p.default, per_task=PerTask in marks, is_factor=is_factor)
    return parameters


def taken_by(fn: Callable[..., Any], given: Mapping[str, Any], declared: Mapping[str, Parameter]) -> dict[str, Any]:
    """Return the given parameters, or their defaults, that are keywords of a method's helper function."""
    keywords = [p.name for p in inspect.signature(fn).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return {name: given.get(name, declared[name].default) for name in keywords}


def range_of(adapter: TypeAdapter[Any]) -> str:
    """Describe the numbers that a type allows: `above 0, at most 1`."""
    schema = adapter.json_schema()
    bounds = dict(schema)
    for alternative in schema.get("anyOf", ()):
        bounds |= alternative
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    return ", ".join(f"{word} {bounds[key]:g}" for key, word in words.items() if key in bounds)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Annotated:
        return _type_name(typing.get_args(hint)[0])
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(_type_name(a) for a in typing.get_args(hint))
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))
