"""A parameter's value as a function of the tensor: a constant, a gradient over depth, or one value per filter."""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from hf_tsv.checkpoints.modules import Kind

ABSENT: Any = object()  # stands for no value; None is a value that some parameters take
EVERYTHING = "*"


@dataclass(frozen=True)
class Filter:
    """A choice of tensors by their name or their kind.

    Attributes:
        text: The filter as written.
        line: The filter's line in the recipe.
        kind: The kind to choose, None for a filter on names.
        pattern: Regular expression to search for in names, None to search for `text` itself.
    """

    text: str
    line: int
    kind: Kind | None = None
    pattern: re.Pattern[str] | None = None

    @property
    def is_everything(self) -> bool:
        return self.text == EVERYTHING

    def matches(self, name: str, kind: str) -> bool:
        if self.kind is not None:
            return kind == self.kind
        if self.pattern is not None:
            return self.pattern.search(name) is not None
        return self.text in name


def by_name(text: str, line: int) -> Filter:
    """Return a filter on names: a part of the name, a glob over the whole name, or after `re:` a regular expression.

    Raises:
        ValueError: the text is empty, or isn't a regular expression.
    """
    if text.startswith("re:"):
        pattern = text.removeprefix("re:")
        try:
            return Filter(text, line, pattern=re.compile(pattern))
        except re.error as error:
            raise ValueError(f"'{pattern}' is not a regular expression: {error}.") from None
    if not text:
        raise ValueError("it is empty, expected a part of tensors' names, or '*' for every tensor.")
    if "*" in text or "?" in text:
        # \A, because `search` would let a glob begin anywhere in the name.
        whole_name = re.compile(r"\A" + fnmatch.translate(text))
        return Filter(text, line, pattern=whole_name)
    return Filter(text, line)


def by_kind(kind: Kind, line: int) -> Filter:
    """Return a filter on the kind of tensors."""
    return Filter(f"kind: {kind}", line, kind=kind)


class Setting(Protocol):
    """The values written for one parameter in one place."""

    def at(self, name: str, kind: str, depth: float) -> Any:
        """The value for one tensor, ABSENT if this setting has none for it."""
        ...


@dataclass(frozen=True)
class Constant:
    """The same value for every tensor."""

    value: Any

    def at(self, name: str, kind: str, depth: float) -> Any:
        return self.value


@dataclass(frozen=True)
class Gradient:
    """Values at evenly spaced depths from 0 to 1, as in mergekit.

    Numbers are interpolated linearly, and between whole numbers rounded; other values apply until the next.
    """

    values: tuple[Any, ...]

    @cached_property
    def _are_numbers(self) -> bool:
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)

    def at(self, name: str, kind: str, depth: float) -> Any:
        # The values are at positions 0, 1, ..., last; `position` is that of the depth.
        last = len(self.values) - 1
        position = depth * last
        i = int(position)
        low = self.values[i]
        if not self._are_numbers:
            return low
        high = self.values[min(i + 1, last)]  # at depth 1 there is no next value
        share = position - i
        between = (1 - share) * low + share * high
        return round(between) if isinstance(low, int) else between


@dataclass(frozen=True)
class Filtered:
    """The value of the first filter that matches."""

    choices: tuple[tuple[Filter, Constant | Gradient], ...]

    def at(self, name: str, kind: str, depth: float) -> Any:
        for chooser, value in self.choices:
            if chooser.matches(name, kind):
                return value.at(name, kind, depth)
        return ABSENT


@dataclass(frozen=True)
class Chain:
    """The settings of one parameter, the most specific first: the first that has a value counts."""

    settings: tuple[Setting, ...]

    @property
    def is_constant(self) -> bool:
        """True if every tensor has the same value: no setting, or a constant first, after which no other counts."""
        return not self.settings or isinstance(self.settings[0], Constant)

    def at(self, name: str, kind: str, depth: float) -> Any:
        for setting in self.settings:
            value = setting.at(name, kind, depth)
            if value is not ABSENT:
                return value
        return ABSENT


def idle_filters(filters: Sequence[Filter], tensors: Sequence[tuple[str, str]]) -> list[tuple[Filter, str]]:
    """The filters of a list that choose no tensor, each with the reason. A tensor goes to the first matching filter."""
    idle = {id(f): f for f in filters if not f.is_everything}  # by identity: the same filter may be written twice
    for name, kind in tensors:
        if not idle:  # usually after a few tensors of many thousands
            break
        taker = next((f for f in filters if f.matches(name, kind)), None)
        idle.pop(id(taker), None)
    reasons: list[tuple[Filter, str]] = []
    for chooser in idle.values():
        if _matches_any(chooser, tensors):
            why = "every tensor that it matches is taken by a filter above it. Move it up, or leave it out."
        else:
            why = "it matches no tensor."
            meant = _meant(chooser)
            if meant is not None and _matches_any(meant, tensors):
                why += f" Did you mean '{meant.text}'?"
        reasons.append((chooser, why))
    return reasons


def _meant(idle: Filter) -> Filter | None:
    """The same text as another type of filter on names, which may have been intended; None if it can't be one."""
    if idle.kind is not None or idle.text.startswith("re:"):
        return None
    text = f"re:{idle.text}" if idle.pattern is None else f"*{idle.text}*"
    try:
        return by_name(text, idle.line)
    except ValueError:
        return None


def _matches_any(chooser: Filter, tensors: Sequence[tuple[str, str]]) -> bool:
    return any(chooser.matches(name, kind) for name, kind in tensors)
