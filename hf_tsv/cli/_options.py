"""Options that several commands take, spelt as `hf` spells them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hf_tsv.errors import parse_bytes

if TYPE_CHECKING:
    from hf_tsv.recipe import Recipe

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe: a YAML file.", show_default=False)]
Mode = Literal["exact", "fast", "sketch"]  # hf_tsv.linalg's, which needs torch
Svd = Annotated[
    Mode | None, typer.Option("--svd", help="How singular vectors are computed, instead of what the recipe says.")
]
ShardSize = Annotated[str, typer.Option("--max-shard-size", metavar="SIZE", help="Largest output file.")]
Token = Annotated[
    str | None, typer.Option("--token", help="Hub token; better: the variable HF_TOKEN, or `hf auth login`.")
]
CacheDir = Annotated[Path | None, typer.Option("--cache-dir", metavar="DIR", help="Where downloads are kept.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def recipe_from(path: Path, svd: Mode | None) -> "Recipe":
    """The recipe of a file, with the command line's choice over its own."""
    from dataclasses import replace

    from hf_tsv.recipe import load_recipe

    recipe = load_recipe(path)
    return replace(recipe, svd=svd) if svd else recipe


def parse_size(text: str, option: str) -> int:
    """Bytes from `4GB`, `500M` or `1e9`."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(f"{error}, expected something like 4GB", param_hint=option) from None
