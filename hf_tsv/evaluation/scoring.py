"""Scoring: a model on a task -> one number."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hf_tsv.errors import HfTsvError, MethodError
from hf_tsv.evaluation.contestants import label_names
from hf_tsv.evaluation.data import DataError, Examples, Head, image, label_numbers
from hf_tsv.evaluation.suite import ImageClassification, Labelled, LmEval, Perplexity, Suite, TextClassification

Advance = Callable[[float], None]  # called with the share of the work just done, 0 to 1


@dataclass(frozen=True)
class Score:
    """A mean score, and the number of examples (for perplexity: of predicted tokens) behind it."""

    value: float
    examples: int


@torch.inference_mode()
def accuracy(
    model: Any, inputs: Any, task: Labelled, examples: Examples, head: Head | None, suite: Suite, advance: Advance
) -> Score:
    """Compute the share of examples whose most likely label is their own.

    Args:
        model: A transformers model, with a head unless `head` is given.
        inputs: The model's tokenizer or image processor.
        task: The task, which says how its examples are read.
        examples: The labelled examples.
        head: A classifier on the model's embeddings; None for the model's own head.
        suite: The suite, used for its batch size and for messages.
        advance: A callback for the share of the work just done.
    """
    names = label_names(model) if head is None else {name: i for i, name in enumerate(head.labels)}
    count = model.config.num_labels if head is None else len(head.weight)
    labels = label_numbers(examples.labels, names, count, suite.where(task))
    order = list(range(len(examples.inputs)))
    if isinstance(task, TextClassification):
        # Texts of similar length together need little padding; the index makes the order the same each time.
        lengths = [sum(map(len, map(str, texts))) for texts in examples.inputs]
        order.sort(key=lambda i: (lengths[i], i))
    right = 0
    for start in range(0, len(order), suite.file.batch_size):
        chosen = order[start : start + suite.file.batch_size]
        rows = [examples.inputs[i] for i in chosen]  # one tuple per example
        if isinstance(task, ImageClassification):
            images = [image(task, examples, row[0]) for row in rows]
            encoded = inputs(images=images, return_tensors="pt")
        else:
            columns = [list(map(str, column)) for column in zip(*rows, strict=True)]  # two columns for pairs of texts
            most = task.max_length
            # transformers writes a huge number for "not known".
            if most is None and inputs.model_max_length > 10**6:
                most = 512
            encoded = inputs(*columns, padding=True, truncation=True, max_length=most, return_tensors="pt")
        encoded = encoded.to(model.device)
        if head is None:
            logits = model(**encoded).logits  # (batch, C)
        else:
            embeddings = embedding(model, encoded, task)  # (batch, d)
            if embeddings.shape[1] != head.weight.shape[1]:
                raise DataError(
                    f"{suite.where(task)}: the head of '{task.name}' reads {head.weight.shape[1]} numbers, but"
                    f" {type(model).__name__} gives {embeddings.shape[1]}. Name the head that belongs to this model."
                )
            logits = head(embeddings)  # (batch, C)
        predicted = logits.argmax(dim=-1).cpu()  # (batch,)
        right += int((predicted == labels[chosen]).sum())
        advance(len(chosen) / len(order))
    return Score(right / len(order), len(order))


def embedding(model: Any, encoded: Any, task: Labelled) -> Tensor:
    """Compute the embeddings that a task's head reads, (N, d), as its `pooling` and `normalize` say."""
    # A model with two towers, such as CLIP, gives the one for these inputs; one with a head, the part below it.
    tower = "vision_model" if isinstance(task, ImageClassification) else "text_model"
    encoder = getattr(model, tower, model)
    prefix = getattr(encoder, "base_model_prefix", "")
    if prefix:
        encoder = getattr(encoder, prefix, encoder)
    output = encoder(**encoded)
    if task.pooling == "pooled":
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            raise MethodError(f"'{task.name}': {type(model).__name__} has no pooler. Set pooling: mean or cls")
    elif task.pooling == "cls":
        pooled = output.last_hidden_state[:, 0]
    else:
        hidden = output.last_hidden_state  # (N, L, d)
        mask = encoded.get("attention_mask")  # (N, L), 0 at padding, which stays out of the mean
        if mask is None:
            pooled = hidden.mean(dim=1)
        else:
            weights = mask.unsqueeze(-1).to(hidden.dtype)  # (N, L, 1)
            pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
    return functional.normalize(pooled, dim=-1) if task.normalize else pooled  # (N, d)


@torch.inference_mode()
def perplexity(
    model: Any, tokenizer: Any, task: Perplexity, examples: Examples, suite: Suite, advance: Advance
) -> Score:
    """Compute exp of the mean negative log-likelihood of all tokens but each window's first, given those before."""
    longest = getattr(model.config, "max_position_embeddings", None) or task.context
    width = min(task.context, longest)
    # verbose=False: no warning that the whole text is too long for the model, because its windows aren't.
    encoded = tokenizer(examples.text, return_tensors="pt", verbose=False)
    ids = encoded["input_ids"][0][: task.limit]  # (tokens,)
    windows = [ids[start : start + width] for start in range(0, len(ids), width)]
    # A last window of one token predicts nothing.
    windows = [window for window in windows if len(window) > 1]
    if not windows:
        raise DataError(f"{suite.where(task)}: the text of '{task.name}' is shorter than two tokens. Use a longer one.")
    # Full windows go in batches, the shorter rest alone, so that no padding has to be left out of the mean.
    full = [window for window in windows if len(window) == width]
    size = suite.file.batch_size
    batches = [torch.stack(full[i : i + size]) for i in range(0, len(full), size)]  # (batch, width) each
    batches += [window[None] for window in windows if len(window) < width]
    total = 0.0  # sum of negative log-likelihoods, in nats
    predicted = 0
    for batch in batches:
        batch = batch.to(model.device)
        logits = model(input_ids=batch).logits[:, :-1].float()  # (batch, width - 1, vocabulary)
        wanted = batch[:, 1:]  # each position predicts the token after it
        loss = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")
        total += float(loss.double())
        predicted += wanted.numel()
        advance(batch.numel() / len(ids))
    return Score(math.exp(total / predicted), predicted)


def harness(model: Any, tokenizer: Any, task: LmEval, suite: Suite) -> Score:
    """Compute a score with lm-evaluation-harness.

    Raises:
        HfTsvError: lm-eval isn't installed, doesn't know the task, or the task has no such score.
    """
    try:
        import lm_eval
        from lm_eval import tasks
        from lm_eval.models import huggingface
    except ImportError:
        raise HfTsvError(
            f"{suite.where(task)}: '{task.name}' needs lm-eval, which isn't installed. Run pip install"
            " 'hf-tsv[lm-eval]'"
        ) from None
    include = str(suite.path(task.include)) if task.include else None
    try:
        outcome = lm_eval.simple_evaluate(
            model=huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=suite.file.batch_size),
            tasks=[task.task],
            num_fewshot=task.num_fewshot,
            limit=task.limit,
            task_manager=tasks.TaskManager(include_path=include),
            random_seed=suite.file.seed,
            numpy_random_seed=suite.file.seed,
            torch_random_seed=suite.file.seed,
            fewshot_random_seed=suite.file.seed,
            bootstrap_iters=0,  # only for standard errors, which aren't shown
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
