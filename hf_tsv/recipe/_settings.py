"""A parameter's value as it depends on the tensor: one for all, a gradient over depth, or by filters."""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from hf_tsv.checkpoints.modules import Kind

ABSENT: Any = object()
EVERYTHING = "*"


@dataclass(frozen=True)
class Filter:
    """Chooses tensors by their name or their kind.

    Attributes:
        text: The filter as it was written.
        line: Where it was.
        kind: The kind it chooses, None when it goes by names.
        pattern: What it looks for in names, None when that is `text` as it stands.
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
        return self.text in name if self.pattern is None else self.pattern.search(name) is not None


def by_name(text: str, line: int) -> Filter:
    """A filter on names: a part of one, a glob over the whole of it, or after `re:` a regular expression.

    Raises:
        ValueError: the text is empty, or no regular expression.
    """
    if text.startswith("re:"):
        return Filter(text, line, pattern=_regex(text[3:]))
    if not text:
        raise ValueError("it is empty, expected a part of tensors' names, or '*' for every tensor.")
    is_glob = "*" in text or "?" in text
    return Filter(text, line, pattern=re.compile(r"\A" + fnmatch.translate(text)) if is_glob else None)


def by_kind(kind: Kind, line: int) -> Filter:
    """A filter on what tensors are."""
    return Filter(f"kind: {kind}", line, kind=kind)


class Setting(Protocol):
    """What was written for one parameter in one place."""

    def at(self, name: str, kind: str, depth: float) -> Any:
        """The value for one tensor, ABSENT where this setting has none for it."""
        ...


@dataclass(frozen=True)
class Constant:
    """The same value for every tensor."""

    value: Any

    def at(self, name: str, kind: str, depth: float) -> Any:
        return self.value


@dataclass(frozen=True)
class Gradient:
    """Values spread evenly over the depth from 0 to 1: linear between numbers, in steps between other values."""

    values: tuple[Any, ...]

    @cached_property
    def _are_numbers(self) -> bool:
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)

    def at(self, name: str, kind: str, depth: float) -> Any:
        place = depth * (len(self.values) - 1)
        i = int(place)
        low, high = self.values[i], self.values[min(i + 1, len(self.values) - 1)]
        if not self._are_numbers:
            return low
        between = (1 - (place - i)) * low + (place - i) * high
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
    """What was written for one parameter, from the most specific place on: the first that has a value counts."""

    settings: tuple[Setting, ...]

    @property
    def is_constant(self) -> bool:
        return not self.settings or isinstance(self.settings[0], Constant)

    def at(self, name: str, kind: str, depth: float) -> Any:
        for setting in self.settings:
            if (value := setting.at(name, kind, depth)) is not ABSENT:
                return value
        return ABSENT


def idle_filters(filters: Sequence[Filter], tensors: Sequence[tuple[str, str]]) -> list[tuple[Filter, str]]:
    """The filters of a list that choose no tensor, each with the reason; the first to match takes a tensor."""
    idle = {id(f): f for f in filters if not f.is_everything}
    for name, kind in tensors:
        if not idle:
            break
        taker = next((f for f in filters if f.matches(name, kind)), None)
        idle.pop(id(taker), None)
    return [(f, _why_idle(f, tensors)) for f in idle.values()]


def _why_idle(idle: Filter, tensors: Sequence[tuple[str, str]]) -> str:
    if any(idle.matches(name, kind) for name, kind in tensors):
        return "every tensor that it matches is taken by a filter above it. Move it up, or leave it out."
    meant = next((text for text in _meant(idle) if _finds(text, tensors)), None)
    return "it matches no tensor." + (f" Did you mean '{meant}'?" if meant else "")


def _meant(idle: Filter) -> Iterable[str]:
    """The same text as another sort of filter on names, which it may have been meant for."""
    if idle.pattern is None and idle.kind is None:
        yield f"re:{idle.text}"
    elif not idle.text.startswith("re:"):
        yield f"*{idle.text}*"


def _finds(text: str, tensors: Sequence[tuple[str, str]]) -> bool:
    try:
        meant = by_name(text, 0)
    except ValueError:
        return False
    return any(meant.matches(name, kind) for name, kind in tensors)


def _regex(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"'{pattern}' is no regular expression: {error}.") from None
