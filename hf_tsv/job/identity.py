"""The identity of a job, which decides whether it may resume an earlier start's work, and checks of its folders."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from hf_tsv.errors import CheckpointError, MethodError, OutputError
from hf_tsv.job.recording import NUMERICS
from hf_tsv.merging.plan import Plan
from hf_tsv.merging.resources import CPU, device_name
from hf_tsv.sources.models import Source
from hf_tsv.staging.folder import Staging, check_output
from hf_tsv.staging.journal import Journal


def check_place(out: Path, sources: Sequence[Source], *, overwrite: bool) -> None:
    """Check that OUT can become the output.

    Raises:
        OutputError: it holds something that would be lost, or one of the models.
    """
    check_output(out, overwrite=overwrite)
    for source in sources:
        if source.folder and source.folder.resolve().is_relative_to(out.resolve()):
            raise OutputError(f"{out}: contains {source.ref.text}, which the recipe reads. Choose another folder")


def identity_on(device: torch.device, plan: Plan, sources: Sequence[Source]) -> dict[str, str]:
    """Return everything that has to be the same for an unfinished job to be resumed, under its name in messages.

    All CPUs count as one device; GPUs are told apart by model because another model may round differently.
    """
    kind = "cpu" if device == CPU else device_name(device)
    return _identity(plan, sources) | {"device": kind}


def check_unchanged(plan: Plan, sources: Sequence[Source], before: Mapping[str, str]) -> None:
    """Check that the models haven't changed since the job began. Otherwise the output would be a mixture.

    Raises:
        CheckpointError: a model has changed.
    """
    changed = [what for what, identity in _identity(plan, sources).items() if before[what] != identity]
    if changed:
        raise CheckpointError(
            f"{', '.join(changed)}: changed while it was read, so the result was thrown away. Run the command again"
            " when nothing writes there any more"
        )


def go_on_or_start(staging: Staging, identity: Mapping[str, str], *, restart: bool) -> None:
    """Keep the work of an unfinished job if it is the same job, or begin with an empty working folder.

    Raises:
        OutputError: the working folder holds another job's work.
    """
    before = None if restart else Journal.read_identity(staging)
    if before is None:
        staging.discard()
        return
    # Each key once, in the order of messages; an earlier version may have noted other keys.
    keys = dict.fromkeys((*before, *identity))
    changed = [key for key in keys if before.get(key) != identity.get(key)]
    if changed:
        raise OutputError(
            f"{staging.final}: {staging.root} holds the work of an unfinished run with another"
            f" {', another '.join(changed)}. Pass --restart to throw it away, or run the command as it was"
        )


@contextmanager
def discarded_if_wrong(staging: Staging) -> Iterator[None]:
    """Keep the work of an interrupted job, but throw it away if the job can't be finished with these models."""
    try:
        yield
    except (CheckpointError, MethodError):
        staging.remove()
        raise


def _identity(plan: Plan, sources: Sequence[Source]) -> dict[str, str]:
    """Return everything that the output's bytes depend on, except the device."""
    # With other file sizes the same tensors are at other places, so the files written so far couldn't be used.
    layout = repr([(shard.file, shard.tensors) for shard in plan.shards])
    identity = {"recipe": _sha256(plan.recipe.text)}
    for source in sources:
        name = "base model" if source.task is None else f"model '{source.task}'"
        identity[name] = source.identity
    identity["layout of files"] = _sha256(layout)
    if plan.vocabulary:
        identity["vocabulary"] = plan.vocabulary.fingerprint
    identity["singular value decomposition"] = plan.recipe.svd
    identity["version of hf_tsv's numerics"] = NUMERICS
    identity["version of torch"] = torch.__version__
    return identity


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
