"""The names of files and folders in an output folder."""

from typing import TypeAlias

Profile: TypeAlias = str  # the name of an adapter format, in hf_tsv.lora.formats

RECORD_FILE = "hf_tsv.json"  # marks a folder as an output of this package
RECIPE_FILE = "recipe.yaml"
LOCK_FILE = "recipe.lock.yaml"
CARD_FILE = "README.md"
MODEL_CONFIG = "config.json"
MASKS = "masks"  # a folder with one file per task
PARTS = "task_parts"  # a folder with one file per task
PICTURES = "assets"
