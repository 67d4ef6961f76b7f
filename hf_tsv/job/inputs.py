"""What every verb begins with: the recipe, and the plan of it from opened models."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from hf_tsv.errors import DOWNLOADING
from hf_tsv.hub import Hub
from hf_tsv.merging.plan import Plan, make_plan
from hf_tsv.merging.progress import Progress
from hf_tsv.recipe import Recipe, load_recipe
from hf_tsv.sources.models import Source
from hf_tsv.sources.tokenizers import tokenizer_folder, tokenizers_look_alike
from hf_tsv.vocabulary.matching import match_vocabularies


def loaded(recipe: Recipe | str | Path) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe)


def plan_of(recipe: Recipe, sources: Sequence[Source], max_shard_size: int | str, hub: Hub) -> Plan:
    """The plan of opened models, their rows matched by token where their vocabularies differ.

    Raises:
        PlanError: recipe and models don't fit together; every mistake is told.
    """
    base, *tasks = (source.checkpoint for source in sources)
    folders = [partial(tokenizer_folder, source, hub) for source in sources]
    matched = match_vocabularies(recipe, base, tasks, folders, look_alike=partial(tokenizers_look_alike, sources, hub))
    return make_plan(
        recipe,
        matched.base,
        matched.finetuned,
        max_shard_size=max_shard_size,
        vocabulary=matched.vocabulary,
        clashes=matched.clashes,
    )


def watched(downloads: int, progress: Progress) -> Callable[[int], None]:
    """What tells a person of a download of so many bytes."""
    if downloads:
        progress.begin(downloads)
    return lambda nbytes: progress.advance(nbytes, DOWNLOADING)
