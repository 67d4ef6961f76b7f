"""Plan what a merge would do, from headers alone."""

from pathlib import Path

from hf_tsv.hub import Hub
from hf_tsv.job.opened import open_recipe
from hf_tsv.merging.plan import DEFAULT_SHARD_SIZE, Plan
from hf_tsv.recipe import Recipe


def plan(
    recipe: Recipe | str | Path, *, max_shard_size: int | str = DEFAULT_SHARD_SIZE, hub: Hub | None = None
) -> Plan:
    """Plan what a merge would do, from the models' headers alone.

    Args:
        recipe: A recipe, or the path of its file.
        max_shard_size: Maximum size of a weight file, in bytes or as `5GB`.
        hub: The connection to the Hub.

    Raises:
        HfTsvError: the recipe is wrong, a model can't be read, or they don't fit together; every mistake is reported.
    """
    return open_recipe(recipe, hub or Hub(), max_shard_size=max_shard_size).plan
