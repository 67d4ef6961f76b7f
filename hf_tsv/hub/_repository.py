"""Which of a repository's files are its weights, which go along with them, and which are neither."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Literal

from hf_tsv.checkpoints.folder import STEMS
from hf_tsv.checkpoints.model_files import OTHER_WEIGHTS, PICKLES, matches
from hf_tsv.errors import CheckpointError, some
from hf_tsv.lora.format import ADAPTER_CONFIG, ADAPTER_WEIGHTS, SIDECAR_FILE

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


def in_folder(files: Mapping[str, int], folder: str, repo_id: str) -> dict[str, int]:
    """The files in a folder of a repository and their sizes, as seen from there.

    Raises:
        CheckpointError: it has no such folder; names those with weights.
    """
    if not folder:
        return dict(files)
    found = {path.removeprefix(f"{folder}/"): size for path, size in files.items() if path.startswith(f"{folder}/")}
    if not found:
        known = _folders_with_weights(files)
        expected = f", expected one of {some(known)}" if known else ""
        raise CheckpointError(f"{repo_id}: no folder {folder!r} in it{expected}. Correct what follows the name")
    return found


def _folders_with_weights(files: Collection[str]) -> list[str]:
    return sorted({path.rpartition("/")[0] for path in files if path.endswith(".safetensors") and "/" in path})


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
        return Weights("adapter", tuple(file for file in (ADAPTER_WEIGHTS, SIDECAR_FILE) if file in files))
    lone = [file for file in files if fnmatch(file, "*.safetensors") and "/" not in file]
    if len(lone) == 1 and lone[0] != ADAPTER_WEIGHTS:
        return Weights("model", (lone[0],))
    if folders := _folders_with_weights(files):
        raise CheckpointError(
            f"{label}: weights in folders of it only ({some(folders)}), expected one model. Put its folder behind the"
            " repository's name"
        )
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
