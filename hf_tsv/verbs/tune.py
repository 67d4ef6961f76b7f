"""Choose the scales of a merge, or the lambdas of its masks, on validation data."""

from pathlib import Path
from typing import TYPE_CHECKING

from hf_tsv.hub import Hub
from hf_tsv.job.opened import load, open_recipe
from hf_tsv.merging.plan import check_on_base
from hf_tsv.merging.progress import Progress, Silent
from hf_tsv.merging.resources import Resources
from hf_tsv.recipe import Recipe
from hf_tsv.verbs.evaluate import default_device

if TYPE_CHECKING:
    from hf_tsv.evaluation.options import Search
    from hf_tsv.evaluation.tuning import Tuned  # needs transformers and peft


def tune(
    recipe: Recipe | str | Path,
    suite: str | Path,
    search: "Search | None" = None,
    *,
    results: str | Path = "tuning.jsonl",
    device: str | None = None,
    workers: int | None = None,
    hub: Hub | None = None,
    progress: Progress | None = None,
) -> "Tuned":
    """Choose the scale of a merge, one per group of tensors, by the scores of a suite on validation data.

    With `tall_mask`, choose the lambda of each task's mask, by the score of that task's model. Tensors whose method
    has neither are merged as the recipe says. The merge is computed once; choices that differ only in scale or lambda
    need no further decomposition. The merge, the base and two models stay in memory.

    Args:
        recipe: A recipe, or the path of its file, with a method that has a `scale`, or with `tall_mask`.
        suite: A suite file. Its data should differ from the data on which the merge is reported.
        search: The values to try; `hf_tsv.Search()` by default.
        results: The file of known scores; an interrupted search resumes from it.
        device: A torch device; by default a GPU if there is one.
        workers: The number of tensors merged at the same time; by default one per core.
        hub: The connection to the Hub.
        progress: Notified of the evaluations.

    Returns:
        The chosen values, their mean score, and the text of the tuned recipe.

    Raises:
        HfTsvError: any error that a person can correct.
    """
    from hf_tsv.evaluation import Results, load_suite, prepare, tuning
    from hf_tsv.evaluation.options import Search
    from hf_tsv.evaluation.tunable import at_scale_one

    recipe = load(recipe)
    tasks = load_suite(suite)
    progress = progress or Silent()
    # At scale 1 and unrounded, so that a candidate only has to multiply the merged change.
    opened = open_recipe(at_scale_one(recipe), hub or Hub()).fetched(progress)
    planned, sources = opened.plan, opened.sources
    check_on_base(planned, "scales are tried on")
    # No outputs to score: besides the base and the fine-tuned models, the search scores only its own candidates.
    prepared = prepare(tasks, sources, lambda base, task: ())
    return tuning.tune(
        planned,
        recipe,
        tuning.Validation(tasks, prepared, Results(Path(results)), device or default_device()),
        search or Search(),
        resources=Resources.of(workers, None),
        progress=progress,
    )
