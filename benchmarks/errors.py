"""How far merged checkpoints are from a float64 merge of the same inputs, on a sample of tensors.

python -m benchmarks.errors SHAPE METHOD OUT...     prints a JSON list with one entry an OUT
"""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks import reference
from benchmarks.shapes import SHAPES, Shape

DENSITY = 0.2  # what ties keeps


class Sums:
    """Errors of one output, summed over tensors."""

    def __init__(self) -> None:
        self._error = self._rounding = self._norm = 0.0
        self._wrong = self._count = 0

    def add(self, base: Tensor, wanted: Tensor, merged: Tensor) -> None:
        """Compare stored weights with the base's plus the wanted delta, float64."""
        rounded = (base + wanted).to(merged.dtype)
        self._error += _squared(merged - base - wanted)
        self._rounding += _squared(rounded - base - wanted)
        self._norm += _squared(wanted)
        self._wrong += int((merged != rounded).sum())
        self._count += merged.numel()

    def told(self) -> dict[str, float]:
        """
        - `error`: ||merged delta - reference|| / ||reference||, Frobenius, over all sampled tensors;
        - `rounding`: the same of the reference, once rounded to the stored dtype: no output can be better;
        - `misrounded`: share of the stored weights that are not the reference's, rounded once.
        """
        return {
            "error": (self._error / self._norm) ** 0.5,
            "rounding": (self._rounding / self._norm) ** 0.5,
            "misrounded": self._wrong / self._count,
        }


def errors(shape: Shape, method: str, outs: Sequence[Path]) -> list[dict[str, float]]:
    """The errors of merged checkpoints, in the order of the folders."""
    with ExitStack() as stack:
        base, *rest = (_opened(stack, folder) for folder in (shape.base, *shape.tasks, *outs))
        tuned, merged = rest[: shape.num_tasks], rest[shape.num_tasks :]
        limits = _limits(base, tuned) if method == "ties" else []
        sums = [Sums() for _ in outs]
        for name in shape.sample:
            theta = base.get_tensor(name).double()
            wanted = _merged(method, [t.get_tensor(name) - theta for t in tuned], limits)
            for one, checkpoint in zip(sums, merged, strict=True):
                one.add(theta, wanted, checkpoint.get_tensor(name))
    return [one.told() for one in sums]


def _merged(method: str, deltas: Sequence[Tensor], limits: Sequence[float]) -> Tensor:
    match method:
        case "tsv_m":
            return reference.tsv_m(deltas)
        case "task_arithmetic":
            return reference.task_arithmetic(deltas)
        case "ties":
            return reference.ties(deltas, limits)
        case "ties, per tensor":
            return reference.ties(deltas, [_limit(delta.abs().flatten()) for delta in deltas])
    raise ValueError(f"no reference for {method!r}")


def _limits(base: Any, tuned: Sequence[Any]) -> list[float]:
    """The magnitude that a share of `DENSITY` of each whole task vector reaches."""
    thetas = {name: base.get_tensor(name).float() for name in base.keys()}  # noqa: SIM118 - safe_open is no mapping
    limits: list[float] = []
    for task in tuned:
        magnitudes = [(task.get_tensor(name) - theta).abs().flatten() for name, theta in thetas.items()]
        limits.append(_limit(torch.cat(magnitudes)))
    return limits


def _limit(magnitudes: Tensor) -> float:
    """The smallest magnitude that is kept."""
    return float(magnitudes.kthvalue(magnitudes.numel() - int(DENSITY * magnitudes.numel()) + 1)[0])


def _opened(stack: ExitStack, folder: Path) -> Any:
    (file,) = folder.glob("*.safetensors")
    return stack.enter_context(safe_open(file, "pt"))


def _squared(a: Tensor) -> float:
    return float(a.square().sum())


if __name__ == "__main__":
    shape, method, *outs = sys.argv[1:]
    print(json.dumps(errors(SHAPES[shape], method, [Path(out) for out in outs])))
