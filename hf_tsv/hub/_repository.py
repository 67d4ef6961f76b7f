"""Which of a repository's files are its weights, which go along with them, and which are neither."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Literal

from hf_tsv.errors import CheckpointError
from hf_tsv.loaders._folder import STEMS

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
CARD = "README.md"
SIDE_FILE_MAX_BYTES = 100_000_000  # above every tokenizer, below every weight file that matters

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
OTHER_WEIGHTS = (
    *("*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.gguf", "*.ggml", "*.ot", "*.tflite", "*.keras", "*.pb"),
    *("*.npz", "*.npy", "*.mlmodel", "*.pdparams", "*.nemo", "*.mar", "*.tar", "*.gz", "*.zip"),
)
OTHER_FOLDERS = (
    *("onnx", "openvino", "coreml", "original", "runs", "logs", "checkpoint-*"),
    *("adapters*", "masks", "assets", "task_parts"),  # of an earlier output of this package
)
PICTURES = ("*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp", "*.mp4", "*.wav", "*.mp3", "*.pdf")
ABOUT_THE_SOURCE = (
    *(CARD, ADAPTER_CONFIG, "*.index.json", "trainer_state.json", "*_results.json"),
    *("hf_tsv.json", "recipe.yaml", "recipe.lock.yaml"),
)
MODULE_FOLDERS = "[0-9]*_*"  # 1_Pooling, 2_Dense: the modules of a sentence-transformers model

CONVERT = (
    "Convert them: load the model with transformers and call save_pretrained, which writes safetensors; or ask"
    " https://huggingface.co/spaces/safetensors/convert for a pull request and name it as the revision (@refs/pr/1)"
)


@dataclass(frozen=True)
class Weights:
    """The weight files of a repository.

    Attributes:
        kind: A full model, or an adapter that needs its base.
        files: The safetensors files that hold the tensors; empty until the index has been read.
        index: The file that says which shard holds which tensor, None when there is one file.
        weight_map: What it says: tensor to file.
    """

    kind: Literal["model", "adapter"]
    files: tuple[str, ...] = ()
    index: str | None = None
    weight_map: Mapping[str, str] = field(default_factory=dict)


def weights_of(files: Collection[str], label: str) -> Weights:
    """What a repository's weights are, by its file names; a single file goes before an index, as in transformers.

    Raises:
        CheckpointError: there are none in safetensors; says what there is instead.
    """
    for stem in STEMS:
        single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
        if single in files:
            return Weights("model", (single,))
        if index in files:
            return Weights("model", index=index)
    if {ADAPTER_WEIGHTS, ADAPTER_CONFIG} <= set(files):
        return Weights("adapter", (ADAPTER_WEIGHTS,))
    lone = [file for file in files if fnmatch(file, "*.safetensors") and "/" not in file]
    if len(lone) == 1 and lone[0] != ADAPTER_WEIGHTS:
        return Weights("model", (lone[0],))
    raise CheckpointError(f"{label}: {_why_none(files)}")


def side_files(files: Mapping[str, int]) -> tuple[str, ...]:
    """What goes along with the weights: configuration, tokenizer, processor, templates, modules, licence.

    Not the source's card and logs, not pictures, not weights in any format, not what is larger than 100 MB. The weights
    of a numbered module folder (`2_Dense/model.safetensors`) do go along: the model doesn't load without them.
    """
    return tuple(sorted(file for file, size in files.items() if size <= SIDE_FILE_MAX_BYTES and _goes_along(file)))


def _goes_along(file: str) -> bool:
    *folders, name = PurePosixPath(file).parts
    if any(part.startswith(".") for part in (*folders, name)) or _any_match(OTHER_FOLDERS, folders):
        return False
    if name.endswith(".safetensors"):
        return len(folders) == 1 and fnmatch(folders[0], MODULE_FOLDERS)
    return not _any_match((*PICKLES, *OTHER_WEIGHTS, *PICTURES, *ABOUT_THE_SOURCE), [name])


def _any_match(patterns: Collection[str], names: Collection[str]) -> bool:
    return any(fnmatch(name, pattern) for name in names for pattern in patterns)


def _why_none(files: Collection[str]) -> str:
    def first(*patterns: str) -> str | None:
        return min((file for file in files if _any_match(patterns, [file])), default=None)

    if ADAPTER_CONFIG in files:
        return f"an adapter with {first('adapter_model.*') or 'no weights'}, expected {ADAPTER_WEIGHTS}"
    if "model_index.json" in files:
        return "a diffusers pipeline, expected one model. Save the component you want (its unet/ or transformer/) alone"
    if pickle := first(*PICKLES):
        return f"only pickled weights ({pickle}), which can run code when they are read. {CONVERT}"
    if gguf := first("*.gguf"):
        return f"GGUF weights ({gguf}), expected safetensors. Use the model it was quantised from"
    if other := first(*OTHER_WEIGHTS):
        return f"weights of another framework ({other}), expected model.safetensors. {CONVERT}"
    return "no weights in it, expected model.safetensors or model.safetensors.index.json. Check the id and the revision"
