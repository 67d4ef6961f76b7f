"""The files beside the weights: configuration, tokenizer, processor, pooling, chat template, licence."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_tsv.checkpoints.model_files import GENERATION_CONFIG, LICENCES, OTHER_FOLDERS, TOKENIZER, matches, side_files
from hf_tsv.errors import CheckpointError
from hf_tsv.files.disk import full_disk_told, write_text
from hf_tsv.files.names import MODEL_CONFIG
from hf_tsv.hub import Hub
from hf_tsv.sources.models import Source
from hf_tsv.vocabulary.tokenizer import has_tokenizer


@dataclass(frozen=True)
class Companions:
    """The side files of one model.

    Attributes:
        folder: The folder of the files.
        files: Paths of the files, relative to the folder.
    """

    folder: Path
    files: Sequence[str]

    @classmethod
    def of(cls, folder: Path) -> "Companions":
        """Return the side files of a model in a folder that holds only that model."""
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _walk(folder)}
        return cls(folder, side_files(sizes))


def copy_config(source: Path, folder: Path) -> None:
    """Copy a model's configuration into another folder, if it has one."""
    if (source / MODEL_CONFIG).is_file():
        _copy(source / MODEL_CONFIG, folder / MODEL_CONFIG)


def copy_companions(
    base: Companions,
    out: Path,
    *,
    tokenizer: Companions,
    dtype: str | None,
    template: str | None,
    rows: Mapping[int, int] | None = None,
) -> None:
    """Copy the files that belong beside the weights.

    Args:
        base: The base model's side files.
        out: The folder of the merged weights.
        tokenizer: The side files of the model whose tokenizer is copied, with the ids of its start and end tokens. If
            that model has no tokenizer, the base's is copied.
        dtype: The dtype that all float weights now have, written into the configuration; None leaves it unchanged.
        template: Jinja text of a chat template that replaces the tokenizer's.
        rows: The vocabulary's new size, by the size that the configuration states.
    """
    is_other = tokenizer != base
    other_files: list[str] = []
    if is_other:
        other_files = [file for file in tokenizer.files if _is_tokenizer(file) or file == GENERATION_CONFIG]
    # A model without a tokenizer has the base's tokens in its rows, so the base's tokenizer is copied.
    is_replaced = is_other and has_tokenizer(tokenizer.folder)
    for file in base.files:
        if file not in other_files and not (is_replaced and _is_tokenizer(file)):
            _copy(base.folder / file, out / file)
    for file in other_files:
        _copy(tokenizer.folder / file, out / file)
    config, other_config = out / MODEL_CONFIG, tokenizer.folder / MODEL_CONFIG
    if config.is_file():
        ids_from = other_config if is_other and other_config.is_file() else None
        _rewrite(config, ids_from, dtype, rows or {})
    if template:
        write_text(out / "chat_template.jinja", template)


def copy_licences(sources: Mapping[str, Path], out: Path) -> None:
    """Copy the licences and notices of models that `out` doesn't contain already.

    Args:
        sources: The folder of each model, by the model's name.
        out: The output folder. Each model's files go into its subfolder `licenses/NAME`.
    """
    for name, folder in sources.items():
        for file in sorted(folder.iterdir()):
            if not matches(LICENCES, [file.name.lower()]) or not file.is_file():
                continue
            in_out = out / file.name  # the base's was copied with its side files
            if in_out.is_file() and in_out.read_bytes() == file.read_bytes():
                continue
            folder_name = re.sub(r"[^\w.-]+", "__", name).strip("_.")  # a name may contain slashes
            _copy(file, out / "licenses" / folder_name / file.name)


def most_common_template(folders: Sequence[Path]) -> str | None:
    """Return the chat template that most of these models have, the first one of a tie; None if no model has one."""
    counts: Counter[str] = Counter()
    for folder in folders:
        file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
        template: object = None
        if file.is_file():
            template = file.read_text("utf-8")
        elif config.is_file():
            # In older models it is a string in the tokenizer's configuration.
            data = _read_json(config)
            template = data.get("chat_template") if isinstance(data, dict) else None
        if template and isinstance(template, str):
            counts[template] += 1
    return max(counts, key=lambda template: counts[template], default=None)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: can't be read as JSON. Download it again") from error


def _walk(folder: Path) -> Iterator[Path]:
    """Yield files, but skip folders that are never copied: a training run may have left thousands of files there."""
    for path in folder.iterdir():
        if path.is_dir() and not path.name.startswith(".") and not matches(OTHER_FOLDERS, [path.name]):
            yield from _walk(path)
        elif path.is_file():
            yield path


def _is_tokenizer(file: str) -> bool:
    return matches(TOKENIZER, [file])


def _copy(source: Path, target: Path) -> None:
    with full_disk_told(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _rewrite(config: Path, other: Path | None, dtype: str | None, rows: Mapping[int, int]) -> None:
    """Adapt a copied configuration to the merged weights.

    Args:
        config: The copy of the base's configuration.
        other: The configuration to take token ids from: that of the tokenizer's model, or None if that is the base.
        dtype: As in `copy_companions`.
        rows: As in `copy_companions`.
    """
    original = _read_json(config)
    try:
        adapted = _with_ids_of(original, _read_json(other)) if other else original
        adapted = _declared(adapted, dtype, rows)
        # The file stays the same, byte for byte, if nothing changes.
        if adapted != original:
            write_text(config, json.dumps(adapted, indent=2, ensure_ascii=False) + "\n")
    except RecursionError:
        raise CheckpointError(f"the base's {config.name} is nested too deeply to be read. Download it again") from None


def _declared(config: Any, dtype: str | None, rows: Mapping[int, int]) -> Any:
    """Return a configuration with the new dtype and vocabulary size, also in configurations nested in it."""
    if not isinstance(config, dict):
        return config
    declared: dict[str, Any] = {}
    for key, value in config.items():
        if dtype and key in ("dtype", "torch_dtype") and isinstance(value, str):
            declared[key] = dtype
        elif "vocab_size" in key and isinstance(value, int):
            declared[key] = rows.get(value, value)
        else:
            declared[key] = _declared(value, dtype, rows)
    return declared


def _with_ids_of(config: Any, other: Any) -> Any:
    """Return a configuration with another one's token ids, such as `eos_token_id`, in place of its own."""
    if not (isinstance(config, dict) and isinstance(other, dict)):
        return config
    own: dict[str, Any] = {}
    for key, value in config.items():
        if not key.endswith("_token_id"):
            own[key] = _with_ids_of(value, other.get(key))
    ids = {key: value for key, value in other.items() if key.endswith("_token_id")}
    return own | ids


def companions(source: Source, hub: Hub) -> Companions:
    """Return the side files of a fetched source.

    Raises:
        ValueError: the source is not fetched.
    """
    if source.folder is None:
        raise ValueError(f"{source.ref} is not fetched")
    if source.pin is None:
        return Companions.of(source.folder)
    # The Hub's cache may contain files that other programs downloaded, so the repository's list decides.
    return Companions(source.folder, hub.side_files(source.pin))
