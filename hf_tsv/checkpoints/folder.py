"""Open the checkpoint in a folder, however its files are named."""

import json
from pathlib import Path

from hf_tsv.checkpoints.model_files import PICKLES
from hf_tsv.checkpoints.quantized import check_not_quantized
from hf_tsv.checkpoints.safetensors import SafetensorsCheckpoint
from hf_tsv.errors import CheckpointError

STEMS = ("model", "diffusion_pytorch_model", "pytorch_model")


def open_checkpoint(folder: Path, *, label: str | None = None) -> SafetensorsCheckpoint:
    """Open the checkpoint in a folder: an index with its shards, or one safetensors file.

    Raises:
        CheckpointError: there is no checkpoint, or it is pickled, quantized or broken.
    """
    label = label or str(folder)
    files, index = weight_files(folder, label)
    checkpoint = SafetensorsCheckpoint(files, label=label, index=index)
    infos = [checkpoint.info(name) for name in checkpoint.names()]
    check_not_quantized(folder, label, infos)
    return checkpoint


def weight_files(folder: Path, label: str) -> tuple[list[Path], dict[str, str]]:
    """Find the weight files of a folder, and the index's map from tensor to file (empty without an index).

    If a folder holds both a single file and an index, the single file is used, as in transformers.

    Raises:
        CheckpointError: there are no weight files, they are pickled, or the index can't be used.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{label}: no such folder. Give a folder, or a Hub id such as org/name")
    for stem in STEMS:
        single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if single.is_file():
            return [single], {}
        if index.is_file():
            weight_map = _weight_map(index)
            shards = sorted(set(weight_map.values()))
            return [folder / shard for shard in shards], weight_map
    # A single file with any other name can only be the model, unless it is an adapter.
    lone = sorted(folder.glob("*.safetensors"))
    if len(lone) == 1 and not lone[0].name.startswith("adapter"):
        return lone, {}
    raise CheckpointError(f"{label}: {_why_none(folder)}")


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        entries = dict(weight_map)
    # A stranger's file may hold anything: invalid JSON, another structure, very deep nesting.
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{index}: can't be read as an index, which has a 'weight_map'. Download it again"
        ) from error
    for name, file in entries.items():
        if not isinstance(file, str) or not file.endswith(".safetensors"):
            raise CheckpointError(f"{index}: tensor {name!r} lies in {file!r}, expected a safetensors file")
        if Path(file).name != file:  # a stranger's index must not make us read files elsewhere
            raise CheckpointError(f"{index}: {file!r} leaves its folder. Weights are read from beside the index only")
    return entries


def _why_none(folder: Path) -> str:
    """Return what a folder holds instead of readable weights, and the way out."""
    if (folder / "adapter_model.safetensors").is_file():
        return "holds an adapter, but a full checkpoint is needed here"
    pickles: list[str] = []
    for pattern in PICKLES:
        pickles += [path.name for path in folder.glob(pattern)]
    if pickles:
        return (
            f"only pickled weights ({min(pickles)}), which can run code when they are read. Convert them: load the"
            " model with transformers and call save_pretrained, which writes safetensors"
        )
    if any(folder.glob("*.gguf")):
        return "GGUF weights, expected safetensors. Load the model with transformers (gguf_file=...) and save it"
    shards = [path.name for path in folder.glob("*.safetensors") if not path.name.startswith("adapter")]
    if shards:
        return (
            f"{len(shards)} safetensors files ({min(shards)}, ...) without an index. Download"
            " model.safetensors.index.json from where they come from, and put it beside them"
        )
    return "no safetensors weights in it, expected model.safetensors or model.safetensors.index.json"
