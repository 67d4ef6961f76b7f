"""Zero-shot heads of CLIP as plain linear heads on the vision encoder's pooled output, which `hf-tsv eval` takes.

CLIP compares the projected image with each class's text embedding: t_c . (P x) / |P x|. The length is the same for all
classes, so that the head (t_c P) on x itself gives the same class. No network but what transformers needs.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from benchmarks.jobs import RUNNERS
from benchmarks.peers import FUSION_BENCH


def write_heads(model: str, tasks: Sequence[str], folder: Path) -> None:
    """A file a task in `folder`, from FusionBench's prompts and the text encoder of a CLIP model."""
    from transformers import AutoTokenizer, CLIPModel

    command = [FUSION_BENCH.python, str(RUNNERS / "clip_prompts.py"), *tasks]
    prompts: Mapping[str, list[list[str]]] = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    clip, tokenizer = CLIPModel.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    folder.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        save_file({"weight": head(clip, tokenizer, prompts[task])}, folder / f"{task}.safetensors")


@torch.inference_mode()
def head(clip: Any, tokenizer: Any, prompts: Sequence[Sequence[str]]) -> Tensor:
    """The head's weight, (C, d), of C classes, each with its prompts: the mean of their text embeddings of length 1."""
    classes = []
    for of_one in prompts:
        encoded = tokenizer(list(of_one), padding=True, return_tensors="pt")
        embedded = clip.text_projection(clip.text_model(**encoded).pooler_output)
        classes.append(functional.normalize(embedded, dim=-1).mean(dim=0))
    texts = functional.normalize(torch.stack(classes), dim=-1)  # (C, p)
    return (texts @ clip.visual_projection.weight).contiguous()
