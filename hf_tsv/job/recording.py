"""The record of a run, made from its plan and what was noted on the way."""

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_tsv._version import __version__
from hf_tsv.checkpoints.protocol import Checkpoint
from hf_tsv.merging.plan import Plan, Step
from hf_tsv.merging.resources import CPU, device_name
from hf_tsv.methods import METHODS
from hf_tsv.methods.tsv_c import tsv_c
from hf_tsv.record.record import FORMAT

NUMERICS = "4"  # counts up whenever the same inputs give other bits than before


def make_record(
    plan: Plan,
    sources: Sequence[Mapping[str, Any]],
    tensors: Mapping[str, Mapping[str, Any]],
    *,
    seconds: float,
    device: torch.device = CPU,
    parts: Mapping[str, str],
    adapters: Mapping[str, Mapping[str, Any]],
    masks: Mapping[str, Any],
) -> dict[str, Any]:
    """The record as plain data.

    Args:
        plan: What was done.
        sources: One mapping a source, the base first: role, task name, model, revision, fingerprint.
        tensors: What the run noted of each output tensor: checksum, rank, seconds and what else the method told.
        seconds: Wall time of the merge.
        device: Where methods computed.
        parts: File of each task's own tensors.
        adapters: By task and profile, what was written of adapters on the merged model.
        masks: What was written of masks beside it.
    """
    return {
        "format": FORMAT,
        "versions": versions(device),
        "sources": [dict(source) for source in sources],
        "method": plan.recipe.merge_method,
        "methods": {name: {"paper": METHODS[name].paper} for name in sorted({s.method for s in plan.merged})},
        "arithmetic": {"dtype": plan.recipe.dtype, "svd": plan.recipe.svd},
        "bytes": {"read": plan.bytes_in, "written": plan.bytes_out},
        "seconds": round(seconds, 1),
        "warnings": list(plan.warnings),
        **({"vocabulary": plan.vocabulary.describe()} if plan.vocabulary else {}),
        "files": [shard.file for shard in plan.shards],
        "task_parts": {
            task: {"file": file, "tensors": [part.info.name for part in plan.parts if part.task == task]}
            for task, file in parts.items()
        },
        **({"adapters": {task: dict(profiles) for task, profiles in adapters.items()}} if adapters else {}),
        **({"masks": dict(masks)} if masks else {}),
        "tensors": {step.name: _tensor(step, tensors[step.name]) for step in plan.steps},
    }


def make_compression_record(
    plan: Plan,
    sources: Sequence[Mapping[str, Any]],
    tasks: Mapping[str, Mapping[str, Any]],
    *,
    flags: Sequence[str],
    seconds: float,
) -> dict[str, Any]:
    """The record of a compression.

    Args:
        plan: Which tensors took part.
        sources: As in a merge's record.
        tasks: By task and profile, what was written and found.
        flags: How it was compressed, in the command line's words.
        seconds: Wall time.
    """
    checkpoints = dict(zip(plan.tasks, plan.finetuned, strict=True))
    return {
        "format": FORMAT,
        "versions": versions(),
        "sources": [dict(source) for source in sources],
        "method": tsv_c.name,
        "flags": list(flags),
        "arithmetic": {"dtype": plan.recipe.dtype, "svd": plan.recipe.svd},
        "seconds": round(seconds, 1),
        "warnings": list(plan.warnings),
        "checkpoint_bytes": {task: _nbytes(checkpoints.get(task, plan.base)) for task in tasks},
        "tasks": {task: dict(profiles) for task, profiles in tasks.items()},
    }


def make_restoration_record(
    task: str, source: Mapping[str, Any], files: Sequence[str], checksums: Mapping[str, str]
) -> dict[str, Any]:
    """The record of a restored task. `checksums`: SHA-256 by tensor."""
    return {
        "format": FORMAT,
        "versions": versions(),
        "sources": [dict(source)],
        "restored": task,
        "files": list(files),
        "tensors": {name: {"sha256": checksum} for name, checksum in checksums.items()},
    }


def _nbytes(checkpoint: Checkpoint) -> int:
    return sum(checkpoint.info(name).nbytes for name in checkpoint.names())


def versions(device: torch.device = CPU) -> dict[str, str]:
    """What the bits of an output depend on besides recipe and sources, and the version of Python."""
    return {
        "hf_tsv": __version__,
        "numerics": NUMERICS,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": device_name(device),
    }


def _tensor(step: Step, facts: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "kind": step.kind,
        "shape": list(step.info.shape),
        "dtype": step.out.dtype,
        "method": step.method,
    }
    if step.why:
        told["why"] = step.why
    if step.parameters:
        told["parameters"] = dict(step.parameters)
    return told | {key: value for key, value in facts.items() if key != "name"}
