"""The card of an output, whatever it is."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_tsv.cards._adapters import of_task, render_adapters
from hf_tsv.cards._licences import LICENCE_ID, Licence
from hf_tsv.cards._merge import render_merge
from hf_tsv.errors import RecipeError
from hf_tsv.files.disk import write_text
from hf_tsv.files.names import ADAPTERS, CARD_FILE
from hf_tsv.hub import header_of_card

RELATIONS = ("merge", "adapter", "quantized", "finetune")


def write_card(
    record: Mapping[str, Any], folder: Path, *, licence: Licence | None = None, keep: Sequence[str] = ()
) -> None:
    """Write the card of an output into its folder, and of a compression one into every adapter's.

    Args:
        record: What was done, as `hf_tsv.json` holds it.
        folder: The output: its recipes, and the configuration that tells how a model is loaded.
        licence: The one chosen; None for what follows from the sources.
        keep: Earlier cards, whose sections by people stay.

    Raises:
        ResourceError: the disk is full.
        OutputError: a file can't be written.
    """
    write_text(folder / CARD_FILE, render_card(record, folder, olds=keep, licence=licence))
    for task, profiles in () if is_one_adapter(folder) else record.get("tasks", {}).items():
        for profile in profiles:
            card = folder / ADAPTERS[profile] / task / CARD_FILE
            kept = [card.read_text("utf-8")] if card.is_file() else []
            places = {(task, profile): "."}
            write_text(card, render_adapters(of_task(record, task), folder, places, olds=kept, licence=licence))


def render_card(
    record: Mapping[str, Any], folder: Path, *, olds: Sequence[str] = (), licence: Licence | None = None
) -> str:
    """The card of an output as a whole: a merged model, or all adapters of a compression."""
    if "tasks" not in record:
        return render_merge(record, folder, olds=olds, licence=licence)
    places = {
        (task, profile): "." if is_one_adapter(folder) else f"{ADAPTERS[profile]}/{task}"
        for task, profiles in record["tasks"].items()
        for profile in profiles
    }
    return render_adapters(record, folder, places, olds=olds, licence=licence)


def is_one_adapter(folder: Path) -> bool:
    """Whether an output is an adapter itself, and no folder of them."""
    return (folder / "adapter_config.json").is_file()


def check_card(card: str) -> list[str]:
    """What the Hub would refuse of a card, found without asking it."""
    try:
        document = header_of_card(card)
        document.raise_problems()
        data = ModelCardData(**document.data)
    except (ValueError, RecipeError) as error:
        return [f"its header can't be read: {' '.join(str(error).split())[:200]}"]
    header: dict[str, Any] = data.to_dict()  # type: ignore[no-untyped-call]  # huggingface_hub has no types for it
    problems = []
    if header.get("base_model_relation", "merge") not in RELATIONS:
        problems.append(f"base_model_relation is none of {', '.join(RELATIONS)}")
    problems += [f"base_model {name!r} is no Hub id" for name in header.get("base_model") or () if not _is_id(name)]
    licence = header.get("license")
    if licence is not None and not re.fullmatch(LICENCE_ID, str(licence)):
        problems.append(f"license {licence!r} is no licence that the Hub knows, such as apache-2.0, or other")
    if licence == "other" and not header.get("license_name"):
        problems.append("license 'other' has no license_name")
    return problems


def _is_id(name: object) -> bool:
    try:
        validate_repo_id(str(name))
    except HFValidationError:
        return False
    return True
