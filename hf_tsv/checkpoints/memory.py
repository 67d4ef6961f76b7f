"""A state dict as a checkpoint."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hf_tsv.checkpoints.dtypes import BY_TORCH
from hf_tsv.checkpoints.protocol import TensorInfo
from hf_tsv.errors import CheckpointError


class MemoryCheckpoint:
    """A state dict as a checkpoint. Each tensor keeps its own name, also when several share memory.

    Raises:
        CheckpointError: a value is not a dense tensor of a dtype that safetensors knows.
    """

    def __init__(self, state_dict: Mapping[str, Tensor], *, label: str) -> None:
        self.label = label
        self._tensors = dict(state_dict)
        for name, value in self._tensors.items():
            if isinstance(value, Tensor) and value.layout is torch.strided and value.dtype in BY_TORCH:
                continue
            raise CheckpointError(f"{label}: {str(name)!r} is not a dense tensor of a dtype that safetensors knows")

    def names(self) -> Sequence[str]:
        return tuple(self._tensors)

    def info(self, name: str) -> TensorInfo:
        tensor = self._tensors[name]
        return TensorInfo(name, tuple(tensor.shape), BY_TORCH[tensor.dtype].name)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        tensor = self._tensors[name].detach()
        if rows:
            tensor = tensor[slice(*rows)]
        return tensor.to("cpu", copy=True).contiguous()  # a copy: the caller owns the result

    def will_need(self, name: str) -> None:
        """Do nothing: the tensor is already in memory."""

    def fingerprint(self) -> str:
        return f"memory:{id(self)}"
