"""`hf-tsv eval`: score an output."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_tsv.cli._flags import with_flags
from hf_tsv.cli._options import DeviceOfTorch, Talk
from hf_tsv.cli._told import WorkProgress, interrupted, out, told
from hf_tsv.job.options import Access

EPILOG = (
    "A suite: `tasks: [{name: math, kind: text-classification, data: math.jsonl}]`. Its name is that of the recipe's"
    " task (or give `finetuned`). Kinds: text-classification and image-classification (data in .jsonl, .json, .csv or"
    " .tsv; keys text or image, label, head, pooling, max_length), perplexity (data: a text file; context), lm-eval"
    " (task, score, num_fewshot). Any task: limit. The suite: seed, batch_size, dtype."
)

if TYPE_CHECKING:
    from hf_tsv.record import Evaluation


@told
@with_flags
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="An output of merge or compress.", show_default=False)],
    suite: Annotated[Path, typer.Option("--suite", metavar="FILE", help="The tasks: a YAML file.")],
    where: DeviceOfTorch,
    access: Access,
    talk: Talk,
    results: Annotated[
        Path | None,
        typer.Option("--results", metavar="FILE", help="File of known scores (default: OUT/evaluation.jsonl)."),
    ] = None,
) -> None:
    """Score an output, its base and its fine-tunes on the tasks of a suite, and add the scores to its record and card.
    An interrupted evaluation resumes where it stopped."""
    from hf_tsv.hub import Hub
    from hf_tsv.verbs.evaluate import evaluate

    hub = Hub(token=access.token, cache_dir=access.cache_dir)
    try:
        with WorkProgress("Evaluating", quiet=talk.quiet) as progress:
            evaluation = evaluate(folder, suite, results=results, device=where.device, hub=hub, progress=progress)
    except KeyboardInterrupt:
        interrupted("Interrupted. Complete scores are saved; run the same command again to resume.")
    if talk.json:
        print(json.dumps(evaluation.model_dump(mode="json")))
    else:
        show(evaluation)


def show(evaluation: "Evaluation") -> None:
    """Print one row per task and one column per model: the score, and in brackets its share of the fine-tune's."""
    from rich.markup import escape
    from rich.table import Table

    labels: dict[str, None] = {}  # in the order in which they first occur
    for row in evaluation.tasks.values():
        labels |= dict.fromkeys(row.scores)
    table = Table("task", "metric", box=None, pad_edge=False, header_style="bold")
    for label in labels:
        table.add_column(label, justify="right")
    for task, row in evaluation.tasks.items():
        metric = row.metric + ("" if row.higher_is_better else " (lower is better)")
        cells = [_cell(row.scores.get(label), row.relative.get(label)) for label in labels]
        table.add_row(escape(task), escape(metric), *cells)
    mean = evaluation.mean
    mean_cells = [_cell(mean.scores.get(label), mean.relative.get(label)) for label in labels]
    table.add_section()
    table.add_row("mean", "", *mean_cells)
    out.print(table)


def _cell(score: float | None, relative: float | None) -> str:
    """Return the text of a score and its share of the fine-tuned model's. Either can be missing.

    Scores in different metrics have no mean.
    """
    shown = "" if score is None else f"{score:.4g}"
    if relative is not None:
        shown = f"{shown} ({relative:.1%})"
    return shown.strip()
