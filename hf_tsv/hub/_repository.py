"""Which of a repository's files are its weights, which go along with them, and which are neither."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Literal

from hf_tsv.companions import OTHER_WEIGHTS, PICKLES, matches
from hf_tsv.errors import CheckpointError
from hf_tsv.loaders import REST_FILE
from hf_tsv.loaders._folder import STEMS

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
CARD = "README.md"
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
        return Weights("adapter", tuple(file for file in (ADAPTER_WEIGHTS, REST_FILE) if file in files))
    lone = [file for file in files if fnmatch(file, "*.safetensors") and "/" not in file]
    if len(lone) == 1 and lone[0] != ADAPTER_WEIGHTS:
        return Weights("model", (lone[0],))
    raise CheckpointError(f"{label}: {_why_none(files)}")


def _why_none(files: Collection[str]) -> str:
    def first(*patterns: str) -> str | None:
        return min((file for file in files if matches(patterns, [file])), default=None)

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
