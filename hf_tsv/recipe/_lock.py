"""The recipe again, with every model pinned."""

from collections.abc import Mapping
from typing import Any

import yaml

from hf_tsv.recipe._recipe import Recipe
from hf_tsv.recipe._schema import Reference
from hf_tsv.recipe._slices import read_whole_slice
from hf_tsv.recipe._yaml import read_yaml


def pinned_text(recipe: Recipe, pins: Mapping[str, str]) -> str:
    """A recipe that means the same for ever: each reference replaced by the pinned one that `pins` has for it.

    Args:
        recipe: A recipe that was read.
        pins: From references as the recipe writes them to pinned ones.
    """
    document = read_yaml(recipe.text, recipe.source)
    read_whole_slice(document)
    data = document.data
    for entry in (data, *data["models"], data.get("tokenizer") or {}):
        for key in {"base_model", "model", "tokenizer_source", "source"} & entry.keys():
            text = _text(entry[key])
            entry[key] = pins.get(text, text)
    if data.get("svd", "exact") != recipe.svd:
        data["svd"] = recipe.svd
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _text(reference: Any) -> Any:
    """mergekit's mapping in one line; everything else as it is."""
    return Reference.model_validate(reference).text if isinstance(reference, dict) else reference
