"""The wording of mistakes: the expected value, the actual value, and the known word that was likely meant."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

# Names used by papers and other tools that are spelled too differently to be matched.
OTHER_WORDS = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
    "fp64": "float64",
    "f64": "float64",
    "double": "float64",
    "alpha": "scale",
    "average": "linear",
}

MAX_SHOWN = 60  # characters of a value in a message

# How "expected ..." continues for each of pydantic's error types; in braces, the limit from pydantic's context.
_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "int_type": "a whole number",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "list_type": "a list",
    "model_type": "a mapping",
    "scalar_type": "{expected}",
    "string_type": "text",
    "too_short": "at least {min_length} entry",
}


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` most likely stands for; None if none is near."""
    # Compared in lower case, so that only the spelling counts; the answer has the known word's own case.
    by_lower = {other.lower(): other for other in known}
    other_word = OTHER_WORDS.get(word.lower())
    if other_word in by_lower:
        return by_lower[other_word]
    matches = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[matches[0]] if matches else None


def did_you_mean(word: str, known: Iterable[str] | Mapping[str, str]) -> str:
    """A sentence that suggests the nearest known word, or nothing. A mapping gives each known word's suggestion."""
    meant = nearest(word, known)
    if meant is None:
        return ""
    if isinstance(known, Mapping):
        meant = known[meant]
    return f" Did you mean '{meant}'?"


def joined(words: Sequence[str], last: str) -> str:
    """The words as `a, b or c`, with `last` before the last one."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def shown(value: Any) -> str:
    """A value as messages quote it: short, and in YAML's words rather than Python's."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        kind = "mapping" if isinstance(value, dict) else "list"
        return f"a {kind}" if value else f"an empty {kind}"
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def wrong_value(label: str, error: ValidationError | Sequence[ErrorDetails]) -> str:
    """A message with a wrong value and what was expected, by all the errors that pydantic found in it."""
    errors = error.errors(include_url=False) if isinstance(error, ValidationError) else error
    for one in errors:
        if one["type"] == "value_error":  # raised by one of our validators, with its own wording
            return f"{label} has a wrong value: {one['ctx']['error']}"
    expected: list[str] = []  # each once, in order
    for one in errors:
        if one["type"] == "literal_error":
            words = joined(_words(one), "or")
        elif one["type"] in _EXPECTED:
            words = _EXPECTED[one["type"]].format(**one.get("ctx", {}))
        else:
            words = one["msg"].removeprefix("Input should be ")
        if words not in expected:
            expected.append(words)
    # All errors are about the same value: those of a union differ only in what they expect.
    value = errors[0]["input"]
    problem = f"{label} has a wrong value, expected {joined(expected, 'or')} but got {shown(value)}."
    for one in errors:
        hint = did_you_mean(value, _words(one)) if isinstance(value, str) else ""
        if hint:
            return problem + hint
    return problem


def _words(error: ErrorDetails) -> list[str]:
    """The words of a literal, which pydantic lists as `'a', 'b' or 'c'`; empty for another error."""
    if error["type"] != "literal_error":
        return []
    listed = error["ctx"]["expected"].replace(" or ", " ")
    return re.findall(r"[^' ,]+", listed)
