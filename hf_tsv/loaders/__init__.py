"""Checkpoints in folders and in memory."""

from hf_tsv.loaders._adapter import Adapter, is_adapter, is_model, open_adapter
from hf_tsv.loaders._adapter_changes import Place, Places
from hf_tsv.loaders._aligned import aligned
from hf_tsv.loaders._folder import open_checkpoint, weight_files
from hf_tsv.loaders._memory import NAMES_OF_DTYPES, MemoryCheckpoint
from hf_tsv.loaders._safetensors import TORCH_DTYPES, Located, SafetensorsCheckpoint, read_header
from hf_tsv.loaders._sidecar import REST_FILE, RestTensor, read_sidecar

__all__ = [
    "NAMES_OF_DTYPES",
    "REST_FILE",
    "TORCH_DTYPES",
    "Adapter",
    "Located",
    "MemoryCheckpoint",
    "Place",
    "Places",
    "RestTensor",
    "SafetensorsCheckpoint",
    "aligned",
    "is_adapter",
    "is_model",
    "open_adapter",
    "open_checkpoint",
    "read_header",
    "read_sidecar",
    "weight_files",
]
