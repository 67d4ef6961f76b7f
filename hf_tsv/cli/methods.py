"""`hf-tsv methods`: what can be written in a recipe."""

import inspect
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_tsv.cli._flags import flag_of, with_flags
from hf_tsv.cli._options import Talk
from hf_tsv.cli._told import out, told

if TYPE_CHECKING:
    from hf_tsv.methods import MergeMethod, Parameter

WEIGHT = "weight: float = 1.0, one under each model"
WEIGHTS = {"factors": "Factor on the task's change", "shares": "The model's share of the average"}


@dataclass(frozen=True)
class Form:
    """How the methods are listed."""

    json: bool = flag_of(Talk, "json")


@told
@with_flags
def methods(
    form: Form,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One method, in full.", show_default=False)
    ] = None,
) -> None:
    """List the merge methods, or tell all about one."""
    from hf_tsv.errors import RecipeError
    from hf_tsv.methods import METHODS

    if name is not None and name not in METHODS:
        raise RecipeError(f"unknown method '{name}'. Known: {', '.join(sorted(METHODS))}")
    chosen = [METHODS[name]] if name else [METHODS[key] for key in sorted(METHODS)]
    if form.json:
        print(json.dumps({m.name: _as_data(m) for m in chosen}, indent=1))
    elif name:
        _show(chosen[0])
    else:
        _list(chosen)


def _list(chosen: "Sequence[MergeMethod]") -> None:
    from rich.table import Table

    table = Table("method", "what it does", "parameters", box=None, pad_edge=False, header_style="bold")
    for method in chosen:
        table.add_row(method.name, method.summary, ", ".join(method.parameters))
    out.print(table)


def _show(method: "MergeMethod") -> None:
    about, documented = _documented(method)
    out.print(f"{method.name}  {method.paper}\n\n{about}\n\nParameters:", markup=False)
    for parameter in method.parameters.values():
        out.print(f"  {_declared(method, parameter)}. {documented[parameter.name]}", markup=False)
    out.print(f"  {WEIGHT}. {WEIGHTS[method.inputs.weights]}.", markup=False)
    out.print(f"\nNeeds: {method.needs}\nCost: {method.cost}.", markup=False)


def _declared(method: "MergeMethod", parameter: "Parameter") -> str:
    also = [f"or {alias}" for alias, target in method.aliases.items() if target == parameter.name]
    per_task = ["one for all tasks or one under each model"] if parameter.per_task else []
    first = f"{parameter.name}: {parameter.type_name} = {parameter.default}"
    return ", ".join(filter(None, [first, parameter.range, *per_task, *also]))


def _documented(method: "MergeMethod") -> tuple[str, dict[str, str]]:
    """What a docstring says of the method, and of each parameter in one line."""
    before, _, rest = (inspect.getdoc(method.fn) or "").partition("\n\nArgs:\n")
    args, _, after = re.sub(r"\n\nRaises:\n(    .*\n?)+", "\n\n", rest).partition("\n\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", args, re.MULTILINE)
    return f"{before}\n\n{after}".strip(), {name: " ".join(text.split()) for name, text in entries}


def _as_data(method: "MergeMethod") -> dict[str, Any]:
    about, documented = _documented(method)
    return {
        "summary": method.summary,
        "about": about,
        "paper": method.paper,
        "needs": method.needs,
        "cost": method.cost,
        "parameters": {
            p.name: {
                "type": p.type_name,
                "default": p.default,
                "range": p.range,
                "per_task": p.per_task,
                "about": documented[p.name],
            }
            for p in method.parameters.values()
        },
    }
