"""Finding a repository's weights by its file names."""

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
        kind: `model` for a full model, `adapter` for an adapter that needs its base.
        files: The safetensors files with the tensors; empty until the index has been read.
        index: Name of the file that maps tensors to shards, None if there is no index.
        weight_map: The index's map from a tensor's name to its file.
    """

    kind: Literal["model", "adapter"]
    files: tuple[str, ...] = ()
    index: str | None = None
    weight_map: Mapping[str, str] = field(default_factory=dict)


def in_folder(files: Mapping[str, int], folder: str, repo_id: str) -> dict[str, int]:
    """The files in a folder of a repository, with paths relative to the folder, and their sizes.

    Raises:
        CheckpointError: there is no such folder; the message names the folders with weights.
    """
    if not folder:
        return dict(files)
    prefix = f"{folder}/"
    inside = {path.removeprefix(prefix): size for path, size in files.items() if path.startswith(prefix)}
    if not inside:
        known = _folders_with_weights(files)
        hint = f"; weights are in {some(known)}" if known else ""
        raise CheckpointError(f"{repo_id}: has no folder {folder!r}{hint}. Correct what follows the repository's name")
    return inside


def _folders_with_weights(files: Collection[str]) -> list[str]:
    return sorted({path.rpartition("/")[0] for path in files if path.endswith(".safetensors") and "/" in path})


def weights_of(files: Collection[str], label: str) -> Weights:
    """Find a repository's weights by its file names; a single file precedes an index, as in transformers.

    Raises:
        CheckpointError: there are no safetensors weights; the message says what there is instead.
    """
    for stem in STEMS:
        single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
        if single in files:
            return Weights("model", (single,))
        if index in files:
            return Weights("model", index=index)
    if {ADAPTER_WEIGHTS, ADAPTER_CONFIG} <= set(files):
        # The sidecar is this package's file for tensors that PEFT can't store in an adapter.
        parts = [file for file in (ADAPTER_WEIGHTS, SIDECAR_FILE) if file in files]
        return Weights("adapter", tuple(parts))
    # Many merges are published as one file with a name of its own; of two such files, either could be meant.
    lone = [file for file in files if fnmatch(file, "*.safetensors") and "/" not in file]
    if len(lone) == 1 and lone[0] != ADAPTER_WEIGHTS:
        return Weights("model", (lone[0],))
    folders = _folders_with_weights(files)
    if folders:
        raise CheckpointError(
            f"{label}: has weights only in folders ({some(folders)}). Append one of them to the repository's name"
        )
    raise CheckpointError(f"{label}: {_why_none(files)}")


def _why_none(files: Collection[str]) -> str:
    """A message with what a repository has instead of safetensors weights, and the way out."""

    def first(*patterns: str) -> str | None:
        """The alphabetically first file that matches, so that messages don't depend on the order of a listing."""
        return min((file for file in files if matches(patterns, [file])), default=None)

    if ADAPTER_CONFIG in files:
        weights = first("adapter_model.*") or "no weights"
        way_out = "Save it again with PEFT, which writes safetensors"
        return f"an adapter with {weights}, expected {ADAPTER_WEIGHTS}. {way_out}"
    if "model_index.json" in files:  # written by diffusers
        return "a diffusers pipeline, not a single model. Save the component you want (its unet/ or transformer/) alone"
    pickle = first(*PICKLES)
    if pickle:
        return f"has only pickled weights ({pickle}), which can run code when they are read. {CONVERT}"
    gguf = first("*.gguf")
    if gguf:
        return f"has only GGUF weights ({gguf}), expected safetensors. Use the model they were quantised from"
    other = first(*OTHER_WEIGHTS)
    if other:
        return f"has only weights of another framework ({other}), expected model.safetensors. {CONVERT}"
    return "contains no weights (model.safetensors or model.safetensors.index.json). Check the id and the revision"
