"""Masks beside a merged model: they mark which of its changed weights belong to a task, one bit per weight.

masks/TASK.safetensors holds each tensor's bits under its name, uint8, eight bits per byte (`hf_tsv.linalg.masks.pack`).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hf_tsv.checkpoints.folder import open_checkpoint
from hf_tsv.checkpoints.protocol import Checkpoint, Shard, TensorInfo
from hf_tsv.checkpoints.safetensors import SafetensorsCheckpoint
from hf_tsv.checkpoints.view import View
from hf_tsv.checkpoints.writer import CheckpointWriter
from hf_tsv.errors import OutputError
from hf_tsv.files.disk import full_disk_told
from hf_tsv.files.names import MASKS, MODEL_CONFIG, RECORD_FILE
from hf_tsv.kept.workplace import Workplace
from hf_tsv.linalg.masks import Use, pack, unpack
from hf_tsv.merging.plan import Plan, Step
from hf_tsv.merging.pool import each_step, one_thread_each
from hf_tsv.merging.progress import Silent
from hf_tsv.merging.stored import StoredTensor, change
from hf_tsv.merging.surveys import Surveys, run_surveys
from hf_tsv.methods import METHODS, Rescaler, TaskDelta
from hf_tsv.record import MaskReport, Masks, MaskUse, MergeRecord, Record
from hf_tsv.sources.companions import copy_config


def write_masks(plan: Plan, work: Workplace) -> Masks:
    """Write every task's mask into the merged model's folder.

    Args:
        plan: The plan of the merged model.
        work: The workplace. The merged model's files are in its output already.

    Returns:
        The record's report on the masks.

    Raises:
        CheckpointError: a model can't be read.
        ResourceError: the disk is full.
    """
    steps = [step for step in plan.merged if step.is_masked]
    with full_disk_told(work.out):
        (work.out / MASKS).mkdir(exist_ok=True)
    packed_infos = []
    for step in steps:
        nbytes = -(-step.info.numel // 8)  # eight bits to a byte, rounded up
        packed_infos.append(TensorInfo(step.name, (nbytes,), "U8"))
    shards = [Shard(file_of(task), tuple(packed_infos)) for task in plan.tasks]
    surveys = run_surveys(plan, steps, work.resources, Silent(), for_masks=True)
    counts: dict[str, _Counts] = {}
    work.progress.begin(float(sum(map(_entries, steps))))
    with ExitStack() as open_files, one_thread_each():
        writers = [open_files.enter_context(CheckpointWriter(work.out, [shard])) for shard in shards]
        write = partial(_write, plan, open_checkpoint(work.out), surveys, writers, counts)
        each_step(steps, write, plan, work.resources, work.progress, work=_entries)
        for writer in writers:
            writer.sync()
    # To restore a task with a head of its own, its own configuration is needed.
    for task in sorted({part.task for part in plan.parts}):
        copy_config(work.folders[task], config_of(work.out, task).parent)
    # Sums of floats depend on their order, so they follow the plan, not the order in which workers finished.
    return _report(plan, shards, [counts[step.name] for step in steps])


def file_of(task: str) -> str:
    return f"{MASKS}/{task}.safetensors"


def config_of(folder: Path, task: str) -> Path:
    """Return the path of the configuration of a task that has a head of its own."""
    return folder / MASKS / task / MODEL_CONFIG


class MaskedCheckpoint(View):
    """A task's model, restored from the base, the merged model and the task's mask.

    A weight is theta_0 + factor (theta - theta_0) where the mask is 1, and theta_0 elsewhere. A tensor without a mask
    is the merged model's.
    """

    def __init__(
        self, base: Checkpoint, merged: Checkpoint, masks: Checkpoint, own: Checkpoint | None, *, factor: float
    ) -> None:
        """
        Args:
            base: The base model, theta_0.
            merged: The merged model, theta.
            masks: The task's packed masks, by tensor.
            own: The tensors that only this task has, if any.
            factor: The factor on the masked change.
        """
        super().__init__(merged, label=masks.label)
        self._base = base
        self._masks = masks
        self._own = own
        self._factor = factor
        self._masked = frozenset(masks.names())
        self._of_task = frozenset(own.names() if own else ())

    def names(self) -> Sequence[str]:
        held = super().names()
        return (*held, *sorted(self._of_task - set(held)))

    def info(self, name: str) -> TensorInfo:
        if self._own and name in self._of_task:
            return self._own.info(name)
        return super().info(name)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        if self._own and name in self._of_task:
            return self._own.read(name, rows)
        merged = super().read(name, rows)
        if name not in self._masked:
            return merged
        # Packed bits are read whole, because a row may begin within a byte.
        mask = unpack(self._masks.read(name), self.info(name).shape)
        if rows:
            mask = mask[slice(*rows)]
        base = self._base.read(name, rows)
        if self._factor != 1:
            dtype = merged.dtype
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            # In place, because the tensor read is this function's own; rounded once, at the end.
            scaled = merged.to(wide)
            scaled.sub_(base).mul_(self._factor).add_(base)
            merged = scaled.to(dtype)
        return torch.where(mask, merged, base.to(merged.dtype))

    def will_need(self, name: str) -> None:
        super().will_need(name)
        self._base.will_need(name)

    def fingerprint(self) -> str:
        checkpoints = (self._base, self.inner, self._masks)
        return "\0".join(checkpoint.fingerprint() for checkpoint in checkpoints)


def open_masked(out: Path, task: str, base: Checkpoint, record: Record) -> MaskedCheckpoint:
    """Open a task's model from a merge's folder and record.

    Raises:
        OutputError: the record lists no mask of this task.
        CheckpointError: a file can't be read.
    """
    if not isinstance(record, MergeRecord) or not record.masks or task not in record.masks.tasks:
        raise OutputError(f"{out / RECORD_FILE}: lists no mask of '{task}'. Make the output again")
    mask = record.masks.tasks[task]
    part = record.task_parts.get(task)
    masks = SafetensorsCheckpoint([out / mask.file], label=f"{out}: {mask.file}")
    own = SafetensorsCheckpoint([out / part.file], label=f"{out}: {part.file}") if part else None
    return MaskedCheckpoint(base, open_checkpoint(out), masks, own, factor=mask.factor)


@dataclass(frozen=True)
class _Counts:
    """Statistics of one tensor's masks.

    Attributes:
        ones: Number of ones in each task's mask.
        use: Counts of changed weights by the number of tasks that use them.
        rescalers: Each task's sums for its factor (EMR); empty for masks without a factor.
    """

    ones: tuple[int, ...]
    use: Use
    rescalers: tuple[Rescaler, ...]


class _Bits:
    """A mask that is added in pieces and packed as they are added."""

    def __init__(self) -> None:
        self.ones = 0
        self._packed: list[Tensor] = []
        self._rest = torch.empty(0, dtype=torch.bool)

    def add(self, mask: Tensor) -> None:
        self.ones += int(mask.sum())
        bits = torch.cat([self._rest, mask.flatten()])
        # Bits beyond the last whole byte wait for the next piece.
        whole = len(bits) // 8 * 8
        self._packed.append(pack(bits[:whole]))
        self._rest = bits[whole:]

    def finish(self) -> Tensor:
        return torch.cat([*self._packed, pack(self._rest)])


def _write(
    plan: Plan,
    merged: Checkpoint,
    surveys: Surveys,
    writers: Sequence[CheckpointWriter],
    counts: dict[str, _Counts],
    step: Step,
) -> None:
    """Write all tasks' masks of one tensor, in the same slices as the merge."""
    method = METHODS[step.method]
    num_tasks = len(plan.tasks)
    rescaler = method.mask.rescaler if method.mask else None
    bits = [_Bits() for _ in range(num_tasks)]
    rescalers = [rescaler() for _ in range(num_tasks)] if rescaler else []
    use = Use((0,) * (num_tasks + 1))
    for rows in step.slices:
        stored = StoredTensor(plan, step, rows)
        deltas = stored.deltas(surveys.of(step))
        # The merged tensor is read back from the output, rounded to its dtype, as `restore` will read it.
        moved = change(merged.read(step.name, rows), stored.base, deltas.dtype)
        count = torch.zeros(moved.shape, dtype=torch.int32)  # how many tasks use each weight
        for t in range(num_tasks):
            task = TaskDelta(t, deltas[t], deltas.weights[t], deltas.survey)
            mask = method.mask_of(task, moved, step.parameters)
            bits[t].add(mask)
            count += mask
            if rescalers:
                rescalers[t].add(task.weighted, moved, mask)
        use += Use.of(count, moved != 0, num_tasks)
    for writer, packer in zip(writers, bits, strict=True):
        writer.write(step.name, packer.finish())
    counts[step.name] = _Counts(tuple(packer.ones for packer in bits), use, tuple(rescalers))


def _report(plan: Plan, shards: Sequence[Shard], counts: Sequence[_Counts]) -> Masks:
    """Make the record's report on the masks. `counts`: one entry per masked tensor, in the plan's order."""
    entries = sum(step.info.numel for step in plan.merged if step.is_masked)
    use = Use((0,) * (len(plan.tasks) + 1))
    for found in counts:
        use += found.use
    tasks = {}
    for t, (task, shard) in enumerate(zip(plan.tasks, shards, strict=True)):
        ones = sum(found.ones[t] for found in counts)
        factor = 1.0  # for masks that rescale nothing
        rescalers = [found.rescalers[t] for found in counts if found.rescalers]
        if rescalers:
            # One factor for the whole model, from the sums over its tensors.
            total = rescalers[0]
            for rescaler in rescalers[1:]:
                total = total + rescaler
            factor = total.value
        tasks[task] = MaskReport(file=shard.file, bytes=shard.nbytes, own=ones / entries, factor=factor)
    return Masks(tasks=tasks, weights=MaskUse(**use.shares()))


def _entries(step: Step) -> float:
    return float(step.info.numel)
