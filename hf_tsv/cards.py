"""The record of a run -> the model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_card(record: Mapping[str, Any], folder: Path) -> None:
    pass
