"""Flags of the command line, made from the option classes that the public functions take."""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

from hf_tsv.errors import parse_bytes

P = ParamSpec("P")
R = TypeVar("R")


def with_flags(command: Callable[P, R]) -> Callable[..., R]:
    """Give a command one flag for each field of the option classes among its parameters.

    The command itself is called with the filled-in option classes. A flag is spelt like its field, unless the field's
    metadata has a `flag` entry; `help`, `metavar` and `least` come from the metadata as well. A field that two classes
    share becomes one flag.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    plain: list[inspect.Parameter] = []
    flags: dict[str, inspect.Parameter] = {}
    classes: dict[str, type] = {}
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if isinstance(hint, type) and is_dataclass(hint):
            classes[parameter.name] = hint
            # If two classes share a field, the second flag replaces the first.
            flags |= _flags_of(hint)
        else:
            plain.append(parameter.replace(annotation=hint))

    @functools.wraps(command)
    def run(*args: Any, **values: Any) -> R:
        filled = {}
        for name, options in classes.items():
            field_values = {field.name: values[field.name] for field in fields(options)}
            filled[name] = options(**field_values)
        own = {name: value for name, value in values.items() if name not in flags}
        return command(*args, **own, **filled)

    # By keyword only, so that a parameter without a default may follow one that has a default.
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*plain, *flags.values())]
    # Typer reads the signature and the annotations of the function.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # functions have it at run time
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def flag_of(options: type, name: str) -> Any:
    """Return a field for another option class, with the default and the flag of a field of `options`."""
    original = next(field for field in fields(options) if field.name == name)
    return dataclasses.field(default=original.default, metadata=original.metadata)


def _flags_of(options: type) -> dict[str, inspect.Parameter]:
    """Return one parameter per field of an option class, by field name, annotated for Typer."""
    hints = typing.get_type_hints(options)
    flags = {}
    for field in fields(options):
        assert field.default is not MISSING, f"{field.name}: a flag needs a default"
        spelling = field.metadata.get("flag", f"--{field.name.replace('_', '-')}")
        names = spelling if isinstance(spelling, tuple) else (spelling,)
        details: dict[str, Any] = {"help": field.metadata["help"], "metavar": field.metadata.get("metavar")}
        if "least" in field.metadata:
            details["min"] = field.metadata["least"]
        hint = hints[field.name]
        members = typing.get_args(hint)
        if int in members and str in members:
            # A size is a number or text such as 4GB. Typer doesn't support unions of types, so it is read as text.
            hint = str | None if type(None) in members else str
            details["callback"] = _checked_size
        annotation: Any = Annotated[hint, typer.Option(*names, **details)]
        flags[field.name] = inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation
        )
    return flags


def _checked_size(text: str | None) -> str | None:
    """Return a valid size unchanged; typer reports an invalid one as a usage error, before anything is loaded."""
    if text is not None:
        try:
            parse_bytes(text)
        except ValueError as error:
            raise typer.BadParameter(f"{error}. Write a size such as 4GB") from None
    return text
