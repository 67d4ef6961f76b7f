"""The scores of an output, its base and its fine-tuned models."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from hf_tsv.checkpoints.protocol import Checkpoint
from hf_tsv.files.names import LOCK_FILE
from hf_tsv.hub import Hub
from hf_tsv.merging.progress import Progress, Silent
from hf_tsv.recipe import load_recipe
from hf_tsv.record.record import read_record, write_record
from hf_tsv.sources.fetching import fetch
from hf_tsv.sources.models import open_sources
from hf_tsv.verbs.card import card


def evaluate(
    out: str | Path,
    suite: str | Path,
    *,
    results: str | Path | None = None,
    device: str | None = None,
    hub: Hub | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score an output, its base and its fine-tuned models on a suite; the scores go into record and card.

    A score that is known for the same weights, task and data isn't computed again: an interrupted evaluation resumes
    where it was.

    Args:
        out: An output of `merge` or `compress`.
        suite: A suite file: see `hf_tsv.evaluation.suite`.
        results: The file of known scores; `OUT/evaluation.jsonl` unless given. Outputs of the same fine-tunes may
            share a file.
        device: Of torch; by default a GPU if there is one.
        hub: How to reach the Hub.
        progress: Notified of the work done.

    Returns:
        Plain data, as `hf_tsv.evaluation.summarize` describes it.

    Raises:
        HfTsvError: anything a person can correct; known scores are not lost.
    """
    from hf_tsv.evaluation import Results, load_suite, made, prepare, score_all, summarize
    from hf_tsv.verbs.restore import open_task

    out, hub = Path(out), hub or Hub()
    tasks = load_suite(suite)
    record = read_record(out)
    recipe = load_recipe(out / LOCK_FILE)
    sources = fetch(open_sources(recipe, hub), hub)

    def restored(task: str) -> Checkpoint:
        return open_task(out, task, base=None, hub=hub).checkpoint

    prepared = prepare(tasks, sources, partial(made, out, record, restored))
    scores = Results(Path(results) if results else out / "evaluation.jsonl")
    score_all(tasks, prepared, scores, device or default_device(), progress or Silent())
    record["evaluation"] = summarize(tasks, prepared, scores)
    write_record(record, out)
    card(out)
    return dict(record["evaluation"])


def default_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
