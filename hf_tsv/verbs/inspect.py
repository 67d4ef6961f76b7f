"""What each fine-tuned model changed, and where they clash."""

from pathlib import Path

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
) -> inspection.Summary:
    """Measure what each fine-tuned model of a recipe changed, and where they clash.

    Args:
        recipe: A recipe, or the path of its file. Its methods and weights don't matter, only which tensors it merges.
        workers: Tensors measured at the same time, one processor core each; by default one for each core.
        max_memory: Bytes that those tensors may take together; by default most of what is free.
        hub: How to reach the Hub.
        progress: Notified of the work done.

    Returns:
        Norms, cosines, interference and spectra by task, module type and layer, and advice.

    Raises:
        HfTsvError: anything a person can correct.
    """
    recipe, hub = loaded(recipe), hub or Hub()
    resources = Resources.of(workers, max_memory)
    planned = plan_of(recipe, fetch(open_sources(recipe, hub), hub), DEFAULT_SHARD_SIZE, hub)
    return inspection.summarize(inspection.inspect_plan(planned, resources, progress or Silent()))
