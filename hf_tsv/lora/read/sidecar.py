"""The sidecar: a file for the changes of a fine-tune that PEFT can't hold.

The key of a tensor stored whole is its name. A tensor stored as factors has two keys, its name with `/left` and with
`/right` appended; their product is added to the base's tensor. No parameter's name contains a slash.
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
        name: The name of the base checkpoint's tensor.
        is_factored: True if the factors of its change are stored, False if its new value is.
    """

    name: str
    is_factored: bool
    _file: Checkpoint

    @property
    def keys(self) -> tuple[str, ...]:
        """The tensor's keys in the file."""
        return (self.name + LEFT, self.name + RIGHT) if self.is_factored else (self.name,)

    @property
    def nbytes(self) -> int:
        return sum(self._file.info(key).nbytes for key in self.keys)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the whole file."""
        return self._file.fingerprint()

    def factors(self) -> tuple[Tensor, Tensor]:
        """Read left (m, k) and right (k, n); for stacked matrices both have a leading stack dimension.

        Raises:
            CheckpointError: the file can't be read.
        """
        left, right = map(self._file.read, self.keys)
        return left, right

    def low_rank(self, row: int) -> LowRank | None:
        """Return the factors of the change of a matrix, or of one in a stack; None for a tensor stored whole."""
        if not self.is_factored:
            return None
        left, right = self.factors()
        if left.ndim > 2:
            left, right = left[row], right[row]
        return LowRank(left, right, 1.0)

    def applied(self, base: Tensor | None = None, rows: Rows = None) -> Tensor:
        """Return the fine-tune's tensor, or some rows of it.

        Args:
            base: The base's tensor, or those rows, in the dtype to add in; not needed for a tensor stored whole.
            rows: First and past-the-last row; None for all.

        Raises:
            CheckpointError: the file can't be read.
        """
        if not self.is_factored:
            return self._file.read(self.name, rows)
        if base is None:
            raise ValueError(f"{self.name} is stored as a change, expected the base's tensor")
        return base + self._product(base.dtype, rows).reshape(base.shape)

    def delta(self, base: Tensor, dtype: torch.dtype, rows: Rows = None) -> Tensor:
        """Return the change of the base's tensor, or of some rows of it, computed in dtype."""
        if self.is_factored:
            return self._product(dtype, rows).reshape(base.shape)
        return self.applied(rows=rows).to(dtype).sub_(base)

    def _product(self, dtype: torch.dtype, rows: Rows) -> Tensor:
        left, right = (factor.to(dtype) for factor in self.factors())
        if rows:
            left = left[slice(*rows)]
            if right.ndim > 2:  # the rows of a stack are its matrices
                right = right[slice(*rows)]
        return left @ right


def read_sidecar(folder: Path) -> dict[str, RestTensor]:
    """Read the sidecar's tensors, by the base tensor's name; empty if the folder has no sidecar.

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
