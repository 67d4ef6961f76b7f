"""What a merge would do, from headers alone."""

from pathlib import Path

from hf_tsv.hub import Hub
from hf_tsv.job.inputs import loaded, plan_of
from hf_tsv.merging.plan import DEFAULT_SHARD_SIZE, Plan
from hf_tsv.recipe import Recipe
from hf_tsv.sources.models import (
    open_sources,
)


def plan(
    recipe: Recipe | str | Path, *, max_shard_size: int | str = DEFAULT_SHARD_SIZE, hub: Hub | None = None
) -> Plan:
    """Decide what a merge would do, from the models' headers alone.

    Args:
        recipe: A recipe, or the path of its file.
        max_shard_size: Largest output file, in bytes or as `5GB`.
        hub: How to reach the Hub.

    Raises:
        HfTsvError: the recipe is wrong, a model can't be read, or they don't fit together; all of it is told.
    """
    recipe, hub = loaded(recipe), hub or Hub()
    return plan_of(recipe, open_sources(recipe, hub), max_shard_size, hub)
