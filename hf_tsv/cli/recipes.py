"""`hf-tsv recipes`: the worked examples that come along."""

from typing import Annotated

import typer

from hf_tsv.cli._told import out, told
from hf_tsv.errors import RecipeError


@told
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One recipe, to read or save.", show_default=False)
    ] = None,
) -> None:
    """List the bundled recipes, or print one: `hf-tsv recipes NAME > recipe.yaml`."""
    from hf_tsv.recipe.bundled import bundled  # its package imports torch

    found = {path.stem: path for path in sorted(bundled("recipes").glob("*.yaml"))}
    if name is None:
        width = max(map(len, found), default=0)
        for stem, path in found.items():
            out.print(f"{stem:{width}}  {_summary(path.read_text('utf-8'))}", markup=False)
    elif name in found:
        print(found[name].read_text("utf-8"), end="")
    else:
        raise RecipeError(f"no bundled recipe '{name}'. There are: {', '.join(found)}")


def _summary(text: str) -> str:
    first = text.split("\n", 1)[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
