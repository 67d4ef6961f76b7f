"""The sidecar: what a fine-tune changed and PEFT can't hold.

A tensor stored whole lies under its own name; one stored as factors under its name with `/left` and `/right` behind it,
whose product is added to the base's tensor. No parameter's name holds a slash.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hf_tsv.checkpoints.protocol import Checkpoint, LowRank
from hf_tsv.checkpoints.safetensors import SafetensorsCheckpoint
from hf_tsv.lora.format import LEFT, RIGHT, SIDECAR_FILE

Rows = tuple[int, int] | None


@dataclass(frozen=True)
class RestTensor:
    """One tensor of a sidecar.

    Attributes:
        name: Of the base checkpoint's tensor.
        is_factored: Whether factors of its change are stored, or its new value.
    """

    name: str
    is_factored: bool
    _file: Checkpoint

    @property
    def keys(self) -> tuple[str, ...]:
        """Its keys in the file."""
        return (self.name + LEFT, self.name + RIGHT) if self.is_factored else (self.name,)

    @property
    def nbytes(self) -> int:
        return sum(self._file.info(key).nbytes for key in self.keys)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the whole file."""
        return self._file.fingerprint()

    def factors(self) -> tuple[Tensor, Tensor]:
        """left (m, k) and right (k, n), with the stack in front of both for stacked matrices.

        Raises:
            CheckpointError: the file can't be read.
        """
        left, right = map(self._file.read, self.keys)
        return left, right

    def low_rank(self, row: int) -> LowRank | None:
        """The change of the matrix, or of one of a stack, as factors; None for one stored whole."""
        if not self.is_factored:
            return None
        left, right = self.factors()
        if left.ndim > 2:
            left, right = left[row], right[row]
        return LowRank(left, right, 1.0)

    def applied(self, base: Tensor | None = None, rows: Rows = None) -> Tensor:
        """The fine-tune's tensor, or some rows of it.

        Args:
            base: The base's tensor, or those rows, in the dtype to add in; not needed for one stored whole.
            rows: First and past-the-last row.

        Raises:
            CheckpointError: the file can't be read.
        """
        if not self.is_factored:
            return self._file.read(self.name, rows)
        if base is None:
            raise ValueError(f"{self.name} is stored as a change, expected the base's tensor")
        return base + self._product(base.dtype, rows).reshape(base.shape)

    def delta(self, base: Tensor, dtype: torch.dtype, rows: Rows = None) -> Tensor:
        """The change of the base's tensor, or of those rows of it, computed in dtype."""
        if self.is_factored:
            return self._product(dtype, rows).reshape(base.shape)
        return self.applied(rows=rows).to(dtype).sub_(base)

    def _product(self, dtype: torch.dtype, rows: Rows) -> Tensor:
        left, right = (factor.to(dtype) for factor in self.factors())
        if rows:
            left = left[slice(*rows)]
            if right.ndim > 2:  # rows of a stack are its matrices
                right = right[slice(*rows)]
        return left @ right


def read_sidecar(folder: Path) -> dict[str, RestTensor]:
    """The tensors beside an adapter, by the base tensor's name; empty if the folder has no sidecar.

    Raises:
        CheckpointError: the file is broken.
    """
    path = folder / SIDECAR_FILE
    if not path.is_file():
        return {}
    file = SafetensorsCheckpoint([path], label=str(path))
    is_factored = {}
    for key in file.names():
        name = key.removesuffix(LEFT).removesuffix(RIGHT)
        is_factored[name] = name != key
    return {name: RestTensor(name, is_factored[name], file) for name in sorted(is_factored)}
