"""Checkpoints in folders and in memory."""

from hf_tsv.loaders._adapter import Adapter, is_adapter, open_adapter
from hf_tsv.loaders._adapter_changes import Place, Places
from hf_tsv.loaders._aligned import aligned
from hf_tsv.loaders._folder import open_checkpoint, weight_files
from hf_tsv.loaders._memory import MemoryCheckpoint
from hf_tsv.loaders._safetensors import TORCH_DTYPES, SafetensorsCheckpoint

__all__ = [
    "TORCH_DTYPES",
    "Adapter",
    "MemoryCheckpoint",
    "Place",
    "Places",
    "SafetensorsCheckpoint",
    "aligned",
    "is_adapter",
    "open_adapter",
    "open_checkpoint",
    "weight_files",
]
