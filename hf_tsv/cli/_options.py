"""Options that several commands take, spelt as `hf` spells them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hf_tsv.errors import parse_bytes

if TYPE_CHECKING:
    from hf_tsv.publish.publishing import Pushing
    from hf_tsv.recipe import Recipe

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe: a YAML file.", show_default=False)]
Mode = Literal["exact", "sketch"]  # hf_tsv.linalg's, which needs torch
Svd = Annotated[
    Mode | None, typer.Option("--svd", help="How singular vectors are computed, instead of what the recipe says.")
]
ShardSize = Annotated[str, typer.Option("--max-shard-size", metavar="SIZE", help="Largest output file.")]
Token = Annotated[
    str | None, typer.Option("--token", help="Hub token; better: the variable HF_TOKEN, or `hf auth login`.")
]
CacheDir = Annotated[Path | None, typer.Option("--cache-dir", metavar="DIR", help="Where downloads are kept.")]
Streamed = Annotated[
    bool, typer.Option("--stream", help="Read fine-tuned models from the Hub piece by piece, with no copy on disk.")
]
PushToHub = Annotated[
    str | None,
    typer.Option("--push-to-hub", metavar="REPO", help="Push the output there; adapters also to user/name-{task}."),
]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing to main.")]
Private = Annotated[
    bool | None,
    typer.Option(
        "--private/--public", help="For a new repository; unless given, private where a source is private or gated."
    ),
]
License = Annotated[
    str | None, typer.Option("--license", metavar="ID", help="The licence to carry, instead of the sources' own.")
]
CommitMessage = Annotated[
    str | None,
    typer.Option("--commit-message", metavar="TEXT", help="Instead of what was done, such as 'Merge 3 models'."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output of hf-tsv.")]
Restart = Annotated[bool, typer.Option("--restart", help="Throw an unfinished run's work away.")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Tensors in work at once; default: one a core.")]
MaxMemory = Annotated[
    str | None, typer.Option("--max-memory", metavar="SIZE", help="For tensors in work, such as 4GB.")
]
Device = Annotated[str, typer.Option("--device", help="Where methods compute: cpu, cuda or cuda:1.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def recipe_from(path: Path, svd: Mode | None) -> "Recipe":
    """The recipe of a file, with the command line's choice over its own."""
    from dataclasses import replace

    from hf_tsv.recipe import load_recipe

    recipe = load_recipe(path)
    return replace(recipe, svd=svd) if svd else recipe


def memory_of(max_memory: str | None) -> int | None:
    """Bytes that --max-memory allows; None where it isn't given."""
    return parse_size(max_memory, "--max-memory") if max_memory else None


def parse_size(text: str, option: str) -> int:
    """Bytes from `4GB`, `500M` or `1e9`."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(f"{error}, expected something like 4GB", param_hint=option) from None


def pushing_of(
    repo: str | None, create_pr: bool, private: bool | None, license_: str | None, message: str | None
) -> "Pushing | None":
    """What was asked of a push, None when none was; the options of one need it."""
    given = {
        "--create-pr": create_pr or None,
        "--private/--public": private,
        "--license": license_,
        "--commit-message": message,
    }
    if repo is None:
        if idle := [option for option, value in given.items() if value is not None]:
            raise typer.BadParameter("there is nothing to push without --push-to-hub", param_hint=" / ".join(idle))
        return None
    from hf_tsv.publish.publishing import Pushing

    return Pushing(repo, create_pr, private, license_, message)


def out_or_named(out: Path | None, repo: str | None) -> Path:
    """The output folder; unless given, one here with the repository's name."""
    if out is None and repo is None:
        raise typer.BadParameter("expected a folder, or --push-to-hub", param_hint="OUT")
    return out or Path(str(repo).rpartition("/")[2].replace("{task}", "").strip("-_.") or "out")
