"""Checkpoints in folders and in memory."""

from hf_tsv.loaders._aligned import aligned
from hf_tsv.loaders._folder import open_checkpoint, weight_files
from hf_tsv.loaders._memory import MemoryCheckpoint
from hf_tsv.loaders._safetensors import TORCH_DTYPES, SafetensorsCheckpoint

__all__ = ["TORCH_DTYPES", "MemoryCheckpoint", "SafetensorsCheckpoint", "aligned", "open_checkpoint", "weight_files"]
