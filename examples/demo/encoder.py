"""A sentence encoder: texts in, unit vectors out."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

MAX_TOKENS = 24
BATCHES_A_POOL = 16

Tokens = list[int]  # one text's token ids


class Encoder:
    """A transformer whose embedding of a text is the mean of its last hidden states, scaled to length 1.

    That is how all-MiniLM-L6-v2 was trained to be read.
    """

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        """Load the weights from one folder and the tokenizer from another; fine-tunes share the base's."""
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types for it
        self.model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)

    def tokens(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of each text, cut at 24."""
        ids: list[Tokens] = self.tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
        return ids

    def __call__(self, texts: Sequence[Tokens]) -> Tensor:
        """Embeddings of one batch, (len(texts), d) float32, with gradients where they are on."""
        ids, mask = _padded(texts, self.tokenizer.pad_token_id)
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state  # (batch, tokens, d)
        shown = mask.unsqueeze(-1).to(hidden.dtype)
        return functional.normalize((hidden * shown).sum(1) / shown.sum(1), dim=-1)

    @torch.inference_mode()
    def embed(self, texts: Sequence[Tokens], *, batch: int = 64) -> Tensor:
        """Embeddings of any number of texts, (len(texts), d), in their order; like lengths are batched together."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        by_length = [texts[i] for i in order]
        batches = [by_length[start : start + batch] for start in range(0, len(order), batch)]
        embeddings = torch.cat([self(chosen) for chosen in batches])
        # Back from the order of lengths to that of the texts.
        return embeddings[torch.tensor(order).argsort()]


def batches(texts: Sequence[Tokens], size: int, draw: random.Random) -> Iterator[list[int]]:
    """Indices of every text once, in random batches of like lengths: little is spent on padding."""
    order = list(range(len(texts)))
    draw.shuffle(order)
    found: list[list[int]] = []
    for start in range(0, len(order), size * BATCHES_A_POOL):
        pool = sorted(order[start : start + size * BATCHES_A_POOL], key=lambda i: len(texts[i]))
        found += [pool[i : i + size] for i in range(0, len(pool), size)]
    draw.shuffle(found)
    yield from found


def _padded(texts: Sequence[Tokens], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both (batch, longest text) int64."""
    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[pad] * (longest - len(text))] for text in texts])
    lengths = torch.tensor([len(text) for text in texts])
    return ids, (torch.arange(longest) < lengths.unsqueeze(1)).long()
