"""Score everything in a suite, once."""

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

SCORING = "1"  # raised whenever the same model and suite give another score than before


@dataclass(frozen=True)
class Prepared:
    """A task with all that its scores are computed from.

    Attributes:
        finetuned: The recipe's task that it belongs to, if any.
        entrants: The models, the base first.
        examples: None for what lm-eval reads itself.
        head: What the suite puts on embeddings, if anything.
    """

    task: AnyTask
    finetuned: str | None
    entrants: tuple[Contestant, ...]
    examples: Examples | None
    head: Head | None


def prepare(
    suite: Suite, sources: Sequence[Source], more: Callable[[Contestant, str | None], Sequence[Contestant]]
) -> list[Prepared]:
    """Read everything but models.

    Args:
        suite: What is scored.
        sources: The recipe's models, fetched, the base first.
        more: Further models to score, given the base and the recipe's task.

    Raises:
        HfTsvError: examples, heads or fine-tuned models are missing, all of them in one error; or transformers is.
    """
    check_installed()
    known = [source.task for source in sources if source.task]
    prepared: list[Prepared] = []
    problems: list[str] = []
    for task in suite.file.tasks:
        try:
            own = _finetuned(suite, task, known)
            examples = None if isinstance(task, LmEval) else read_examples(suite, task)
            head = read_head(suite, task) if isinstance(task, Classification) else None
            entrants = originals(sources, own)
            base = entrants[0]
            prepared.append(Prepared(task, own, (*entrants, *more(base, own)), examples, head))
        except HfTsvError as error:
            problems.extend(error.problems)
    if problems:
        raise HfTsvError(problems)
    return prepared


def _finetuned(suite: Suite, task: AnyTask, known: Sequence[str]) -> str | None:
    """The recipe's task that a task belongs to; None where only the base and the merged model are scored on it."""
    if task.finetuned is not None and task.finetuned not in known:
        raise HfTsvError(
            f"{suite.where(task)}: 'finetuned' of '{task.name}' is '{task.finetuned}', which the recipe doesn't have."
            f" Use one of {', '.join(known)}."
        )
    return task.finetuned or (task.name if task.name in known else None)


def score_all(suite: Suite, prepared: Sequence[Prepared], results: Results, device: str, progress: Progress) -> None:
    """Score every model on every task, except for what `results` contains already, and add it there.

    Raises:
        HfTsvError: a model can't be loaded, or doesn't fit its task.
    """
    pairs = [(one, entrant) for one in prepared for entrant in one.entrants]
    progress.begin(len(pairs))
    # One model in memory at a time; several heads of the suite may share a body, so pairs go by model.
    loaded_key: tuple[str, ...] | None = None
    model: Any = None
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for one, entrant in sorted(pairs, key=lambda pair: pair[1].label):
            key, name = score_key(suite, one, entrant), f"{entrant.label} on {one.task.name}"
            if results.get(key):
                progress.advance(1, name)
                continue
            body_key = _body_key(one, entrant)
            if body_key != loaded_key:
                loaded_key, model = None, None  # freed before the next one is loaded
                model = load_model(entrant, one.task, suite.file.dtype, device)
                loaded_key = body_key
            score = _scored(suite, one, entrant, model, progress, name)
            line = ScoreLine(
                key=key,
                score=score.value,
                examples=score.examples,
                task=one.task.name,
                model=entrant.label,
                metric=_metric(one.task),
            )
            results.put(line)
    finally:
        torch.use_deterministic_algorithms(False)


def score_key(suite: Suite, one: Prepared, entrant: Contestant) -> str:
    """The hash of all that a score depends on."""
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


def _body_key(one: Prepared, entrant: Contestant) -> tuple[str, ...]:
    """What tasks have in common that are scored with the same loaded model: those whose heads the suite gives."""
    task = one.task
    is_shared = one.head is not None and entrant.adapter is None and entrant.label in (BASE, MERGED)
    if is_shared and isinstance(task, Classification):
        return entrant.label, task.kind, task.pooling
    return entrant.label, task.kind, task.name


def _scored(suite: Suite, one: Prepared, entrant: Contestant, model: Any, progress: Progress, name: str) -> Score:
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
    """What the record says about an evaluation.

    A score `relative` to the fine-tuned model's is 1 where it is as good and more where it is better, whatever the
    metric.
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
        # Accuracies and perplexities have no mean; shares of the fine-tunes' scores do.
        mean=MeanScores(scores=_means(scores) if len(metrics) == 1 else {}, relative=_means(relative)),
    )


def _task(suite: Suite, one: Prepared, results: Results) -> TaskScores:
    values: dict[str, float] = {}
    examples = 0
    for entrant in one.entrants:
        score = results.get(score_key(suite, one, entrant))
        assert score is not None  # `score_all` ran before
        values[entrant.label] = score.value
        if entrant.label == BASE:
            examples = score.examples
    return TaskScores(
        kind=one.task.kind,
        metric=_metric(one.task),
        higher_is_better=one.task.higher_is_better,
        data=_data(one.task),
        data_sha256=one.examples.sha256 if one.examples else None,
        examples=examples,
        scores=values,
        relative=_relative(one.task, values),
    )


def _data(task: AnyTask) -> str:
    """What the record calls the data: a data set's id, or a file's name; its folder is nobody's business."""
    if isinstance(task, LmEval):
        return task.task
    data = task.data
    return data.hub if isinstance(data, HubData) else Path(data).name


def _relative(task: AnyTask, values: Mapping[str, float]) -> dict[str, float]:
    """Scores as shares of the fine-tuned model's; none where it has no score, or a score of 0."""
    own = values.get(FINETUNED)
    if not own:
        return {}
    if task.higher_is_better:
        return {label: value / own for label, value in values.items()}
    return {label: own / value for label, value in values.items() if value}


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """By model, over all rows; without the models that some row lacks."""
    if not rows:
        return {}
    means: dict[str, float] = {}
    for label in rows[0]:
        values = [row[label] for row in rows if label in row]
        if len(values) == len(rows):
            means[label] = fmean(values)
    return means
