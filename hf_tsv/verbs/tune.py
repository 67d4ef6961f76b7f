"""The scale of a merge, chosen on validation data."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_tsv.hub import Hub
from hf_tsv.job.opened import load, open_recipe
from hf_tsv.merging.plan import check_on_base
from hf_tsv.merging.progress import Progress, Silent
from hf_tsv.merging.resources import Resources
from hf_tsv.recipe import Recipe

if TYPE_CHECKING:
    from hf_tsv.evaluation.tunable import By
    from hf_tsv.evaluation.tuning import Tuned  # needs transformers and peft
from hf_tsv.verbs.evaluate import _default_device


def tune(
    recipe: Recipe | str | Path,
    suite: str | Path,
    *,
    by: "By" = "kind",
    grid: Sequence[float] = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6),
    lambdas: Sequence[float] = (0.2, 0.3, 0.4, 0.5, 0.6),
    results: str | Path = "tuning.jsonl",
    device: str | None = None,
    workers: int | None = None,
    hub: Hub | None = None,
    progress: Progress | None = None,
) -> "Tuned":
    """Choose the scale of a merge, one for each group of tensors, by the scores of a suite on validation data.

    With `tall_mask` the lambda of each task's mask is chosen, by the score of that task's model. Tensors whose
    method has neither are merged as the recipe says. The merge is computed once; what differs in scale or lambda
    alone needs no further decomposition. It, the base and two models are held in memory.

    Args:
        recipe: A recipe, or the path of its file, with a method that has a `scale`, or with `tall_mask`.
        suite: A suite file. Its data should be others than those that the merge is reported on.
        by: What has a scale of its own: `all` have one, each `kind` of tensor, or each module `type`; and the same
            within each override.
        grid: The scales that are tried.
        lambdas: The masks' lambdas that are tried; the paper's unless given.
        results: Where scores are kept; a search that was stopped goes on from there.
        device: Of torch; a GPU where there is one unless given.
        workers: Tensors in work at once while merging; all cores unless given.
        hub: How to reach the Hub.
        progress: Told of the evaluations.

    Raises:
        HfTsvError: anything a person can mend.
    """
    from hf_tsv.evaluation import Results, load_suite, prepare
    from hf_tsv.evaluation.tunable import at_scale_one
    from hf_tsv.evaluation.tuning import tune as search

    recipe, asked, progress = load(recipe), load_suite(suite), progress or Silent()
    opened = open_recipe(at_scale_one(recipe), hub or Hub()).fetched(progress)
    planned, sources = opened.plan, opened.sources
    check_on_base(planned, "scales are tried on")
    return search(
        planned,
        recipe,
        asked,
        prepare(asked, sources, lambda base, task: ()),
        Results(Path(results)),
        by=by,
        grid=grid,
        lambdas=lambdas,
        device=device or _default_device(),
        resources=Resources.of(workers, None),
        progress=progress,
    )
