"""A bundled recipe's table, from the Hub's models and data: `python -m benchmarks.papers RECIPE`.

It needs the network, better a GPU, `pip install datasets pillow`, and for language models the extra lm-eval.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.peers import CACHE
from hf_tsv.files.bundled import bundled
from hf_tsv.recipe import Recipe, load_recipe


def main() -> None:
    options = _options()
    recipe = load_recipe(bundled("recipes") / f"{options.recipe}.yaml")
    folder = CACHE / "papers" / options.recipe
    suite = copy_suite(options.recipe, recipe, folder)
    if options.recipe.startswith("clip-"):
        from benchmarks.clip_heads import write_heads

        write_heads(recipe.base.text, [model.name for model in recipe.models], folder / "heads")
    if not (folder / "out").is_dir():
        _hf_tsv("merge", recipe.source, str(folder / "out"))
    _hf_tsv(
        "eval", str(folder / "out"), "--suite", str(suite), *(["--device", options.device] if options.device else [])
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.papers", description=__doc__)
    parser.add_argument("recipe", help="its name, as `hf-tsv recipes` lists it")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; a GPU if there is one")
    return parser.parse_args()


def suite_of(name: str, recipe: Recipe) -> Path:
    """The bundled suite of a bundled recipe: of CLIP one serves all recipes of as many tasks."""
    stem = f"clip-{len(recipe.models)}-tasks" if name.startswith("clip-") else name
    return bundled("recipes") / "suites" / f"{stem}.yaml"


def copy_suite(name: str, recipe: Recipe, folder: Path) -> Path:
    """A recipe's suite in a folder of its own, where heads can be put beside it; what tasks `include` comes along."""
    source = suite_of(name, recipe)
    shutil.copytree(source.parent, folder, dirs_exist_ok=True)
    return folder / source.name


def _hf_tsv(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "hf_tsv", *arguments], check=True)


if __name__ == "__main__":
    main()
