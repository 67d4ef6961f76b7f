"""Score an output, its base and its fine-tuned models."""

from functools import partial
from pathlib import Path

import torch

from hf_tsv.checkpoints.protocol import Checkpoint
from hf_tsv.errors import OutputError
from hf_tsv.files.names import LOCK_FILE
from hf_tsv.hub import Hub
from hf_tsv.job.opened import open_recipe
from hf_tsv.merging.progress import Progress, Silent
from hf_tsv.record import Evaluation, RestoredRecord, read_record, write_record
from hf_tsv.verbs.card import card


def evaluate(
    out: str | Path,
    suite: str | Path,
    *,
    results: str | Path | None = None,
    device: str | None = None,
    hub: Hub | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score an output, its base and its fine-tuned models on a suite; add the scores to the record and the card.

    A score that is known for the same weights, task and data isn't computed again: an interrupted evaluation resumes
    where it stopped.

    Args:
        out: An output of `merge` or `compress`.
        suite: A suite file: see `hf_tsv.evaluation.suite`.
        results: The file of known scores; `OUT/evaluation.jsonl` by default. Outputs of the same fine-tunes can
            share a file.
        device: A torch device; by default a GPU if there is one.
        hub: The connection to the Hub.
        progress: Notified of the work done.

    Returns:
        The evaluation, as it is now in the record.

    Raises:
        HfTsvError: any error that a person can correct; known scores are not lost.
    """
    from hf_tsv.evaluation import Results, load_suite, made, prepare, score_all, summarize
    from hf_tsv.verbs.restore import open_task

    out, hub = Path(out), hub or Hub()
    tasks = load_suite(suite)
    record = read_record(out)
    if isinstance(record, RestoredRecord):
        raise OutputError(f"{out}: is one task's restored checkpoint. Score the output that it was restored from")
    progress = progress or Silent()
    opened = open_recipe(out / LOCK_FILE, hub).fetched(progress)

    # For masks, and where PEFT loads less than an adapter's folder holds, the restored checkpoint is scored too.
    def restored(task: str) -> Checkpoint:
        return open_task(out, task, base=None, hub=hub).checkpoint

    prepared = prepare(tasks, opened.sources, partial(made, out, record, restored))
    scores = Results(Path(results) if results else out / "evaluation.jsonl")
    # Each score goes into the file as soon as it is known, so an interruption loses at most one.
    score_all(tasks, prepared, scores, device or default_device(), progress)
    evaluation = summarize(tasks, prepared, scores)
    write_record(record.with_evaluation(evaluation), out)
    card(out)
    return evaluation


def default_device() -> str:
    """Return `cuda` if there is a GPU, otherwise `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"
