"""Merge by a recipe: into a model, or into an adapter on the base."""

from pathlib import Path

from hf_tsv.hub import Hub
from hf_tsv.job.job import Job
from hf_tsv.job.opened import load
from hf_tsv.job.options import Options
from hf_tsv.linalg.ranks import parse_keep
from hf_tsv.merging.progress import Progress, Silent
from hf_tsv.publish.check import Pushing
from hf_tsv.recipe import Recipe, as_adapter_output
from hf_tsv.record import AdaptersRecord, MergeRecord

DEFAULTS = Options()


def merge(
    recipe: Recipe | str | Path,
    out: str | Path,
    options: Options = DEFAULTS,
    *,
    push_to_hub: Pushing | str | None = None,
    hub: Hub | None = None,
    progress: Progress | None = None,
) -> MergeRecord | AdaptersRecord:
    """Merge models by a recipe into a folder that transformers or PEFT loads.

    The folder holds a merged model, and beside it the adapters or masks of single tasks if the recipe keeps any. If
    every tensor's change is kept for its task (`tsv_c`), there is no model, but one adapter per task on the base, as
    from `compress`.

    OUT appears when it is complete. An interrupted job resumes where it stopped, and gives the same bytes. With
    `push_to_hub`, files are uploaded as they are finished, and committed when OUT is complete; if OUT already is the
    result of this job, it is pushed as it is.

    If a launcher that sets RANK and WORLD_SIZE starts several processes, and they share OUT's file system, each
    process merges its part of the tensors; the first one publishes and pushes, and all return the record.

    Args:
        recipe: A recipe, or the path of its file.
        out: The output folder; it must not exist, or must be empty.
        options: Options of the job.
        push_to_hub: The repository to push the output to: `user/name`, or a `Pushing` with further options.
        hub: The connection to the Hub.
        progress: Notified of the work done.

    Returns:
        The record of the output; `pushed` lists where it was pushed.

    Raises:
        HfTsvError: any error that a person can correct, or the end of another process of the job; no work is lost.
    """
    pushing = Pushing(push_to_hub) if isinstance(push_to_hub, str) else push_to_hub
    return Job(load(recipe), Path(out), options, pushing, hub or Hub(), progress or Silent()).run()


def merge_as_adapter(
    recipe: Recipe | str | Path,
    out: str | Path,
    keep: str | None = None,
    options: Options = DEFAULTS,
    *,
    push_to_hub: Pushing | str | None = None,
    hub: Hub | None = None,
    progress: Progress | None = None,
) -> MergeRecord | AdaptersRecord:
    """Merge by a recipe into an adapter on the base model, which PEFT loads.

    The same as `merge` of the recipe with `output: {form: adapter}`.

    Args:
        recipe: A recipe, or the path of its file.
        out: The adapter's folder; it must not exist, or must be empty.
        keep: How much of the merged change to keep, such as `rank=16`, `10%` or `energy=0.9`; None for the recipe's
            rule, or else all of it.
        options: As in `merge`.
        push_to_hub: As in `merge`.
        hub: As in `merge`.
        progress: As in `merge`.

    Returns:
        The record of the output, as in `merge`.

    Raises:
        HfTsvError: any error that a person can correct.
    """
    recipe = as_adapter_output(load(recipe), parse_keep(keep) if keep else None)
    return merge(recipe, out, options, push_to_hub=push_to_hub, hub=hub, progress=progress)
