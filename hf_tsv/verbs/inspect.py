"""Inspect what each fine-tuned model changed, and where they clash."""

from pathlib import Path

from hf_tsv import inspection
from hf_tsv.hub import Hub
from hf_tsv.job.opened import open_recipe
from hf_tsv.job.options import Limits
from hf_tsv.merging.progress import Progress, Silent
from hf_tsv.recipe import Recipe

DEFAULTS = Limits()


def inspect(
    recipe: Recipe | str | Path,
    limits: Limits = DEFAULTS,
    *,
    hub: Hub | None = None,
    progress: Progress | None = None,
) -> inspection.Summary:
    """Inspect what each fine-tuned model of a recipe changed, and where they clash.

    Args:
        recipe: A recipe, or the path of its file. Its methods and weights don't matter, only which tensors they merge.
        limits: Limits on the use of the machine. Task vectors are inspected on the CPU, whatever the device.
        hub: The connection to the Hub.
        progress: Notified of the work done.

    Returns:
        A summary of the findings; `plain()` gives it as plain data.

    Raises:
        HfTsvError: any error that a person can correct.
    """
    progress = progress or Silent()
    opened = open_recipe(recipe, hub or Hub()).fetched(progress)
    return inspection.summarize(inspection.inspect_plan(opened.plan, limits.resources(), progress))
