"""The wording of mistakes: what was expected, what was found, and which known word it may have been."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

# What papers and other tools call it, where the words are not spelled alike.
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
    """The known word that `word` is most likely meant to be."""
    by_lower = {other.lower(): other for other in known}
    if (other := OTHER_WORDS.get(word.lower())) in by_lower:
        return by_lower[other]
    return next((by_lower[match] for match in difflib.get_close_matches(word.lower(), by_lower, n=1)), None)


def did_you_mean(word: str, known: Iterable[str] | Mapping[str, str]) -> str:
    """A sentence that names the nearest known word, or nothing. A mapping says what each known word stands for."""
    found = nearest(word, known)
    if found is None:
        return ""
    return f" Did you mean '{known[found] if isinstance(known, Mapping) else found}'?"


def joined(words: Sequence[str], last: str) -> str:
    """`a, b or c`."""
    return f" {last} ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def shown(value: Any) -> str:
    """A value as a message quotes it: short, and in YAML's words rather than Python's."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        kind = "mapping" if isinstance(value, dict) else "list"
        return f"a {kind}" if value else f"an empty {kind}"
    return _shortened(repr(value))


def wrong_value(label: str, error: ValidationError | Sequence[ErrorDetails]) -> str:
    """What a value should have been, by every error that pydantic found in it."""
    errors = error.errors(include_url=False) if isinstance(error, ValidationError) else error
    if own := next((e["ctx"]["error"] for e in errors if e["type"] == "value_error"), None):
        return f"{label} has a wrong value: {own}"
    expected = joined(list(dict.fromkeys(map(_expected, errors))), "or")
    value = errors[0]["input"]
    hints = (did_you_mean(value, _words(e)) for e in errors if isinstance(value, str))
    return f"{label} has a wrong value, expected {expected} but got {shown(value)}.{next(filter(None, hints), '')}"


def _expected(error: ErrorDetails) -> str:
    if error["type"] == "literal_error":
        return joined(_words(error), "or")
    if error["type"] in _EXPECTED:
        return _EXPECTED[error["type"]].format(**error.get("ctx", {}))
    return error["msg"].removeprefix("Input should be ")


def _words(error: ErrorDetails) -> list[str]:
    return (
        re.findall(r"[^' ,]+", error["ctx"]["expected"].replace(" or ", " "))
        if error["type"] == "literal_error"
        else []
    )


def _shortened(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
