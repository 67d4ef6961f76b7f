"""Compress every fine-tune of a recipe into an adapter."""

from pathlib import Path

from hf_tsv.hub import Hub
from hf_tsv.job.opened import load
from hf_tsv.job.options import AdapterOptions, Options
from hf_tsv.linalg.ranks import parse_keep
from hf_tsv.merging.progress import Progress
from hf_tsv.publish.check import Pushing
from hf_tsv.recipe import Recipe, as_compression
from hf_tsv.record import AdaptersRecord, MergeRecord
from hf_tsv.verbs.merge import DEFAULTS, merge


def compress(
    recipe: Recipe | str | Path,
    out: str | Path,
    keep: str | None = None,
    options: Options = DEFAULTS,
    *,
    adapters: AdapterOptions | None = None,
    push_to_hub: Pushing | str | None = None,
    hub: Hub | None = None,
    progress: Progress | None = None,
) -> MergeRecord | AdaptersRecord:
    """Compress every fine-tuned model of a recipe into an adapter on the base (TSV-C).

    The same as `merge` of the recipe with `tsv_c` in place of other methods. `keep` and `adapters` replace the recipe's
    parameters and its `adapters`, and the lock file shows the result. OUT appears once PEFT has loaded every adapter
    and all are correct. An interrupted job resumes where it stopped, and gives the same bytes.

    Args:
        recipe: A recipe, or the path of its file.
        out: The output folder; it must not exist, or must be empty.
        keep: How much of each task's change to keep: `10%` or `10MB` (bytes of an adapter), `rank=16`, `fraction=0.5`
            (of the smaller side of a matrix), `energy=0.9` or `error=0.1`. None for the recipe's rule, or else the
            paper's fraction, 1 / (number of tasks).
        options: Options of the job.
        adapters: Adapter settings that replace those of the recipe.
        push_to_hub: The repository to push the adapters to: `user/name`, or `user/name-{task}` for one per task.
        hub: The connection to the Hub.
        progress: Notified of the work done.

    Returns:
        The record of the output; `pushed` lists where it was pushed.

    Raises:
        HfTsvError: anything a person can correct.
    """
    recipe = compression_of(recipe, keep, adapters)
    return merge(recipe, out, options, push_to_hub=push_to_hub, hub=hub, progress=progress)


def compression_of(recipe: Recipe | str | Path, keep: str | None, adapters: AdapterOptions | None) -> Recipe:
    """Return the recipe of a compression, with `tsv_c`, `keep` and `adapters` in it. Errors are those of `compress`."""
    # Written into the recipe, so that the lock file shows them and a later run needs no flags.
    rule = parse_keep(keep) if keep else None
    return as_compression(load(recipe), rule, adapters.settings if adapters else None)
