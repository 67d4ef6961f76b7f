"""Refuse quantized checkpoints: their weights are codes, not numbers, and can't be merged."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from hf_tsv.checkpoints.protocol import TensorInfo
from hf_tsv.errors import CheckpointError

WAY_OUT = (
    "Name the model that it was quantized from; or load it with transformers, call dequantize() on it, and give the"
    " folder that save_pretrained writes"
)
# Names of tensors that GPTQ, AWQ, bitsandbytes, HQQ, compressed-tensors, FP8 and MXFP4 store beside their codes.
_BESIDE_CODES = re.compile(
    r"(\.(qweight|qzeros|g_idx|absmax|quant_map|nested_absmax|SCB|W_q|weight_packed)|_blocks"
    r"|\.weight\.quant_state\..*|[._](weight_scale|weight_scale_inv|scales|input_scale))$"
)


def check_not_quantized(folder: Path, label: str, tensors: Iterable[TensorInfo]) -> None:
    """Refuse a quantized checkpoint.

    Raises:
        CheckpointError: the configuration says that the checkpoint is quantized, or its tensors are codes with scales.
    """
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        config = {}  # a checkpoint can be merged without a configuration
    quantization = config.get("quantization_config") if isinstance(config, dict) else None
    if isinstance(quantization, dict) and quantization:
        how = quantization.get("quant_method") or quantization.get("quantization_method")
        how = how or "a method that it doesn't name"
        raise CheckpointError(
            f"{label}: its config.json says that it is quantized ({str(how)[:40]!r}), expected floats. {WAY_OUT}"
        )
    # A configuration may be missing or silent. Integers with more than one axis are common, as masks and as token
    # positions; beside tensors with names of scales they are codes.
    infos = list(tensors)
    codes = next((info for info in infos if len(info.shape) > 1 and not info.is_float), None)
    scales = next((info.name for info in infos if _BESIDE_CODES.search(info.name)), None)
    if codes and scales:
        raise CheckpointError(
            f"{label}: holds quantized weights ({codes.name} is {codes.dtype}, beside {scales}), expected floats."
            f" {WAY_OUT}"
        )
