"""Arguments and flags that several commands share, spelt as `hf` spells them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hf_tsv.job.options import Options, option

if TYPE_CHECKING:
    from hf_tsv.publish.check import Pushing
    from hf_tsv.recipe import Recipe

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe: a YAML file.", show_default=False)]
OutFolder = Annotated[
    Path | None,
    typer.Argument(
        metavar="OUT", help="Output folder. With --push-to-hub, defaults to the repository's name.", show_default=False
    ),
]


def _checked_keep(text: str | None) -> str | None:
    """Return a valid rule unchanged; typer reports an invalid one as a usage error."""
    if text is not None:
        from hf_tsv.errors import MethodError
        from hf_tsv.linalg.ranks import parse_keep

        try:
            parse_keep(text)
        except MethodError as error:
            raise typer.BadParameter(str(error).removeprefix(f"--keep {text}: ")) from None
    return text


Keep = Annotated[
    str | None,
    typer.Option(
        "--keep",
        metavar="RULE",
        callback=_checked_keep,
        help="How much to keep: 10%, 10MB, rank=16, fraction=0.5, energy=0.9 or error=0.1.",
    ),
]


@dataclass(frozen=True)
class PushOptions:
    """Options for pushing the output."""

    push_to_hub: str | None = option(None, "Push the output there; adapters also to user/name-{task}.", metavar="REPO")
    create_pr: bool = option(False, "Open a pull request instead of committing to main.")
    private: bool | None = option(
        None,
        "For a new repository. Default: private where a source is private or gated.",
        flag="--private/--public",
    )
    license: str | None = option(None, "Licence to carry, instead of the sources' own.", metavar="ID")
    commit_message: str | None = option(
        None, "Commit message. Default: what was done, such as 'Merge 3 models'.", metavar="TEXT"
    )

    @property
    def pushing(self) -> "Pushing | None":
        """The options of the push; None without --push-to-hub, which the other flags need.

        Raises:
            BadParameter: a flag has no effect.
        """
        if self.push_to_hub is None:
            given = {
                # An explicit False can't be distinguished from the default.
                "--create-pr": self.create_pr or None,
                "--private/--public": self.private,
                "--license": self.license,
                "--commit-message": self.commit_message,
            }
            without_effect = [flag for flag, value in given.items() if value is not None]
            if without_effect:
                raise typer.BadParameter("has no effect without --push-to-hub", param_hint=" / ".join(without_effect))
            return None
        # Imported here, so that --help doesn't wait for it.
        from hf_tsv.publish.check import Pushing

        return Pushing(self.push_to_hub, self.create_pr, self.private, self.license, self.commit_message)

    def out_folder(self, out: Path | None) -> Path:
        """Return the output folder; by default, one in the current folder with the repository's name.

        Raises:
            BadParameter: neither a folder nor a repository was given.
        """
        if out is not None:
            return out
        if self.push_to_hub is None:
            raise typer.BadParameter("expected a folder, or --push-to-hub", param_hint="OUT")
        _, _, name = self.push_to_hub.rpartition("/")
        # user/name-{task} loses its dash as well. Nothing is left of user/{task}.
        name = name.replace("{task}", "").strip("-_.")
        return Path(name or "out")


@dataclass(frozen=True)
class RunOptions(Options):
    """Options of commands that make an output."""

    dry_run: bool = option(False, "Say what would be done, and do nothing.")


@dataclass(frozen=True)
class Talk:
    """Options for a command's messages and results."""

    json: bool = option(False, "Print the result as JSON.")
    quiet: bool = option(False, "No progress.", flag=("--quiet", "-q"))


@dataclass(frozen=True)
class DeviceOfTorch:
    """The device that runs models."""

    device: str | None = option(None, "cpu, cuda or cuda:1. Default: a GPU if there is one.")


@dataclass(frozen=True)
class Shards:
    """Options for splitting weights into files."""

    max_shard_size: int | str = option("5GB", "Largest file of weights.", metavar="SIZE")


@dataclass(frozen=True)
class Svd:
    """Options for computing singular vectors."""

    svd: Literal["exact", "sketch"] | None = option(
        None, "How singular vectors are computed, instead of what the recipe says."
    )

    def recipe(self, path: Path) -> "Recipe":
        """Load a recipe from a file; this choice replaces the recipe's own."""
        from hf_tsv.recipe import load_recipe

        recipe = load_recipe(path)
        return replace(recipe, svd=self.svd) if self.svd else recipe
