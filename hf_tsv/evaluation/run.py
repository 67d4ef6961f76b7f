"""Score every model on every task of a suite, each pair once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from hf_tsv._version import __version__
from hf_tsv.errors import HfTsvError
from hf_tsv.evaluation.contestants import (
    BASE,
    FINETUNED,
    MERGED,
    Contestant,
    load_model,
    load_processor,
    load_tokenizer,
    originals,
)
from hf_tsv.evaluation.data import Examples, Head, file_sha256, read_examples, read_head
from hf_tsv.evaluation.results import Results, key_of
from hf_tsv.evaluation.scoring import Score, accuracy, harness, perplexity
from hf_tsv.evaluation.suite import AnyTask, Classification, HubData, ImageClassification, LmEval, Perplexity, Suite
from hf_tsv.lora.skeleton import check_installed
from hf_tsv.merging.progress import Progress
from hf_tsv.record import Evaluation, EvaluationVersions, MeanScores, ScoreLine, SuiteEntry, TaskScores
from hf_tsv.sources.models import Source

SCORING = "1"  # incremented whenever the same model and suite give a different score than before


@dataclass(frozen=True)
class Prepared:
    """A task with everything that its scores are computed from.

    Attributes:
        task: The task in the suite.
        finetuned: The recipe's task that it belongs to, if any.
        entrants: The models to score, the base first.
        examples: The task's data; None for a task of lm-eval, which reads its own.
        head: The suite's classifier on embeddings, if any.
    """

    task: AnyTask
    finetuned: str | None
    entrants: tuple[Contestant, ...]
    examples: Examples | None
    head: Head | None


def prepare(
    suite: Suite, sources: Sequence[Source], more: Callable[[Contestant, str | None], Sequence[Contestant]]
) -> list[Prepared]:
    """Read everything except the models.

    Args:
        suite: The suite whose tasks are scored.
        sources: The recipe's models, fetched, the base first.
        more: A function that returns further models to score, given the base and the recipe's task.

    Raises:
        HfTsvError: examples, heads or fine-tuned models are missing, all in one error; or transformers isn't installed.
    """
    check_installed()
    known = [source.task for source in sources if source.task]
    prepared: list[Prepared] = []
    problems: list[str] = []
    for task in suite.file.tasks:
        try:
            own = task.finetuned
            if own is None:
                own = task.name if task.name in known else None
            elif own not in known:
                raise HfTsvError(
                    f"{suite.where(task)}: 'finetuned' of '{task.name}' is '{own}', which the recipe doesn't have."
                    f" Use one of {', '.join(known)}."
                )
            examples = None if isinstance(task, LmEval) else read_examples(suite, task)
            head = read_head(suite, task) if isinstance(task, Classification) else None
            entrants = originals(sources, own)
            base = entrants[0]
            entrants += more(base, own)
            prepared.append(Prepared(task, own, tuple(entrants), examples, head))
        except HfTsvError as error:
            problems.extend(error.problems)
    if problems:
        raise HfTsvError(problems)
    return prepared


def score_all(suite: Suite, prepared: Sequence[Prepared], results: Results, device: str, progress: Progress) -> None:
    """Score every model on every task, and add the scores to `results`; those already there aren't computed again.

    Raises:
        HfTsvError: a model can't be loaded, or doesn't fit its task.
    """
    pairs: list[tuple[Prepared, Contestant]] = []
    for one in prepared:
        pairs += [(one, entrant) for entrant in one.entrants]
    # One model is in memory at a time. Several heads of the suite may share a body, so pairs are sorted by model.
    pairs.sort(key=lambda pair: pair[1].label)
    progress.begin(len(pairs))
    loaded_key: tuple[str, ...] | None = None
    model: Any = None
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for one, entrant in pairs:
            task = one.task
            key = score_key(suite, one, entrant)
            name = f"{entrant.label} on {task.name}"
            if results.get(key):
                progress.advance(1, name)
                continue
            body_key = (entrant.label, task.kind, task.name)
            # Tasks with heads from the suite are scored with the same loaded model.
            has_shared_body = one.head is not None and entrant.adapter is None and entrant.label in (BASE, MERGED)
            if has_shared_body and isinstance(task, Classification):
                body_key = (entrant.label, task.kind, task.pooling)
            if body_key != loaded_key:
                loaded_key, model = None, None  # freed before the next one is loaded
                model = load_model(entrant, task, suite.file.dtype, device)
                loaded_key = body_key
            score = _scored(suite, one, entrant, model, progress, name)
            line = ScoreLine(
                key=key,
                score=score.value,
                examples=score.examples,
                task=task.name,
                model=entrant.label,
                metric=_metric(task),
            )
            results.put(line)
    finally:
        torch.use_deterministic_algorithms(False)


def score_key(suite: Suite, one: Prepared, entrant: Contestant) -> str:
    """Return the hash of everything that a score depends on."""
    import transformers

    return key_of(
        {
            "scoring": SCORING,
            "transformers": transformers.__version__,
            "task": one.task.settings,
            "seed": suite.file.seed,
            "batch_size": suite.file.batch_size,
            "dtype": suite.file.dtype,
            "data": one.examples and one.examples.sha256,
            "head": one.head and one.head.sha256,
            "label": entrant.label,
            "model": entrant.identity,
            "config": file_sha256(entrant.config_folder / "config.json"),
        }
    )


def _scored(suite: Suite, one: Prepared, entrant: Contestant, model: Any, progress: Progress, name: str) -> Score:
    """Score a loaded model on a task; `progress` shows the work under this name."""
    task = one.task
    if isinstance(task, LmEval):
        score = harness(model, load_tokenizer(entrant), task, suite)
        progress.advance(1, name)
        return score
    assert one.examples is not None

    def advance(share: float) -> None:
        progress.advance(share, name)

    if isinstance(task, Perplexity):
        return perplexity(model, load_tokenizer(entrant), task, one.examples, suite, advance)
    is_image = isinstance(task, ImageClassification)
    inputs = load_processor(entrant) if is_image else load_tokenizer(entrant)
    return accuracy(model, inputs, task, one.examples, one.head, suite, advance)


def _metric(task: AnyTask) -> str:
    return task.score if isinstance(task, LmEval) else task.metric


def summarize(suite: Suite, prepared: Sequence[Prepared], results: Results) -> Evaluation:
    """Return an evaluation's entry in the record.

    A score `relative` to the fine-tuned model's is 1 if it is as good and larger if it is better, for every metric.
    """
    import transformers

    tasks = {one.task.name: _task(suite, one, results) for one in prepared}
    metrics = {scores.metric for scores in tasks.values()}
    scores = [scores.scores for scores in tasks.values()]
    relative = [scores.relative for scores in tasks.values() if scores.relative]
    return Evaluation(
        suite=SuiteEntry(file=suite.source.name, sha256=suite.sha256, seed=suite.file.seed, dtype=suite.file.dtype),
        versions=EvaluationVersions(
            hf_tsv=__version__, torch=str(torch.__version__), transformers=transformers.__version__
        ),
        tasks=tasks,
        # Accuracies and perplexities have no common mean; scores relative to the fine-tuned models do.
        mean=MeanScores(scores=_means(scores) if len(metrics) == 1 else {}, relative=_means(relative)),
    )


def _task(suite: Suite, one: Prepared, results: Results) -> TaskScores:
    """Return one task's entry in the record."""
    task = one.task
    if isinstance(task, LmEval):
        data = task.task
    elif isinstance(task.data, HubData):
        data = task.data.hub
    else:
        data = Path(task.data).name  # the folder is left out, because it is private
    values: dict[str, float] = {}
    examples = 0
    for entrant in one.entrants:
        score = results.get(score_key(suite, one, entrant))
        assert score is not None  # `score_all` ran before
        values[entrant.label] = score.value
        if entrant.label == BASE:
            examples = score.examples
    own = values.get(FINETUNED)
    if not own:  # there is no ratio to a missing score, or to 0
        relative = {}
    elif task.higher_is_better:
        relative = {label: value / own for label, value in values.items()}
    else:
        relative = {label: own / value for label, value in values.items() if value}
    return TaskScores(
        kind=task.kind,
        metric=_metric(task),
        higher_is_better=task.higher_is_better,
        data=data,
        data_sha256=one.examples.sha256 if one.examples else None,
        examples=examples,
        scores=values,
        relative=relative,
    )


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Compute each model's mean over all rows; models that a row lacks are left out."""
    if not rows:
        return {}
    means: dict[str, float] = {}
    for label in rows[0]:
        values = [row[label] for row in rows if label in row]
        if len(values) == len(rows):
            means[label] = fmean(values)
    return means
