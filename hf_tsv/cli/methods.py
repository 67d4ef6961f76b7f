"""`hf-tsv methods`: list the merge methods that a recipe can name."""

import inspect
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_tsv.cli._flags import flag_of, with_flags
from hf_tsv.cli._options import Talk
from hf_tsv.cli._told import out, told

if TYPE_CHECKING:
    from hf_tsv.methods import MergeMethod

WEIGHT = "weight: float = 1.0, one under each model"
WEIGHTS = {"factors": "Factor on the task's change", "shares": "The model's share of the average"}


@dataclass(frozen=True)
class Form:
    """Options for the list of methods."""

    json: bool = flag_of(Talk, "json")


@told
@with_flags
def methods(
    form: Form,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One method, in full.", show_default=False)
    ] = None,
) -> None:
    """List the merge methods, or describe one in full."""
    from rich.table import Table

    from hf_tsv.errors import RecipeError
    from hf_tsv.methods import METHODS

    if name is not None and name not in METHODS:
        raise RecipeError(f"unknown method '{name}'. Known: {', '.join(sorted(METHODS))}")
    chosen = [METHODS[name]] if name else [METHODS[key] for key in sorted(METHODS)]
    if form.json:
        print(json.dumps({method.name: _as_data(method) for method in chosen}, indent=1))
    elif name:
        _show(METHODS[name])
    else:
        table = Table("method", "what it does", "parameters", box=None, pad_edge=False, header_style="bold")
        for method in chosen:
            table.add_row(method.name, method.summary, ", ".join(method.parameters))
        out.print(table)


def _show(method: "MergeMethod") -> None:
    about, documented = _documented(method)
    out.print(f"{method.name}  {method.paper}\n\n{about}\n\nParameters:", markup=False)
    for parameter in method.parameters.values():
        declared = [f"{parameter.name}: {parameter.type_name} = {parameter.default}"]
        if parameter.range:
            declared.append(parameter.range)
        if parameter.per_task:
            declared.append("one for all tasks or one under each model")
        declared += [f"or {alias}" for alias, target in method.aliases.items() if target == parameter.name]
        out.print(f"  {', '.join(declared)}. {documented[parameter.name]}", markup=False)
    out.print(f"  {WEIGHT}. {WEIGHTS[method.inputs.weights]}.", markup=False)
    out.print(f"\nNeeds: {method.needs}\nCost: {method.cost}.", markup=False)


def _documented(method: "MergeMethod") -> tuple[str, dict[str, str]]:
    """Return a docstring's description of the method, and of each parameter as one line."""
    docstring = inspect.getdoc(method.fn) or ""
    before, _, rest = docstring.partition("\n\nArgs:\n")
    # The errors are for callers in Python; a recipe's author sees them as messages.
    without_raises = re.sub(r"\n\nRaises:\n(    .*\n?)+", "\n\n", rest)
    args, _, after = without_raises.partition("\n\n")
    # A parameter is indented by four spaces, the continuation lines of its text by eight.
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", args, re.MULTILINE)
    documented = {name: " ".join(text.split()) for name, text in entries}
    return f"{before}\n\n{after}".strip(), documented


def _as_data(method: "MergeMethod") -> dict[str, Any]:
    about, documented = _documented(method)
    parameters = {}
    for parameter in method.parameters.values():
        parameters[parameter.name] = {
            "type": parameter.type_name,
            "default": parameter.default,
            "range": parameter.range,
            "per_task": parameter.per_task,
            "about": documented[parameter.name],
        }
    return {
        "summary": method.summary,
        "about": about,
        "paper": method.paper,
        "needs": method.needs,
        "cost": method.cost,
        "parameters": parameters,
    }
