"""Flags of the command line, made from the option classes that the public functions take."""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

from hf_tsv.errors import parse_bytes

P = ParamSpec("P")
R = TypeVar("R")


def with_flags(command: Callable[P, R]) -> Callable[..., R]:
    """Give a command one flag for each field of the option classes among its parameters.

    The command itself is called with the filled-in option classes. A flag is spelt as its field, unless the field's
    metadata says otherwise under `flag`; `help`, `metavar` and `least` come from there as well. Two classes may share
    a field, which is one flag then.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    plain: list[inspect.Parameter] = []
    flags: dict[str, inspect.Parameter] = {}
    classes: dict[str, type] = {}
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if isinstance(hint, type) and is_dataclass(hint):
            classes[parameter.name] = hint
            flags |= {flag.name: flag for flag in _flags_of(hint)}
        else:
            plain.append(parameter.replace(annotation=hint))

    @functools.wraps(command)
    def run(*args: Any, **values: Any) -> R:
        filled = {}
        for name, options in classes.items():
            filled[name] = options(**{field.name: values[field.name] for field in fields(options)})
        own = {name: value for name, value in values.items() if name not in flags}
        return command(*args, **own, **filled)

    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*plain, *flags.values())]
    # Typer reads the signature and the annotations of what it is given.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # functions have it at run time
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def flag_of(options: type, name: str) -> Any:
    """A field for another option class, with the default and the flag of a field of `options`."""
    original = next(field for field in fields(options) if field.name == name)
    return dataclasses.field(default=original.default, metadata=original.metadata)


def _flags_of(options: type) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(options)
    return [_flag(field, hints[field.name]) for field in fields(options)]


def _flag(field: "Field[Any]", hint: Any) -> inspect.Parameter:
    assert field.default is not MISSING, f"{field.name}: a flag needs a default"
    spelling = field.metadata.get("flag", f"--{field.name.replace('_', '-')}")
    names = spelling if isinstance(spelling, tuple) else (spelling,)
    details: dict[str, Any] = {"help": field.metadata["help"], "metavar": field.metadata.get("metavar")}
    if "least" in field.metadata:
        details["min"] = field.metadata["least"]
    if _is_size(hint):
        # A size is a number of bytes or text such as 4GB, so it is read as text, and checked before anything is loaded.
        details["callback"] = _checked_size
        hint = str | None if type(None) in typing.get_args(hint) else str
    annotation: Any = Annotated[hint, typer.Option(*names, **details)]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation)


def _is_size(hint: Any) -> bool:
    members = typing.get_args(hint)
    return int in members and str in members


def _checked_size(text: str | None) -> str | None:
    """A size as it was given; typer reports a wrong one as a usage error."""
    if text is not None:
        try:
            parse_bytes(text)
        except ValueError as error:
            raise typer.BadParameter(f"{error}. Write a size such as 4GB") from None
    return text
