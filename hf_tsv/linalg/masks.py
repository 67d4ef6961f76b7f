"""Masks of the entries of a merged task vector that a task uses: one bit per weight and task, eight to a byte.

TALL-masks and Consensus Merging are Wang et al. 2024, https://arxiv.org/abs/2405.07813; EMR-Merging is Huang et al.
2024, https://arxiv.org/abs/2405.17461. Tensors in, tensors out; nothing here reads or writes files.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def tall_mask(delta: Tensor, merged: Tensor, lam: float) -> Tensor:
    """Return the mask of entries where a task's change outweighs the merge's rest: |tau_t| > lam |tau_merged - tau_t|.

    The comparison is strict, as in the authors' code, so that entries no task changed are in no mask (with the >= of
    the paper's equation 5, they would be in all).

    Args:
        delta: A task's change, any shape and float dtype.
        merged: The merged change, of the same shape.
        lam: The paper's lambda_t, 0 or more: the larger, the fewer entries. Its grid is 0.2 to 0.6.

    Returns:
        A bool tensor of the same shape.
    """
    return delta.abs() > (merged - delta).abs().mul_(lam)


def magnitude_mask(delta: Tensor, threshold: float) -> Tensor:
    """Return the mask of entries whose magnitude reaches the threshold and isn't 0; a bool tensor."""
    return (delta.abs() >= threshold) & (delta != 0)


def emr_unified(deltas: Sequence[Tensor]) -> Tensor:
    """Return EMR's unified change: the sign of the sum, with the largest magnitude among the tasks of that sign.

    If the changes cancel, minus is elected, as in the authors' code.

    Args:
        deltas: One per task, all of one shape; iterated twice.
    """
    total = torch.zeros_like(deltas[0])
    for delta in deltas:
        total.add_(delta)
    sign = torch.where(total > 0, 1.0, -1.0).to(total.dtype)
    largest = torch.zeros_like(total)
    for delta in deltas:
        # Negative for a task of the other sign, so it is never the largest.
        torch.maximum(largest, delta * sign, out=largest)
    return largest.mul_(sign)


def emr_mask(delta: Tensor, unified: Tensor) -> Tensor:
    """Return the mask of entries where a task's change has the unified change's sign; a bool tensor."""
    return delta * unified > 0


@dataclass
class EmrRescaler:
    """The factor on a task's masked unified vector: sum |tau_t| / sum |m_t tau_unified|, over all tensors.

    This is the paper's formula. The authors' code sums the tensors' means instead, so a bias counts as much as a
    matrix.

    Attributes:
        own: sum |tau_t| so far.
        unified: sum |m_t tau_unified| so far.
    """

    own: float = 0.0
    unified: float = 0.0

    def add(self, delta: Tensor, unified: Tensor, mask: Tensor) -> None:
        """Add one tensor, or a piece of one: the task's change, the unified change, and the task's mask."""
        self.own += float(delta.abs().sum(dtype=torch.float64))
        self.unified += float((unified.abs() * mask).sum(dtype=torch.float64))

    def __add__(self, other: "EmrRescaler") -> "EmrRescaler":
        return EmrRescaler(self.own + other.own, self.unified + other.unified)

    @property
    def value(self) -> float:
        """The factor; 1 for a task that changed nothing."""
        return self.own / self.unified if self.unified else 1.0


def pack(mask: Tensor) -> Tensor:
    """Return a bool tensor's bits in row-major order, the first in a byte's highest bit: (ceil(numel / 8),) uint8."""
    return torch.from_numpy(np.packbits(mask.numpy(force=True).reshape(-1)))


def unpack(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the bool tensor of this shape that was packed.

    Raises:
        ValueError: packed has more or fewer bytes than the shape needs.
    """
    numel = math.prod(shape)
    nbytes = -(-numel // 8)  # the last byte may be padded
    if packed.numel() != nbytes:
        raise ValueError(f"a mask of shape {tuple(shape)} has {nbytes} bytes, got {packed.numel()}")
    bits = np.unpackbits(packed.numpy(force=True), count=numel)
    return torch.from_numpy(bits).to(torch.bool).reshape(tuple(shape))


@dataclass(frozen=True)
class Storage:
    """Storage of T tasks, in bits.

    Attributes:
        full: Size of each task's fine-tuned tensors, and of the unchanged ones once.
        masked: Size of the base, the merged task vector, and one bit per fine-tuned weight and task.
    """

    full: int
    masked: int


def storage_bits(
    finetuned: Iterable[Sequence[int]], frozen: Iterable[Sequence[int]], num_tasks: int, *, bits: int = 32
) -> Storage:
    """Count the storage of T tasks from shapes alone, as in the paper (57.04 and 8.20 gigabits for ViT-B/32, T = 20).

    Args:
        finetuned: Shapes of the tensors that fine-tuning changed.
        frozen: Shapes of the tensors that it didn't change.
        num_tasks: T.
        bits: Bits per stored weight.
    """
    changed = sum(map(math.prod, finetuned))
    unchanged = sum(map(math.prod, frozen))
    return Storage(
        full=bits * (num_tasks * changed + unchanged),
        masked=bits * (2 * changed + unchanged) + num_tasks * changed,  # base and merge, one bit per task
    )


@dataclass(frozen=True)
class Use:
    """Counts of entries by the number of tasks that use them, among the entries that any task changed.

    Attributes:
        entries: The number at index c counts the entries that are in c of the T masks; T + 1 numbers.
    """

    entries: tuple[int, ...]

    @classmethod
    def of(cls, masks: Tensor, is_changed: Tensor, num_tasks: int) -> "Use":
        """Count from the number of masks that each entry is in, and whether any task changed it."""
        counts = torch.bincount(masks[is_changed].flatten(), minlength=num_tasks + 1)  # (T + 1,)
        return cls(tuple(counts.tolist()))

    def __add__(self, other: "Use") -> "Use":
        return Use(tuple(ours + theirs for ours, theirs in zip(self.entries, other.entries, strict=True)))

    def shares(self) -> dict[str, float]:
        """Return the shares of the entries by the paper's words: used by no task, by one, or by several."""
        total = sum(self.entries) or 1  # if nothing changed, all shares are 0
        return {
            "catastrophic": self.entries[0] / total,
            "selfish": self.entries[1] / total,
            "shared": sum(self.entries[2:]) / total,
        }
