"""`hf-tsv recipes`: list or print the bundled example recipes."""

from typing import Annotated

import typer

from hf_tsv.cli._told import out, told
from hf_tsv.errors import RecipeError
from hf_tsv.files.bundled import bundled


@told
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One recipe, to read or save.", show_default=False)
    ] = None,
) -> None:
    """List the bundled recipes, or print one: `hf-tsv recipes NAME > recipe.yaml`."""
    found = {path.stem: path for path in sorted(bundled("recipes").glob("*.yaml"))}
    if name is None:
        width = max(map(len, found), default=0)
        for stem, path in found.items():
            first_line = path.read_text("utf-8").split("\n", 1)[0]
            # The comment at the top of a recipe says what the recipe is for.
            summary = first_line.removeprefix("#").strip() if first_line.startswith("#") else ""
            out.print(f"{stem:{width}}  {summary}", markup=False)
    elif name in found:
        # Not printed by rich, which would wrap lines: the output is a recipe to save.
        print(found[name].read_text("utf-8"), end="")
    else:
        raise RecipeError(f"no bundled recipe '{name}'. There are: {', '.join(found)}")
