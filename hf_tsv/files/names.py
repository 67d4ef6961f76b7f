"""The names of what lies in an output folder."""

from typing import TypeAlias

Profile: TypeAlias = str  # the name of a format of adapters, of hf_tsv.lora.formats

RECORD_FILE = "hf_tsv.json"  # says that a folder is an output of this package
RECIPE_FILE = "recipe.yaml"
LOCK_FILE = "recipe.lock.yaml"
CARD_FILE = "README.md"
MODEL_CONFIG = "config.json"
MASKS = "masks"  # each task a file in it
PARTS = "task_parts"  # each task a file in it
PICTURES = "assets"
