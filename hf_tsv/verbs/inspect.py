"""What each fine-tuned model changed, and where they clash."""

from pathlib import Path
from typing import Any

from hf_tsv import inspection
from hf_tsv.hub import Hub
from hf_tsv.job.inputs import loaded, plan_of
from hf_tsv.merging.plan import DEFAULT_SHARD_SIZE
from hf_tsv.merging.progress import Progress, Silent
from hf_tsv.merging.resources import Resources
from hf_tsv.recipe import Recipe
from hf_tsv.sources.fetching import fetch
from hf_tsv.sources.models import open_sources


def inspect(
    recipe: Recipe | str | Path,
    *,
    workers: int | None = None,
    max_memory: int | None = None,
    hub: Hub | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Look at what each fine-tuned model of a recipe changed, and where they clash.

    Args:
        recipe: A recipe, or the path of its file. Its methods and weights don't matter, only which tensors they merge.
        workers: Tensors in work at once, one processor core each; all cores unless given.
        max_memory: Bytes that the tensors in work may take together; most of what is free unless given.
        hub: How to reach the Hub.
        progress: Told of the work done.

    Returns:
        Plain data, as `hf_tsv.inspection.summarize` describes it.

    Raises:
        HfTsvError: anything a person can mend.
    """
    recipe, hub = loaded(recipe), hub or Hub()
    resources = Resources.of(workers, max_memory)
    planned = plan_of(recipe, fetch(open_sources(recipe, hub), hub), DEFAULT_SHARD_SIZE, hub)
    return inspection.summarize(inspection.inspect_plan(planned, resources, progress or Silent()))
