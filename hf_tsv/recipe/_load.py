"""Reading a recipe from its file or its text."""

from pathlib import Path

from hf_tsv.errors import RecipeError
from hf_tsv.recipe._meaning import read_meaning
from hf_tsv.recipe._recipe import Recipe
from hf_tsv.recipe._schema import read_shape
from hf_tsv.recipe._slices import read_whole_slice
from hf_tsv.recipe._yaml import MAX_CHARACTERS, read_yaml


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file.

    A model's relative path starts at the current directory, as in mergekit; if no folder is there, at the recipe's.

    Raises:
        RecipeError: the file can't be read, or the recipe has mistakes.
    """
    path = Path(path)
    return parse_recipe(read_text(path, "recipe"), str(path), path.parent)


def read_text(path: Path, what: str) -> str:
    """Read a text file that a person wrote; `what` names it in messages.

    Raises:
        RecipeError: the file can't be read, or isn't UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            return file.read(MAX_CHARACTERS + 1)  # one more than `read_yaml` accepts, so that it refuses a longer file
    except UnicodeDecodeError as error:
        problem = f"the {what} isn't UTF-8 text ({error.reason} at byte {error.start})."
        raise RecipeError(f"{path}: {problem} Save it as UTF-8.") from None
    except OSError as error:
        raise RecipeError(f"{path}: the {what} can't be read: {error.strerror}.") from None


def parse_recipe(text: str, source: str = "recipe.yaml", folder: Path | None = None) -> Recipe:
    """Read a recipe from its text.

    Args:
        text: The recipe's YAML text.
        source: The recipe's name in messages.
        folder: The recipe's folder, for models' relative paths.

    Raises:
        RecipeError: the recipe has mistakes.
    """
    document = read_yaml(text, source)
    read_whole_slice(document)
    return read_meaning(document, read_shape(document), text, folder)
