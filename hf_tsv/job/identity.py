"""When a run may go on with what an earlier start of it has left, and when not."""

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
    check_output(out, overwrite=overwrite)
    for source in sources:
        if source.folder and source.folder.resolve().is_relative_to(out.resolve()):
            raise OutputError(f"{out}: holds {source.ref.text}, which the recipe reads. Choose another folder")


def _identity(planned: Plan, sources: Sequence[Source]) -> dict[str, str]:
    """What has to be the same for an unfinished run to be gone on with."""
    layout = repr([(shard.file, shard.tensors) for shard in planned.shards])
    models = {("base model" if s.task is None else f"model '{s.task}'"): s.identity for s in sources}
    return {
        "recipe": hashlib.sha256(planned.recipe.text.encode()).hexdigest(),
        **models,
        "shards": hashlib.sha256(layout.encode()).hexdigest(),
        **({"vocabulary": planned.vocabulary.fingerprint} if planned.vocabulary else {}),
        "singular value decomposition": planned.recipe.svd,
        "version of hf_tsv's numerics": NUMERICS,
        "version of torch": torch.__version__,
    }


def identity_on(device: torch.device, planned: Plan, sources: Sequence[Source]) -> dict[str, str]:
    """As `_identity`, on a device: processors of one kind do the same, GPUs of one model."""
    return _identity(planned, sources) | {"device": "cpu" if device == CPU else device_name(device)}


def check_unchanged(planned: Plan, sources: Sequence[Source], before: Mapping[str, str]) -> None:
    """Whether the sources still are what they were when the run began: else what was merged is a mixture.

    Raises:
        CheckpointError: one is another now.
    """
    changed = [what for what, identity in _identity(planned, sources).items() if before[what] != identity]
    if changed:
        raise CheckpointError(
            f"{', '.join(changed)}: changed while it was read, so that what was merged is of no use and was thrown"
            " away. Run it again when nothing writes there any more"
        )


def go_on_or_start(staging: Staging, identity: Mapping[str, str], *, restart: bool) -> None:
    before = None if restart else Journal.read_identity(staging)
    if before is None:
        staging.discard()
        return
    keys = dict.fromkeys((*before, *identity))
    changed = [key for key in keys if before.get(key) != identity.get(key)]
    if changed:
        raise OutputError(
            f"{staging.final}: an unfinished run lies in {staging.root}, but another {', another '.join(changed)}"
            " is asked for now. Pass --restart to throw it away, or go back to what it was"
        )


@contextmanager
def discarded_if_wrong(staging: Staging) -> Iterator[None]:
    """Keep an interrupted run's work, but not that of one that can't be finished with these sources."""
    try:
        yield
    except (CheckpointError, MethodError):
        staging.remove()
        raise
