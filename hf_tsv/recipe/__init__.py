"""Conversion between YAML and Recipe. Strict: all mistakes are reported at once, in file order, with line and way out.

`edited` changes a recipe in its author's text and keeps the comments.
"""

from hf_tsv.recipe._compression import as_adapter_output, as_compression
from hf_tsv.recipe._document import Document
from hf_tsv.recipe._edit import edited, models_of, own_value, put_key, put_keys, remove_key
from hf_tsv.recipe._load import load_recipe, parse_recipe, read_text
from hf_tsv.recipe._lock import pinned_text
from hf_tsv.recipe._messages import did_you_mean, wrong_value
from hf_tsv.recipe._recipe import UNION, Recipe, RecipeAdapters, RecipeModel, Rule, TokenizerChoice
from hf_tsv.recipe._refs import ModelRef, in_repository, is_local
from hf_tsv.recipe._yaml import read_yaml, to_yaml

__all__ = [
    "UNION",
    "Document",
    "ModelRef",
    "Recipe",
    "RecipeAdapters",
    "RecipeModel",
    "Rule",
    "TokenizerChoice",
    "as_adapter_output",
    "as_compression",
    "did_you_mean",
    "edited",
    "in_repository",
    "is_local",
    "load_recipe",
    "models_of",
    "own_value",
    "parse_recipe",
    "pinned_text",
    "put_key",
    "put_keys",
    "read_text",
    "read_yaml",
    "remove_key",
    "to_yaml",
    "wrong_value",
]
