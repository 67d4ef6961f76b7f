"""The files of an output folder that go into a repository on the Hub."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from hf_tsv.cards import (
    Licence,
    NamedTerms,
    all_terms,
    is_one_adapter,
    of_task,
    published,
    published_config,
    render_adapters,
    render_card,
)
from hf_tsv.errors import OutputError
from hf_tsv.files.names import CARD_FILE, LOCK_FILE, RECIPE_FILE, RECORD_FILE, Profile
from hf_tsv.lora.format import ADAPTER_CONFIG
from hf_tsv.lora.formats import ADAPTERS
from hf_tsv.record import AdaptersRecord, MergeRecord, Record, RestoredRecord, read_record

CONFIG_MAX_BYTES = 1_000_000  # larger than any configuration; larger files, such as vocabularies, name no folder
PROFILES: Mapping[str, Profile] = {folder: profile for profile, folder in ADAPTERS.items()}


class CardMaker(Protocol):
    """Makes a card from earlier ones and the chosen licence; None for the licence that follows from the sources."""

    def __call__(self, *, olds: Sequence[str], licence: Licence | None) -> str: ...


@dataclass(frozen=True)
class Parcel:
    """An upload to one repository.

    Attributes:
        record: The part of the output's record about this upload.
        files: The files by path in the repository: a path on disk, or bytes if the published content differs.
        card: The function that makes the card.
        old_card: The card in the output; empty if there is none.
        named: The terms of each model that the recipe names, because the whole recipe is uploaded.
    """

    record: MergeRecord | AdaptersRecord
    files: Mapping[str, Path | bytes]
    card: CardMaker
    old_card: str
    named: Sequence[NamedTerms]

    @property
    def nbytes(self) -> int:
        """The bytes of all files, without the card."""
        total = 0
        for file in self.files.values():
            total += file.stat().st_size if isinstance(file, Path) else len(file)
        return total

    def files_in(self, repo_id: str) -> dict[str, Path | bytes]:
        """Return the files for that repository, in which adapters on the merged model name it as their base."""
        files = dict(self.files)
        if isinstance(self.record, MergeRecord) and self.record.adapters:
            for path, file in self.files.items():
                if not path.endswith(f"/{ADAPTER_CONFIG}"):
                    continue
                content = file.read_bytes() if isinstance(file, Path) else file
                config = json.loads(content) | {"base_model_name_or_path": repo_id}
                # Formatted as PEFT writes it.
                text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
                files[path] = text.encode()
        return files


def parcel(out: Path, tasks: Sequence[str] | None) -> Parcel:
    """Select the files of an output that go into one repository.

    Args:
        out: A merged model, a compression, or the folder of one adapter.
        tasks: The tasks of a compression to upload; a single one is put at the repository's root. None for all.

    Raises:
        OutputError: the folder wasn't made by hf-tsv, is incomplete, or is a restored checkpoint.
    """
    root, own_profile = _output_of(out)
    record = read_record(root)
    if isinstance(record, RestoredRecord):
        raise OutputError(
            f"{out}: is the restored checkpoint of '{record.task}', which has no recipe and no card. Upload it with"
            " `hf upload`, or push the output that it was restored from"
        )
    if own_profile and isinstance(record, MergeRecord):
        raise OutputError(f"{out}: is an adapter on the merged model in {root}, and goes along with it. Push {root}")
    if isinstance(record, AdaptersRecord) and own_profile:
        return _parcel_of_task(root, record, out.resolve().name, {own_profile: "."})
    if isinstance(record, AdaptersRecord) and tasks is not None and len(tasks) == 1:
        # The task's first adapter goes to the root, those of other profiles to the same folders as in the output.
        task = tasks[0]
        places: dict[Profile, str] = {}
        for profile in record.adapters[task]:
            places[profile] = f"{ADAPTERS[profile]}/{task}" if places else "."
        return _parcel_of_task(root, record, task, places)
    files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    card = partial(render_card, record, root)
    return Parcel(record, _published_files(files, root, record), card, _text(root / CARD_FILE), all_terms(record))


def tasks_of(out: Path) -> tuple[str, ...] | None:
    """Return the tasks whose adapters an output holds; None for a merged model or the folder of one adapter.

    Raises:
        OutputError: the folder wasn't made by hf-tsv.
    """
    root, own_profile = _output_of(out)
    if own_profile or is_one_adapter(root):
        return None
    record = read_record(root)
    return tuple(record.adapters) if isinstance(record, AdaptersRecord) else None


def _output_of(out: Path) -> tuple[Path, Profile | None]:
    """Return the output that a folder is or belongs to, and the profile if the folder is one of its adapters."""
    place = out.resolve()
    if (place / ADAPTER_CONFIG).is_file() and place.parent.name in PROFILES:
        return place.parent.parent, PROFILES[place.parent.name]
    return out, None


def _parcel_of_task(root: Path, record: AdaptersRecord, task: str, places: Mapping[Profile, str]) -> Parcel:
    """Select one task's adapters. `places`: the folder of each profile in the repository.

    Raises:
        OutputError: the record lists no such task.
    """
    if task not in record.adapters:
        raise OutputError(f"{root / RECORD_FILE}: lists no adapter of '{task}'. Make the output again")
    part = of_task(record, task)
    files = {name: root / name for name in (RECORD_FILE, RECIPE_FILE, LOCK_FILE)}
    for profile, place in places.items():
        folder = root / ADAPTERS[profile] / task
        prefix = "" if place == "." else f"{place}/"
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                files[prefix + path.relative_to(folder).as_posix()] = path
    by_task = {(task, profile): place for profile, place in places.items()}
    first_profile = next(iter(places))
    old_card = _text(root / ADAPTERS[first_profile] / task / CARD_FILE)
    card = partial(render_adapters, part, root, by_task)
    # The recipe published with one task's adapter names the models of all tasks.
    return Parcel(part, _published_files(files, root, part), card, old_card, all_terms(record))


def _published_files(files: Mapping[str, Path], root: Path, record: Record) -> dict[str, Path | bytes]:
    """Return the files as they are published: without hidden ones, and without paths of this machine."""
    shown: dict[str, Path | bytes] = {}
    for path, file in files.items():
        is_hidden = any(part.startswith(".") for part in path.split("/"))
        # The card is made at upload, because it keeps what people wrote into the one on the Hub.
        if path == CARD_FILE or is_hidden:
            continue
        shown[path] = file
        if file.suffix != ".json" or file.stat().st_size > CONFIG_MAX_BYTES:
            continue
        try:
            text = file.read_text("utf-8")
            config = published_config(text)
        except (ValueError, RecursionError):  # not JSON, so not a configuration that hf_tsv wrote
            continue
        if config != text:
            shown[path] = config.encode()
    # The record, recipe and lock name models too, and are published without this machine's paths.
    return shown | published(root, record)


def _text(path: Path) -> str:
    """Read a file's text; empty if it doesn't exist."""
    return path.read_text("utf-8") if path.is_file() else ""
