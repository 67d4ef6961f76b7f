"""Write the checkpoints of `shapes`: random base weights, and fine-tunes that differ by a matrix of low rank and noise.

Seeds are fixed by name, so that every machine and every run merges the same weights.
"""

import json
import shutil
import sys
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.shapes import SHAPES, Shape

SPREAD = 0.02  # standard deviation of the base's weights
CHANGE = 0.05  # norm of a delta, as a share of the weight's
RANK = 16
NOISE = 0.05  # norm of a delta's noise, as a share of its low-rank part's


def make(shape: Shape) -> None:
    """Write base and fine-tunes, unless they are there."""
    if shape.folder.exists():
        return
    staged = shape.folder.with_name(f".{shape.name}")
    shutil.rmtree(staged, ignore_errors=True)
    base = {name: _weights(f"{shape.name}/base/{name}", size) for name, size in shape.tensors.items()}
    _save(base, shape, staged / "base")
    for task in shape.tasks:
        tuned = {name: w + delta(f"{shape.name}/{task.name}/{name}", w) for name, w in base.items()}
        _save(tuned, shape, staged / task.name)
    staged.rename(shape.folder)


def _weights(seed: str, size: tuple[int, ...]) -> Tensor:
    return SPREAD * _normal(seed, *size)


def delta(seed: str, weights: Tensor) -> Tensor:
    """A low-rank matrix and noise; noise alone for what is no matrix."""
    noise = _normal(f"{seed}/noise", *weights.shape)
    if weights.ndim == 2:
        m, n = weights.shape
        signal = _normal(f"{seed}/left", m, RANK) @ _normal(f"{seed}/right", RANK, n)
        noise = signal + noise * (NOISE * signal.norm() / noise.norm())
    scaled: Tensor = noise * (CHANGE * weights.norm() / noise.norm())
    return scaled


def _normal(seed: str, *size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(zlib.crc32(seed.encode())))


def _save(tensors: dict[str, Tensor], shape: Shape, folder: Path) -> None:
    folder.mkdir(parents=True)
    stored = {name: tensor.to(getattr(torch, shape.dtype)) for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(shape.config, indent=2) + "\n")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        make(SHAPES[name])
