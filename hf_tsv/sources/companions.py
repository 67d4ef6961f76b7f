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
from hf_tsv.vocabulary.tokenizer import has_tokenizer


@dataclass(frozen=True)
class Companions:
    """The side files of one model.

    Attributes:
        folder: Where they lie.
        files: Their paths relative to it.
    """

    folder: Path
    files: Sequence[str]

    @classmethod
    def of(cls, folder: Path) -> "Companions":
        """Those of a model in a folder of one's own, which holds nothing else."""
        found = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _walk(folder)}
        return cls(folder, side_files(found))


def copy_config(source: Path, folder: Path) -> None:
    """A model's configuration into another folder; nothing where it has none."""
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
    """Copy what belongs beside the weights.

    Args:
        base: The base model's.
        out: Where the merged weights lie.
        tokenizer: Whose tokenizer goes along, with what texts start and end with; the base's or another model's. The
            base's stays where that model has none.
        dtype: The dtype that all float weights now have, written into the configuration; None leaves it.
        template: Jinja text of a chat template that replaces the tokenizer's.
        rows: What the configuration calls the vocabulary's size, and what it is now.
    """
    theirs = [] if tokenizer == base else [f for f in tokenizer.files if _is_tokenizer(f) or f == GENERATION_CONFIG]
    replaced = tokenizer != base and has_tokenizer(tokenizer.folder)  # without one its rows are the base's tokens
    for file in base.files:
        if file not in theirs and not (replaced and _is_tokenizer(file)):
            _copy(base.folder / file, out / file)
    for file in theirs:
        _copy(tokenizer.folder / file, out / file)
    config, other = out / MODEL_CONFIG, tokenizer.folder / MODEL_CONFIG
    if config.is_file():
        _rewrite(config, other if tokenizer != base and other.is_file() else None, dtype, rows or {})
    if template:
        write_text(out / "chat_template.jinja", template)


def copy_licences(sources: Mapping[str, Path], out: Path) -> None:
    """Copy the licences and notices of models, by name, that aren't the ones lying in `out`."""
    for name, folder in sources.items():
        for file in sorted(folder.iterdir()):
            if matches(LICENCES, [file.name.lower()]) and file.is_file() and not _same(file, out / file.name):
                _copy(file, out / "licenses" / re.sub(r"[^\w.-]+", "__", name).strip("_.") / file.name)


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def most_common_template(folders: Sequence[Path]) -> str | None:
    """The chat template that most of these models have, the first of them among equals; None when none has one."""
    found = Counter(template for folder in folders if (template := _template(folder)))
    return max(found, key=lambda template: found[template], default=None)


def _template(folder: Path) -> str | None:
    beside, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if beside.is_file():
        return beside.read_text("utf-8")
    data = _read_json(config) if config.is_file() else None
    template = data.get("chat_template") if isinstance(data, dict) else None
    return template if isinstance(template, str) else None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is no JSON that can be read. Get it again") from error


def _walk(folder: Path) -> Iterator[Path]:
    """Files, without looking into folders that are never wanted: a training run may have left thousands of them."""
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
    was = _read_json(config)
    try:
        declared = _declared(_with_ids_of(was, _read_json(other)) if other else was, dtype, rows)
        if declared != was:
            write_text(config, json.dumps(declared, indent=2, ensure_ascii=False) + "\n")
    except RecursionError:
        raise CheckpointError(f"{config.name} of the base: is nested too deeply to be read. Get it again") from None


def _declared(config: Any, dtype: str | None, rows: Mapping[int, int]) -> Any:
    """With the dtype in which transformers is to load, and the vocabulary's new size; nested configurations too."""
    if not isinstance(config, dict):
        return config
    named = {k: _declared(v, dtype, rows) for k, v in config.items()}
    named |= {k: dtype for k in ("dtype", "torch_dtype") if dtype and isinstance(config.get(k), str)}
    return named | {k: rows.get(v, v) for k, v in config.items() if "vocab_size" in k and isinstance(v, int)}


def _with_ids_of(config: Any, other: Any) -> Any:
    """With the ids of tokens that another configuration names, such as `eos_token_id`, and no others."""
    if not (isinstance(config, dict) and isinstance(other, dict)):
        return config
    own = {k: _with_ids_of(v, other.get(k)) for k, v in config.items() if not k.endswith("_token_id")}
    return own | {k: v for k, v in other.items() if k.endswith("_token_id")}
