"""Files that come with the package: recipes and card templates."""

from pathlib import Path


def bundled(kind: str) -> Path:
    """Return the folder of `recipes` or `cards`: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_data" / kind
    return installed if installed.is_dir() else package.parent / kind
