"""Tensors of checkpoints, and how far they are from others."""

from pathlib import Path

import torch
from torch import Tensor

from hf_tsv.checkpoints.folder import open_checkpoint


def read_all(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint."""
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.read(name) for name in checkpoint.names()}


def deltas_of(folder: Path, name: str, tasks: int = 3) -> Tensor:
    """One tensor's deltas in a zoo of `models.zoo`, (T, *shape) float64."""
    base = open_checkpoint(folder / "base").read(name).double()
    return torch.stack([open_checkpoint(folder / f"t{t}").read(name).double() - base for t in range(tasks)])


def error(got: Tensor, want: Tensor) -> float:
    """The relative error, in the Frobenius norm."""
    return float((got.double() - want.double()).norm() / want.double().norm())


DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
        torch.bool,
    ),
]


def of_every_dtype() -> dict[str, Tensor]:
    """A tensor of each, a scalar, and one without entries."""
    generator = torch.Generator().manual_seed(0)
    made = {f"t.{i}": (torch.rand(3, 5, generator=generator) * 100).to(dtype) for i, dtype in enumerate(DTYPES)}
    return made | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4)}
