"""The published versions of an output's text files, without paths of the machine where it was made."""

import json
import re
from pathlib import Path
from typing import Any

from hf_tsv.cards._sources import folder_name, places
from hf_tsv.files.names import LOCK_FILE, RECIPE_FILE, RECORD_FILE
from hf_tsv.recipe import read_yaml, to_yaml
from hf_tsv.record import Record, RestoredRecord, SourceEntry, to_text

MODEL_KEYS = ("base_model", "model", "path", "lora", "tokenizer_source", "source")  # keys of a recipe that name a model
NAME_KEYS = ("_name_or_path", "name_or_path", "base_model_name_or_path")  # keys of a configuration that name a model
WRITTEN_AS_FOLDER = re.compile(r"[~/]|\.{1,2}(/|$)")  # at the start of a reference
# A path of folders, absolute or from `~`, `.` or `..`, up to its last slash; not the slashes of a Hub id or an address.
_FOLDER = re.compile(r"(?<![\w.~/-])(?:~\w*|\.{1,2})?/(?!/)(?:[^\s/'\"]*/)*")


def published(folder: Path, record: Record) -> dict[str, bytes]:
    """Return the text files of an output folder that are changed before they are published, by name."""
    return {
        RECORD_FILE: to_text(published_record(record)).encode(),
        RECIPE_FILE: published_recipe(record, folder).encode(),
        LOCK_FILE: published_lock(record, folder).encode(),
    }


def published_record(record: Record) -> Record:
    """Return the record with folders reduced to their names."""
    sources: list[SourceEntry] = []
    for source in record.sources:
        in_order = places(source)  # the model, and maybe an adapter on it
        changes = {"model": in_order[0].name}
        for adapter in in_order[1:]:
            changes["adapter"] = f"{adapter.name}@{adapter.revision}" if adapter.revision else adapter.name
        sources.append(source.model_copy(update=changes))
    update: dict[str, Any] = {"sources": tuple(sources)}
    if not isinstance(record, RestoredRecord):
        update["warnings"] = tuple(without_folders(warning) for warning in record.warnings)
    return record.model_copy(update=update)


def published_recipe(record: Record, folder: Path) -> str:
    """Return the recipe as it was written. If it names folders, their paths are removed, and all comments are lost."""
    text = (folder / RECIPE_FILE).read_text("utf-8")
    names_folders = any(path in text for path in _folders(record)) or _FOLDER.search(text)
    return _masked(text, RECIPE_FILE, record) if names_folders else text


def published_lock(record: Record, folder: Path) -> str:
    """Return the recipe with every Hub model pinned to its commit, and with folders reduced to their names."""
    return _masked((folder / LOCK_FILE).read_text("utf-8"), LOCK_FILE, record)


def published_config(text: str) -> str:
    """Return a JSON configuration in which a source folder is reduced to its name."""

    def masked(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {key: masked(item, key) for key, item in value.items()}
        if isinstance(value, list):
            return [masked(item) for item in value]
        is_folder = key in NAME_KEYS and isinstance(value, str) and WRITTEN_AS_FOLDER.match(value)
        return folder_name(value) if is_folder else value

    data = json.loads(text)
    shown = masked(data)
    # If nothing is masked, the file keeps its formatting.
    return text if shown == data else json.dumps(shown, indent=2, ensure_ascii=False) + "\n"


def without_folders(message: str) -> str:
    """Remove the folders of this machine from a message: the recipe's and any model's."""
    # The recipe's folder may have spaces in its name, so everything before FILE:LINE is removed.
    message = re.sub(r"^.*?([^/]+:\d+: )", r"\1", message)
    return _FOLDER.sub("", message)


def _folders(record: Record) -> set[str]:
    """Return the paths of all sources that are folders."""
    paths: set[str] = set()
    for source in record.sources:
        paths.update(place.path for place in places(source) if not place.revision)
    return paths


def _masked(text: str, name: str, record: Record) -> str:
    """Return a recipe's text with folders reduced to their names."""
    folders = _folders(record)

    def published(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {key: published(item, key) for key, item in value.items()}
        if isinstance(value, list):
            return [published(item) for item in value]
        if key not in MODEL_KEYS or not isinstance(value, str):
            return value
        # `MODEL` or `MODEL+ADAPTER`: a part that is a known folder, or is written as one, is reduced to its name.
        # A folder's name may contain a plus sign, so the whole value is looked up first.
        parts = [value] if value in folders else value.split("+")
        shown: list[str] = []
        for part in parts:
            is_folder = part in folders or WRITTEN_AS_FOLDER.match(part)
            shown.append(folder_name(part) if is_folder else part)
        return "+".join(shown)

    document = read_yaml(text, name)
    document.raise_problems()
    return to_yaml(published(document.data))
