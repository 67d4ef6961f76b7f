"""Score everything that a suite asks for, once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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

SCORING = "1"  # counts up whenever the same model and suite give another score than before


@dataclass(frozen=True)
class Prepared:
    """A task with all that its scores are made from.

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
        more: What is scored beside them, given the base and the recipe's task.

    Raises:
        HfTsvError: examples, heads or fine-tuned models that aren't there, all of them told; or transformers isn't.
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
            known_models = originals(sources, own)
            prepared.append(Prepared(task, own, (*known_models, *more(known_models[0], own)), examples, head))
        except HfTsvError as error:
            problems.extend(error.problems)
    if problems:
        raise HfTsvError(problems)
    return prepared


def _finetuned(suite: Suite, task: AnyTask, known: Sequence[str]) -> str | None:
    """The recipe's task that a task belongs to; one that belongs to none is for the base and the merged model."""
    if task.finetuned is not None and task.finetuned not in known:
        raise HfTsvError(
            f"{suite.where(task)}: 'finetuned' of '{task.name}' is no task of the recipe, expected one of"
            f" {', '.join(known)} but got '{task.finetuned}'."
        )
    return task.finetuned or (task.name if task.name in known else None)


def score_all(suite: Suite, prepared: Sequence[Prepared], results: Results, device: str, progress: Progress) -> None:
    """Score every model on every task, but for what `results` holds, and put it there.

    Raises:
        HfTsvError: a model can't be loaded, or doesn't fit its task.
    """
    pairs = [(one, entrant) for one in prepared for entrant in one.entrants]
    progress.begin(len(pairs))
    held: tuple[tuple[Any, ...], Any] | None = None
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for one, entrant in sorted(pairs, key=lambda pair: pair[1].label):  # a body serves several heads
            key, name = score_key(suite, one, entrant), f"{entrant.label} on {one.task.name}"
            if results.get(key):
                progress.advance(1, name)
                continue
            wanted = _body_key(one, entrant)
            if held is None or held[0] != wanted:
                held = None  # gone before the next comes
                held = wanted, load_model(entrant, one.task, suite.file.dtype, device)
            score = _scored(suite, one, entrant, held[1], progress, name)
            results.put(
                ScoreLine(
                    key=key,
                    score=score.value,
                    examples=score.examples,
                    task=one.task.name,
                    model=entrant.label,
                    metric=_metric(one.task),
                )
            )
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


def _body_key(one: Prepared, entrant: Contestant) -> tuple[Any, ...]:
    """Tasks whose heads the suite gives share one body."""
    task = one.task
    if isinstance(task, Classification) and one.head and entrant.adapter is None and entrant.label in (BASE, MERGED):
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
    inputs = load_processor(entrant) if isinstance(task, ImageClassification) else load_tokenizer(entrant)
    return accuracy(model, inputs, task, one.examples, one.head, suite, advance)


def _metric(task: AnyTask) -> str:
    return task.score if isinstance(task, LmEval) else task.metric


def summarize(suite: Suite, prepared: Sequence[Prepared], results: Results) -> Evaluation:
    """What the record keeps of an evaluation."""
    import transformers

    tasks = {one.task.name: _task(suite, one, results) for one in prepared}
    # Scores of different metrics have no mean; relative ones do, whatever the metric.
    has_one_metric = len({scores.metric for scores in tasks.values()}) == 1
    relative = [scores.relative for scores in tasks.values() if scores.relative]
    return Evaluation(
        suite=SuiteEntry(file=suite.source.name, sha256=suite.sha256, seed=suite.file.seed, dtype=suite.file.dtype),
        versions=EvaluationVersions(
            hf_tsv=__version__, torch=str(torch.__version__), transformers=transformers.__version__
        ),
        tasks=tasks,
        mean=MeanScores(
            scores=_means([scores.scores for scores in tasks.values()]) if has_one_metric else {},
            relative=_means(relative),
        ),
    )


def _task(suite: Suite, one: Prepared, results: Results) -> TaskScores:
    scores = {entrant.label: _kept(results, score_key(suite, one, entrant)) for entrant in one.entrants}
    values = {label: score.value for label, score in scores.items()}
    return TaskScores(
        kind=one.task.kind,
        metric=_metric(one.task),
        higher_is_better=one.task.higher_is_better,
        data=_data(one.task),
        data_sha256=one.examples.sha256 if one.examples else None,
        examples=scores[BASE].examples,
        scores=values,
        relative=_relative(one.task, values),
    )


def _data(task: AnyTask) -> str:
    """What is said of the data: a data set's id, or a file's name without its folder."""
    if isinstance(task, LmEval):
        return task.task
    data = task.data
    return data.hub if isinstance(data, HubData) else Path(data).name


def _kept(results: Results, key: str) -> Score:
    score = results.get(key)
    assert score is not None
    return score


def _relative(task: AnyTask, values: Mapping[str, float]) -> dict[str, float]:
    own = values.get(FINETUNED)
    if not own:
        return {}
    return {k: v / own if task.higher_is_better else own / v for k, v in values.items() if v or task.higher_is_better}


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """By model, over all rows; without the models that some row lacks."""
    return {label: fmean(row[label] for row in rows) for label in _in_all(rows)}


def _in_all(rows: Sequence[Mapping[str, float]]) -> Iterator[str]:
    return (label for label in (rows[0] if rows else {}) if all(label in row for row in rows))
