"""rest.safetensors: what a fine-tune changed and PEFT can't hold.

A tensor stored whole lies under its own name; one stored as factors under its name with `/left` and `/right` behind,
whose product is added to the base's tensor. No parameter's name holds a slash.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hf_tsv.adapters._plan import REST_FILE
from hf_tsv.checkpoint import Checkpoint
from hf_tsv.loaders import SafetensorsCheckpoint


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

    def factors(self) -> tuple[Tensor, Tensor]:
        """left (m, k) and right (k, n), with the stack in front of both for stacked matrices.

        Raises:
            CheckpointError: the file can't be read.
        """
        return self._file.read(f"{self.name}/left"), self._file.read(f"{self.name}/right")

    def applied(self, base: Tensor | None = None) -> Tensor:
        """The fine-tune's tensor.

        Args:
            base: The base's tensor, in the dtype to add in; not needed for one stored whole.

        Raises:
            CheckpointError: the file can't be read.
        """
        if not self.is_factored:
            return self._file.read(self.name)
        if base is None:
            raise ValueError(f"{self.name} is stored as a change, expected the base's tensor")
        left, right = (factor.to(base.dtype) for factor in self.factors())
        return base + (left @ right).reshape(base.shape)


def read_sidecar(folder: Path) -> dict[str, RestTensor]:
    """The tensors beside an adapter, by the base tensor's name; none when there is no sidecar.

    Raises:
        CheckpointError: the file is broken.
    """
    path = folder / REST_FILE
    if not path.is_file():
        return {}
    file = SafetensorsCheckpoint([path], label=str(path))
    names = {name.rpartition("/")[0] or name: "/" in name for name in file.names()}
    return {name: RestTensor(name, factored, file) for name, factored in sorted(names.items())}
