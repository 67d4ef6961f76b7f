"""One bit a weight and task: which entries of a merged task vector a task uses, packed eight to a byte.

TALL-masks and Consensus Merging are Wang et al. 2024, https://arxiv.org/abs/2405.07813; EMR-Merging is Huang et al.
2024, https://arxiv.org/abs/2405.17461. Tensors in, tensors out; nothing here knows a file.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def tall_mask(delta: Tensor, merged: Tensor, lam: float) -> Tensor:
    """Where a task's change outweighs what the merge would do to it: |tau_t| > lam |tau_merged - tau_t|.

    Strictly, as the authors' code has it, so that what nothing changed is in no mask (the paper's equation 5 has >=,
    which puts it in all).

    Args:
        delta: A task's change, any shape and float dtype.
        merged: The merged change, alike.
        lam: The paper's lambda_t, 0 or more: the larger, the fewer entries. Its grid is 0.2 to 0.6.

    Returns:
        A bool tensor of the same shape.
    """
    return delta.abs() > (merged - delta).abs().mul_(lam)


def magnitude_mask(delta: Tensor, threshold: float) -> Tensor:
    """The entries of a task's change that reach a magnitude, without those that are 0; a bool tensor."""
    return (delta.abs() >= threshold) & (delta != 0)


def emr_unified(deltas: Sequence[Tensor]) -> Tensor:
    """EMR's unified change: the sign of the sum, with the largest magnitude among the tasks of that sign.

    Where the changes cancel, minus is elected, as in the authors' code.

    Args:
        deltas: One a task, all of one shape; iterated twice.
    """
    total = torch.zeros_like(deltas[0])
    for delta in deltas:
        total.add_(delta)
    sign = torch.where(total > 0, 1.0, -1.0).to(total.dtype)
    largest = torch.zeros_like(total)
    for delta in deltas:
        # Negative for a task of the other sign, which so never is the largest.
        torch.maximum(largest, delta * sign, out=largest)
    return largest.mul_(sign)


def emr_mask(delta: Tensor, unified: Tensor) -> Tensor:
    """Where a task's change has the unified one's sign; a bool tensor."""
    return delta * unified > 0


@dataclass
class EmrRescaler:
    """What a task's masked unified vector is multiplied by: sum |tau_t| / sum |m_t tau_unified|, over all tensors.

    The authors' code sums the tensors' means instead, by which a bias counts as much as a matrix; this is the
    paper's formula.
    """

    own: float = 0.0
    unified: float = 0.0

    def add(self, delta: Tensor, unified: Tensor, mask: Tensor) -> None:
        """Count one tensor, or a piece of one: the task's change, the unified one, and the task's mask."""
        self.own += float(delta.abs().sum(dtype=torch.float64))
        self.unified += float((unified.abs() * mask).sum(dtype=torch.float64))

    def __add__(self, other: "EmrRescaler") -> "EmrRescaler":
        return EmrRescaler(self.own + other.own, self.unified + other.unified)

    @property
    def value(self) -> float:
        """1 for a task that changed nothing."""
        return self.own / self.unified if self.unified else 1.0


def pack(mask: Tensor) -> Tensor:
    """A bool tensor's bits in row-major order, the first in a byte's highest bit; uint8, 1-D, ceil(numel / 8)."""
    return torch.from_numpy(np.packbits(mask.numpy(force=True).reshape(-1)))


def unpack(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The bool tensor of this shape that was packed.

    Raises:
        ValueError: there are more or fewer bytes than the shape needs.
    """
    numel = math.prod(shape)
    nbytes = -(-numel // 8)  # the last one may be filled up
    if packed.numel() != nbytes:
        raise ValueError(f"a mask of shape {tuple(shape)} has {nbytes} bytes, got {packed.numel()}")
    bits = np.unpackbits(packed.numpy(force=True), count=numel)
    return torch.from_numpy(bits).to(torch.bool).reshape(tuple(shape))


@dataclass(frozen=True)
class Storage:
    """What T tasks take on a disk, in bits.

    Attributes:
        full: A checkpoint each of what was fine-tuned, and what wasn't once.
        masked: The base, the merged task vector and a bit for each fine-tuned weight and task.
    """

    full: int
    masked: int


def storage_bits(
    finetuned: Iterable[Sequence[int]], frozen: Iterable[Sequence[int]], num_tasks: int, *, bits: int = 32
) -> Storage:
    """Storage of T tasks from shapes alone, as the paper counts it (57.04 and 8.20 gigabits for ViT-B/32, T = 20).

    Args:
        finetuned: Shapes of the tensors that fine-tuning changed.
        frozen: Shapes of those that it didn't.
        num_tasks: T.
        bits: Bits of a stored weight.
    """
    changed = sum(map(math.prod, finetuned))
    unchanged = sum(map(math.prod, frozen))
    return Storage(
        full=bits * (num_tasks * changed + unchanged),
        masked=bits * (2 * changed + unchanged) + num_tasks * changed,  # the base's and the merge's, and a bit each
    )


@dataclass(frozen=True)
class Use:
    """How many entries are used by how many tasks, of those that any task changed.

    Attributes:
        entries: At place c the number of entries that are in c of the T masks; T + 1 numbers.
    """

    entries: tuple[int, ...]

    @classmethod
    def of(cls, masks: Tensor, is_changed: Tensor, num_tasks: int) -> "Use":
        """Counted from the number of masks that each entry is in, and whether any task changed it."""
        counts = torch.bincount(masks[is_changed].flatten(), minlength=num_tasks + 1)  # (T + 1,)
        return cls(tuple(counts.tolist()))

    def __add__(self, other: "Use") -> "Use":
        return Use(tuple(ours + theirs for ours, theirs in zip(self.entries, other.entries, strict=True)))

    def shares(self) -> dict[str, float]:
        """The paper's words: catastrophic are weights that no task uses, selfish what one does, shared the rest."""
        total = sum(self.entries) or 1  # where nothing changed all shares are 0
        return {
            "catastrophic": self.entries[0] / total,
            "selfish": self.entries[1] / total,
            "shared": sum(self.entries[2:]) / total,
        }
