"""Evaluation suites of a few sentences."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer
from tokenizers import models as token_models
from tokenizers.pre_tokenizers import Whitespace

from hf_tsv.recipe import to_yaml

WORDS = ["[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz"]
TEXTS = ["a b c", "d e", "f g h i j", "k", "l m n o", "p q r", "s t u v", "w x", "y z a", "b d f h", "c e g", "x y z"]


def tokenizer(folder: Path) -> Any:
    """A word for each letter, saved in the folder."""
    words = Tokenizer(token_models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    made = tf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16)
    made.save_pretrained(folder)
    return made


def examples(folder: Path, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Twelve texts with random labels below `count`, as data.jsonl."""
    labels = torch.randint(count, (len(TEXTS),), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=True)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def suite(folder: Path, *tasks: dict[str, Any], **more: Any) -> Path:
    """A suite file of these tasks."""
    path = folder / "suite.yaml"
    path.write_text(to_yaml({**more, "tasks": list(tasks)}))
    return path


def text_task(name: str = "t0", **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "text-classification", "data": "data.jsonl", **more}
