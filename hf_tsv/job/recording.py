"""The record of a run, made from its plan and from the notes taken during the run."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic_core import to_jsonable_python

from hf_tsv._version import __version__
from hf_tsv.merging.plan import Plan, Step
from hf_tsv.merging.resources import CPU, device_name
from hf_tsv.methods import METHODS
from hf_tsv.record import (
    AdapterReports,
    AdaptersRecord,
    Arithmetic,
    Masks,
    MergeRecord,
    MethodEntry,
    RestoredRecord,
    SourceEntry,
    TaskPart,
    TensorEntry,
    TensorSum,
    Traffic,
    Versions,
    VocabularyEntry,
)

NUMERICS = "4"  # raised whenever the same inputs give other bits than before


@dataclass(frozen=True)
class KeptFiles:
    """The files written for single tasks beside a merged model.

    Attributes:
        parts: The file of each task's own tensors, by task.
        adapters: The reports on the adapters on the merged model.
        masks: The report on the masks; None for a merge without masks.
    """

    parts: Mapping[str, str] = field(default_factory=dict)
    adapters: AdapterReports = field(default_factory=dict)
    masks: Masks | None = None


ENGINES_FACTS = ("name", "sha256", "seconds", "unchanged")  # a tensor's other facts are its method's notes


def make_record(
    plan: Plan,
    sources: Sequence[SourceEntry],
    tensors: Mapping[str, Mapping[str, Any]],
    kept: KeptFiles,
    *,
    seconds: float,
    device: torch.device = CPU,
) -> MergeRecord:
    """Make the record of a merged model.

    Args:
        plan: The plan of the merge.
        sources: The models, the base first.
        tensors: The run's notes on each output tensor: checksum, seconds and the method's own notes.
        kept: The files written for single tasks.
        seconds: Wall time of the merge.
        device: Device on which methods computed.
    """
    entries = {step.name: _tensor_entry(step, tensors[step.name]) for step in plan.steps}
    used = sorted({step.method for step in plan.merged})
    task_parts = {}
    for task, file in kept.parts.items():
        names = tuple(part.info.name for part in plan.parts if part.task == task)
        task_parts[task] = TaskPart(file=file, tensors=names)
    return MergeRecord(
        format=2,
        kind="merge",
        versions=versions(device),
        sources=tuple(sources),
        method=plan.recipe.merge_method,
        methods={name: MethodEntry(paper=METHODS[name].paper) for name in used},
        arithmetic=Arithmetic(dtype=plan.recipe.dtype, svd=plan.recipe.svd),
        bytes=Traffic(read=plan.bytes_in, written=plan.bytes_out),
        seconds=round(seconds, 1),
        warnings=tuple(plan.warnings),
        vocabulary=VocabularyEntry(**plan.vocabulary.describe()) if plan.vocabulary else None,
        files=tuple(shard.file for shard in plan.shards),
        task_parts=task_parts,
        adapters=kept.adapters,
        masks=kept.masks,
        tensors=entries,
    )


def make_compression_record(
    plan: Plan,
    sources: Sequence[SourceEntry],
    adapters: AdapterReports,
    *,
    seconds: float,
) -> AdaptersRecord:
    """Make the record of a compression.

    Args:
        plan: The plan of the compression.
        sources: The models, the base first.
        adapters: The reports on the adapters.
        seconds: Wall time of the compression.
    """
    checkpoints = dict(zip(plan.tasks, plan.finetuned, strict=True))
    sizes = {}
    for task in adapters:
        # Several tasks in one adapter have no checkpoint of their own; their merge would be as large as the base.
        checkpoint = checkpoints.get(task, plan.base)
        sizes[task] = sum(checkpoint.info(name).nbytes for name in checkpoint.names())
    return AdaptersRecord(
        format=2,
        kind="adapters",
        versions=versions(),
        sources=tuple(sources),
        method=plan.recipe.merge_method,
        arithmetic=Arithmetic(dtype=plan.recipe.dtype, svd=plan.recipe.svd),
        seconds=round(seconds, 1),
        warnings=tuple(plan.warnings),
        checkpoint_bytes=sizes,
        adapters=adapters,
    )


def make_restoration_record(
    task: str, source: SourceEntry, files: Sequence[str], checksums: Mapping[str, str]
) -> RestoredRecord:
    """Make the record of a restored task. `checksums`: SHA-256 by tensor."""
    return RestoredRecord(
        format=2,
        kind="restored",
        versions=versions(),
        sources=(source,),
        task=task,
        files=tuple(files),
        tensors={name: TensorSum(sha256=checksum) for name, checksum in checksums.items()},
    )


def versions(device: torch.device = CPU) -> Versions:
    """Return the versions that an output's bits depend on besides recipe and sources, and the version of Python."""
    return Versions(
        hf_tsv=__version__,
        numerics=NUMERICS,
        torch=str(torch.__version__),  # a subclass of str
        python=platform.python_version(),
        processor=device_name(device),
    )


def _tensor_entry(step: Step, facts: Mapping[str, Any]) -> TensorEntry:
    """Make the record's entry for one output tensor. `facts`: the run's notes on it."""
    notes = {key: value for key, value in facts.items() if key not in ENGINES_FACTS}
    return TensorEntry(
        kind=step.kind,
        shape=step.info.shape,
        dtype=step.out.dtype,
        method=step.method,
        sha256=facts["sha256"],
        seconds=facts.get("seconds", 0.0),
        why=step.why,
        unchanged=facts.get("unchanged", False),
        # Tuples become lists, as they do when a record is read from its file.
        parameters=to_jsonable_python(dict(step.parameters)),
        notes=to_jsonable_python(notes),
    )
