"""A model on a task -> one number."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hf_tsv.errors import HfTsvError, MethodError
from hf_tsv.evaluation.contestants import label_names
from hf_tsv.evaluation.data import DataError, Examples, Head, image, label_numbers
from hf_tsv.evaluation.suite import ImageClassification, Labelled, LmEval, Perplexity, Suite, TextClassification

Advance = Callable[[float], None]  # called with the share of the work just done


@dataclass(frozen=True)
class Score:
    """A score, and of how many examples (for perplexity: predicted tokens) it is the mean."""

    value: float
    examples: int


@torch.inference_mode()
def accuracy(
    model: Any, inputs: Any, task: Labelled, examples: Examples, head: Head | None, suite: Suite, advance: Advance
) -> Score:
    """The share of examples whose most likely label is their own.

    Args:
        model: A model of transformers, with a head unless `head` is given.
        inputs: Its tokenizer, or image processor.
        task: How the examples are read.
        examples: The labelled examples.
        head: A classifier on its embeddings; None for the model's own head.
        suite: For the batch size, and messages.
        advance: Notified of the work done.
    """
    names = label_names(model) if head is None else {name: i for i, name in enumerate(head.labels)}
    count = model.config.num_labels if head is None else len(head.weight)
    labels = label_numbers(examples.labels, names, count, suite.where(task))
    right = 0
    for chosen in _batches(task, examples, suite.file.batch_size):
        encoded = _encoded(inputs, task, examples, chosen).to(model.device)
        # (batch, C)
        logits = model(**encoded).logits if head is None else _by_head(model, encoded, task, head, suite)
        right += int((logits.argmax(dim=-1).cpu() == labels[chosen]).sum())
        advance(len(chosen) / len(examples.inputs))
    return Score(right / len(examples.inputs), len(examples.inputs))


def _batches(task: Labelled, examples: Examples, size: int) -> list[list[int]]:
    """Texts of like length together: little is spent on padding, and the order is the same each time."""
    order = list(range(len(examples.inputs)))
    if isinstance(task, TextClassification):
        lengths = [sum(map(len, map(str, texts))) for texts in examples.inputs]
        order.sort(key=lambda i: (lengths[i], i))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _encoded(inputs: Any, task: Labelled, examples: Examples, chosen: Sequence[int]) -> Any:
    rows = [examples.inputs[i] for i in chosen]  # one tuple an example
    if isinstance(task, ImageClassification):
        return inputs(images=[image(task, examples, row[0]) for row in rows], return_tensors="pt")
    columns = [list(map(str, column)) for column in zip(*rows, strict=True)]  # two for pairs of texts
    most = task.max_length if isinstance(task, TextClassification) else None
    if most is None and inputs.model_max_length > 10**6:  # what transformers writes for "not known"
        most = 512
    return inputs(*columns, padding=True, truncation=True, max_length=most, return_tensors="pt")


def _by_head(model: Any, encoded: Any, task: Labelled, head: Head, suite: Suite) -> Tensor:
    embeddings = embedding(model, encoded, task)
    if embeddings.shape[1] != head.weight.shape[1]:
        raise DataError(
            f"{suite.where(task)}: the head of '{task.name}' reads {head.weight.shape[1]} numbers, but"
            f" {type(model).__name__} gives {embeddings.shape[1]}. Name the head that belongs to this model."
        )
    return head(embeddings)


def embedding(model: Any, encoded: Any, task: Labelled) -> Tensor:
    """What a task's head reads, (N, d): as the task's `pooling` and `normalize` say."""
    # Of a model of two towers, such as CLIP, the one for these inputs; and of a model with a head the part below it.
    encoder = getattr(model, "vision_model" if isinstance(task, ImageClassification) else "text_model", model)
    encoder = getattr(encoder, getattr(encoder, "base_model_prefix", "") or "-", encoder)
    output = encoder(**encoded)
    if task.pooling == "pooled":
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            raise MethodError(f"'{task.name}': {type(model).__name__} has no pooler. Set pooling: mean or cls")
    elif task.pooling == "cls":
        pooled = output.last_hidden_state[:, 0]
    else:
        pooled = _mean(output.last_hidden_state, encoded.get("attention_mask"))
    return functional.normalize(pooled, dim=-1) if task.normalize else pooled


def _mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over the positions that aren't padding: (N, d) from hidden states (N, L, d)."""
    if mask is None:
        return hidden.mean(dim=1)
    weights = mask.unsqueeze(-1).to(hidden.dtype)  # (N, L, 1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


@torch.inference_mode()
def perplexity(
    model: Any, tokenizer: Any, task: Perplexity, examples: Examples, suite: Suite, advance: Advance
) -> Score:
    """exp of the mean negative log-likelihood of every token but the first of each window, given those before it."""
    longest = getattr(model.config, "max_position_embeddings", None) or task.context
    width = min(task.context, longest)
    ids = tokenizer(examples.text, return_tensors="pt", verbose=False)["input_ids"][0][: task.limit]
    windows = [ids[start : start + width] for start in range(0, len(ids), width)]
    # A last window of one token predicts nothing.
    windows = [window for window in windows if len(window) > 1]
    if not windows:
        raise DataError(f"{suite.where(task)}: the text of '{task.name}' is shorter than two tokens. Use a longer one.")
    total, predicted = 0.0, 0
    # Full windows in batches, the shorter rest alone: padding would have to be left out of the mean.
    full = [window for window in windows if len(window) == width]
    batches = [torch.stack(full[i : i + suite.file.batch_size]) for i in range(0, len(full), suite.file.batch_size)]
    batches += [window[None] for window in windows if len(window) < width]
    for batch in batches:
        logits = model(input_ids=batch.to(model.device)).logits[:, :-1].float()  # (batch, width - 1, vocabulary)
        wanted = batch[:, 1:].to(model.device)
        total += float(functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum").double())
        predicted += wanted.numel()
        advance(batch.numel() / len(ids))
    return Score(math.exp(total / predicted), predicted)


def harness(model: Any, tokenizer: Any, task: LmEval, suite: Suite) -> Score:
    """A score of lm-evaluation-harness.

    Raises:
        HfTsvError: lm-eval isn't installed, doesn't know the task, or the task has no such score.
    """
    lm_eval, models, tasks = _lm_eval(suite, task)
    include = str(suite.path(task.include)) if task.include else None
    try:
        outcome = lm_eval.simple_evaluate(
            model=models.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=suite.file.batch_size),
            tasks=[task.task],
            num_fewshot=task.num_fewshot,
            limit=task.limit,
            task_manager=tasks.TaskManager(include_path=include),
            random_seed=suite.file.seed,
            numpy_random_seed=suite.file.seed,
            torch_random_seed=suite.file.seed,
            fewshot_random_seed=suite.file.seed,
            bootstrap_iters=0,  # for standard errors, which are not shown
            log_samples=False,
        )
    except (KeyError, ValueError, OSError) as error:
        raise HfTsvError(f"{suite.where(task)}: lm-eval can't run '{task.task}': {error}") from error
    # Scores are called `NAME,FILTER`; most have the filter `none`.
    values = outcome["results"][task.task]
    scores = {name.removesuffix(",none"): value for name, value in values.items() if isinstance(value, float)}
    if task.score not in scores:
        known = ", ".join(name for name in scores if "stderr" not in name)
        raise HfTsvError(f"{suite.where(task)}: '{task.task}' has no score '{task.score}', expected one of {known}.")
    return Score(scores[task.score], int(outcome["n-samples"][task.task]["effective"]))


def _lm_eval(suite: Suite, task: LmEval) -> tuple[Any, Any, Any]:
    try:
        import lm_eval
        from lm_eval import tasks
        from lm_eval.models import huggingface
    except ImportError:
        raise HfTsvError(
            f"{suite.where(task)}: '{task.name}' needs lm-eval, which isn't installed. Run pip install"
            " 'hf-tsv[lm-eval]'"
        ) from None
    return lm_eval, huggingface, tasks
