"""What of an output may be seen by all: no folder of the machine where it was made."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from hf_tsv.files.names import LOCK_FILE, RECIPE_FILE, RECORD_FILE
from hf_tsv.recipe import read_yaml, to_yaml

MODEL_KEYS = ("base_model", "model", "path", "lora", "tokenizer_source", "source")  # keys of a recipe that name a model
NAME_KEYS = ("_name_or_path", "name_or_path", "base_model_name_or_path")  # keys of a configuration that do
_FOLDER = re.compile(r"(?<![\w.~/-])(?:~\w*|\.{1,2})?/(?!/)(?:[^\s/'\"]*/)*")


def published(folder: Path, record: Mapping[str, Any]) -> dict[str, bytes]:
    """The text files of an output folder that are published otherwise than they lie there, by name."""
    record_text = json.dumps(published_record(record), indent=1, ensure_ascii=False) + "\n"
    return {
        RECORD_FILE: record_text.encode(),
        RECIPE_FILE: published_recipe(record, folder).encode(),
        LOCK_FILE: published_lock(record, folder).encode(),
    }


def published_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with folders by their names alone."""
    sources = [dict(source) for source in record["sources"]]
    for source in sources:
        (model, _), *adapter = (_shown(place) for place in places(source))
        source["model"] = model
        if adapter:
            source["adapter"] = "@".join(filter(None, adapter[0]))
    return {**record, "sources": sources, "warnings": [without_folders(warning) for warning in record["warnings"]]}


def published_recipe(record: Mapping[str, Any], folder: Path) -> str:
    """The recipe as it was written; one that names folders is told without them, and so without its comments."""
    text = (folder / RECIPE_FILE).read_text("utf-8")
    named = any(path in text for path in _folders(record))
    return _masked(text, RECIPE_FILE, record) if named or _FOLDER.search(text) else text


def published_lock(record: Mapping[str, Any], folder: Path) -> str:
    """The recipe with every Hub model at its commit, and with folders by their names alone."""
    return _masked((folder / LOCK_FILE).read_text("utf-8"), LOCK_FILE, record)


def published_config(text: str) -> str:
    """A JSON configuration; where it names a folder that it came from, by its name alone."""

    def masked(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {key: masked(item, key) for key, item in value.items()}
        if isinstance(value, list):
            return [masked(item) for item in value]
        is_folder = key in NAME_KEYS and isinstance(value, str) and re.match(r"[~/]|\.{1,2}(/|$)", value)
        return folder_name(value) if is_folder else value

    data = json.loads(text)
    return text if masked(data) == data else json.dumps(masked(data), indent=2, ensure_ascii=False) + "\n"


def places(source: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """Path and commit of a source's model and of the adapter on top of it, if any; folders have no commit."""
    places = [(str(source["model"]), source["revision"])]
    if adapter := source.get("adapter"):
        path, _, revision = adapter.rpartition("@")
        places.append((path, revision) if re.fullmatch("[0-9a-f]{40}", revision) else (adapter, None))
    return places


def _shown(place: tuple[str, str | None]) -> tuple[str, str | None]:
    path, revision = place
    return (path, revision) if revision else (folder_name(path), None)


def folder_name(path: str) -> str:
    name = PurePosixPath(path).name
    return name if name.strip(".~") else "local folder"


def without_folders(message: str) -> str:
    """A message without the folders of the machine where it was said: neither the recipe's nor any model's."""
    message = re.sub(r"^.*?([^/]+:\d+: )", r"\1", message)
    return _FOLDER.sub("", message)


def _folders(record: Mapping[str, Any]) -> set[str]:
    return {path for source in record["sources"] for path, revision in places(source) if not revision}


def _masked(text: str, name: str, record: Mapping[str, Any]) -> str:
    """The text of a recipe's file, with folders by their names alone."""
    folders = _folders(record)

    def published(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {key: published(item, key) for key, item in value.items()}
        if isinstance(value, list):
            return [published(item) for item in value]
        return _reference(value, folders) if key in MODEL_KEYS and isinstance(value, str) else value

    document = read_yaml(text, name)
    document.raise_problems()
    return to_yaml(published(document.data))


def _reference(written: str, folders: Collection[str]) -> str:
    """`MODEL` or `MODEL+ADAPTER`, each that is a folder by its name alone: known, or written as one."""
    parts = [written] if written in folders else written.split("+")
    is_folder = [part in folders or re.match(r"[~/]|\.{1,2}(/|$)", part) for part in parts]
    return "+".join(folder_name(part) if told else part for part, told in zip(parts, is_folder, strict=True))
