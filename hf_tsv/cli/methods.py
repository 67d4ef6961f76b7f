"""`hf-tsv methods`: what can be written in a recipe."""

import inspect
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_tsv.cli._options import Json
from hf_tsv.cli._told import out, told

if TYPE_CHECKING:
    from hf_tsv.methods import MergeMethod


@told
def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One method, in full.", show_default=False)
    ] = None,
    json_: Json = False,
) -> None:
    """List the merge methods, or tell all about one."""
    from hf_tsv.errors import RecipeError
    from hf_tsv.methods import METHODS

    if name is not None and name not in METHODS:
        raise RecipeError(f"unknown method '{name}'. Known: {', '.join(sorted(METHODS))}")
    chosen = [METHODS[name]] if name else [METHODS[key] for key in sorted(METHODS)]
    if json_:
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
    out.print(f"{method.name}  {method.paper}\n", markup=False)
    out.print(inspect.getdoc(method.fn) or "", markup=False)
    for parameter in method.parameters.values():
        per_task = ", one for all tasks or one under each model" if parameter.per_task else ""
        out.print(f"\n  {parameter.name}: {parameter.type_name} = {parameter.default}{per_task}", markup=False, end="")
    out.print("\n  weight: float = 1.0, one for all tasks or one under each model", markup=False)


def _as_data(method: "MergeMethod") -> dict[str, Any]:
    return {
        "summary": method.summary,
        "paper": method.paper,
        "parameters": {
            p.name: {"type": p.type_name, "default": p.default, "per_task": p.per_task}
            for p in method.parameters.values()
        },
    }
