"""The files beside the weights: configuration, tokenizer, processor, pooling, chat template, licence."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hf_tsv.writers import full_disk_told, write_text

LARGEST_BYTES = 100 * 2**20  # a larger file is no companion
WEIGHTS = (
    *("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl"),
    *("*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.gguf", "*.ggml", "*.npz", "*.tflite", "*.ot", "*.mlmodel"),
)
# What an earlier merge or the Hub left there describes other weights than the new ones.
OF_OTHER_WEIGHTS = ("README.md", "hf_tsv.json", "recipe.yaml", "recipe.lock.yaml", "mergekit_config.yml", "*.pyc")
FOLDERS_LEFT_OUT = (
    "adapters*",
    "masks",
    "assets",
    "task_parts",
    "onnx",
    "openvino",
    "runs",
    "checkpoint-*",
    "__pycache__",
)
TOKENIZER = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken"),
    *("spiece*", "chat_template.*", "sentencepiece*", "normalizer.json"),
)


def companions(folder: Path) -> list[Path]:
    """Paths, relative to the folder, of what a model needs beside its weights. Sorted."""
    return sorted(path.relative_to(folder) for path in _walk(folder) if _belongs(path, folder))


def copy_companions(base: Path, out: Path, *, tokenizer: Path, dtype: str | None, template: str | None) -> None:
    """Copy what belongs beside the weights.

    Args:
        base: The base model's folder.
        out: Where the merged weights lie.
        tokenizer: Folder whose tokenizer goes along; the base's or another's.
        dtype: The dtype that all float weights now have, written into the configuration; None leaves it.
        template: Jinja text of a chat template that replaces the tokenizer's.
    """
    for relative in companions(base):
        if tokenizer == base or not _is_tokenizer(relative):
            _copy(base / relative, out / relative)
    for relative in companions(tokenizer):
        if tokenizer != base and _is_tokenizer(relative):
            _copy(tokenizer / relative, out / relative)
    if dtype and (out / "config.json").is_file():
        _declare_dtype(out / "config.json", dtype)
    if template:
        write_text(out / "chat_template.jinja", template)


def most_common_template(folders: Sequence[Path]) -> str | None:
    """The chat template that most of these models have, the first of them among equals; None when none has one."""
    found = Counter(template for folder in folders if (template := _template(folder)))
    return max(found, key=lambda template: found[template], default=None)


def _template(folder: Path) -> str | None:
    beside, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if beside.is_file():
        return beside.read_text("utf-8")
    template = json.loads(config.read_text("utf-8")).get("chat_template") if config.is_file() else None
    return template if isinstance(template, str) else None


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if not _matches(path.name, FOLDERS_LEFT_OUT):
                yield from _walk(path)
        elif path.is_file():
            yield path


def _belongs(path: Path, folder: Path) -> bool:
    other = path.parent == folder and _matches(path.name, OF_OTHER_WEIGHTS)
    return not other and not _matches(path.name, WEIGHTS) and path.stat().st_size <= LARGEST_BYTES


def _is_tokenizer(relative: Path) -> bool:
    return relative.parent == Path() and _matches(relative.name, TOKENIZER)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _copy(source: Path, target: Path) -> None:
    with full_disk_told(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _declare_dtype(config: Path, dtype: str) -> None:
    """transformers loads in the dtype that config.json names; nested configurations name it too."""

    def changed(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            k: dtype if k in ("dtype", "torch_dtype") and isinstance(v, str) else changed(v) for k, v in value.items()
        }

    write_text(config, json.dumps(changed(json.loads(config.read_text("utf-8"))), indent=2, ensure_ascii=False) + "\n")
