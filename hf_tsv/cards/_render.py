"""The card of any output: a merged model or adapters."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_tsv.cards._adapters import of_task, render_adapters
from hf_tsv.cards._licences import LICENCE_ID, Licence
from hf_tsv.cards._merge import render_merge
from hf_tsv.errors import OutputError, RecipeError
from hf_tsv.files.disk import write_text
from hf_tsv.files.names import CARD_FILE
from hf_tsv.hub import header_of_card
from hf_tsv.lora.format import ADAPTER_CONFIG
from hf_tsv.lora.formats import ADAPTERS
from hf_tsv.record import AdaptersRecord, MergeRecord, Record

RELATIONS = ("merge", "adapter", "quantized", "finetune")


def write_card(record: Record, folder: Path, *, licence: Licence | None = None, keep: Sequence[str] = ()) -> None:
    """Write the card of an output into its folder; for a compression, also one into every adapter's folder.

    Args:
        record: The output's record, as in `hf_tsv.json`.
        folder: The output folder, which holds the recipes and the model's configuration.
        licence: The chosen licence; None for the licence that follows from the sources.
        keep: Earlier cards, whose sections written by people stay.

    Raises:
        ResourceError: the disk is full.
        OutputError: a file can't be written, or the record is of a restored checkpoint, which has no card.
    """
    write_text(folder / CARD_FILE, render_card(record, folder, olds=keep, licence=licence))
    if not isinstance(record, AdaptersRecord) or is_one_adapter(folder):
        return
    for task, profiles in record.adapters.items():
        for profile in profiles:
            path = folder / ADAPTERS[profile] / task / CARD_FILE
            olds = [path.read_text("utf-8")] if path.is_file() else []
            places = {(task, profile): "."}  # an adapter's folder becomes a repository of its own
            card = render_adapters(of_task(record, task), folder, places, olds=olds, licence=licence)
            write_text(path, card)


def render_card(record: Record, folder: Path, *, olds: Sequence[str] = (), licence: Licence | None = None) -> str:
    """Render the card of a whole output: a merged model, or all adapters of a compression.

    Raises:
        OutputError: the record is of a restored checkpoint, which has no card.
    """
    if isinstance(record, MergeRecord):
        return render_merge(record, folder, olds=olds, licence=licence)
    if not isinstance(record, AdaptersRecord):
        raise OutputError(f"{folder}: is one task's restored checkpoint, which has no card. Name a merge or adapters")
    one = is_one_adapter(folder)
    places = {}
    for task, profiles in record.adapters.items():
        for profile in profiles:
            places[task, profile] = "." if one else f"{ADAPTERS[profile]}/{task}"
    return render_adapters(record, folder, places, olds=olds, licence=licence)


def is_one_adapter(folder: Path) -> bool:
    """Return True if an output is itself an adapter, not a folder of them."""
    return (folder / ADAPTER_CONFIG).is_file()


def check_card(card: str) -> list[str]:
    """List the parts of a card that the Hub would refuse, found without a request to it."""
    try:
        document = header_of_card(card)
        document.raise_problems()
        data = ModelCardData(**document.data)
    except (ValueError, RecipeError) as error:
        reason = " ".join(str(error).split())  # on one line
        return [f"its header can't be read: {reason[:200]}"]
    header: dict[str, Any] = data.to_dict()  # type: ignore[no-untyped-call]  # huggingface_hub has no types for it
    problems: list[str] = []
    if header.get("base_model_relation", "merge") not in RELATIONS:
        problems.append(f"base_model_relation is not one of {', '.join(RELATIONS)}")
    for name in header.get("base_model") or ():
        try:
            validate_repo_id(str(name))
        except HFValidationError:
            problems.append(f"base_model {name!r} is not a Hub id")
    licence = header.get("license")
    if licence is not None and not re.fullmatch(LICENCE_ID, str(licence)):
        problems.append(f"license {licence!r} is not a licence that the Hub knows, such as apache-2.0, or other")
    if licence == "other" and not header.get("license_name"):
        problems.append("license 'other' has no license_name")
    return problems
