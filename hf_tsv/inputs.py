"""What every verb begins with: the recipe, and the plan of it from opened models."""

from collections.abc import Sequence
from pathlib import Path

from hf_tsv.planner import Plan, make_plan
from hf_tsv.recipe import Recipe, load_recipe
from hf_tsv.sources import Source


def loaded(recipe: Recipe | str | Path) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe)


def plan_of(recipe: Recipe, sources: Sequence[Source], max_shard_size: int | str) -> Plan:
    base, *tasks = sources
    return make_plan(recipe, base.checkpoint, [task.checkpoint for task in tasks], max_shard_size=max_shard_size)
