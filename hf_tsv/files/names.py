"""The names of what lies in an output folder."""

from collections.abc import Mapping
from typing import Literal

Profile = Literal["faithful", "serving"]

RECORD_FILE = "hf_tsv.json"  # says that a folder is an output of this package
RECIPE_FILE = "recipe.yaml"
LOCK_FILE = "recipe.lock.yaml"
CARD_FILE = "README.md"
MODEL_CONFIG = "config.json"
ADAPTERS: Mapping[Profile, str] = {"faithful": "adapters", "serving": "adapters-serving"}  # by profile; a folder a task
MASKS = "masks"  # each task a file in it
PARTS = "task_parts"  # each task a file in it
PICTURES = "assets"
