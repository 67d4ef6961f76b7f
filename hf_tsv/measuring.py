"""What is measured: of task vectors before a merge, of models after it, and of a merge's scale."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_tsv import inspection
from hf_tsv.checkpoint import Checkpoint
from hf_tsv.hub import Hub
from hf_tsv.inputs import loaded, plan_of
from hf_tsv.outputs import LOCK_FILE
from hf_tsv.planner import DEFAULT_SHARD_SIZE, check_on_base
from hf_tsv.pushing import card
from hf_tsv.recipe import Recipe, load_recipe
from hf_tsv.record import read_record, write_record
from hf_tsv.run import Progress, Resources, Silent
from hf_tsv.sources import fetch, open_sources

if TYPE_CHECKING:
    from hf_tsv.tunable import By
    from hf_tsv.tuning import Tuned  # needs transformers and peft


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


def evaluate(
    out: str | Path,
    suite: str | Path,
    *,
    results: str | Path | None = None,
    device: str | None = None,
    hub: Hub | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score an output, its base and its fine-tuned models on a suite; what is measured goes into record and card.

    A score that is known for the same weights, task and data is not computed again: an evaluation that was stopped goes
    on where it was.

    Args:
        out: An output of `merge` or `compress`.
        suite: A suite file: see `hf_tsv.evaluation.suite`.
        results: Where scores are kept; `OUT/evaluation.jsonl` unless given. Outputs of one zoo may share a file.
        device: Of torch; a GPU where there is one unless given.
        hub: How to reach the Hub.
        progress: Told of the work done.

    Returns:
        Plain data, as `hf_tsv.evaluation.summarize` describes it.

    Raises:
        HfTsvError: anything a person can mend; nothing is lost by it.
    """
    from hf_tsv.evaluation import Results, load_suite, made, prepare, score_all, summarize
    from hf_tsv.restored import open_task

    out, hub = Path(out), hub or Hub()
    asked = load_suite(suite)
    record = read_record(out)
    recipe = load_recipe(out / LOCK_FILE)
    sources = fetch(open_sources(recipe, hub), hub)

    def restored(task: str) -> Checkpoint:
        return open_task(out, task, base=None, hub=hub).checkpoint

    prepared = prepare(asked, sources, partial(made, out, record, restored))
    kept = Results(Path(results) if results else out / "evaluation.jsonl")
    score_all(asked, prepared, kept, device or _default_device(), progress or Silent())
    record["evaluation"] = summarize(asked, prepared, kept)
    write_record(record, out)
    card(out)
    return dict(record["evaluation"])


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
    from hf_tsv.tunable import at_scale_one
    from hf_tsv.tuning import tune as search

    recipe, asked, hub = loaded(recipe), load_suite(suite), hub or Hub()
    unscaled = at_scale_one(recipe)
    sources = fetch(open_sources(unscaled, hub), hub)
    planned = plan_of(unscaled, sources, DEFAULT_SHARD_SIZE, hub)
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
        progress=progress or Silent(),
    )


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
