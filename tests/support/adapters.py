"""Random adapters that PEFT makes, and what it merges them to."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support import models


def save(model: nn.Module, folder: Path) -> Path:
    """A model of transformers, or any other module as its tensors alone."""
    if isinstance(model, tf.PreTrainedModel):
        return models.save(model, folder)
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    return folder


def adapt(folder: Path, make: Callable[[], nn.Module], seed: int, **config: Any) -> Path:
    """A random adapter of PEFT's in `folder`/a{seed}, and what PEFT merges it to in `folder`/t{seed}."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = make()
        model.load_state_dict(reread(model, folder / "base"))
        config = {"r": 4, "lora_alpha": 6, **config}
        adapted = peft.get_peft_model(model, peft.LoraConfig(**config))
        adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")
        randomize(adapted, seed)
        adapted.save_pretrained(folder / f"a{seed}")
        merged = adapted.merge_and_unload()
    save(merged, folder / f"t{seed}")
    return folder / f"a{seed}"


def reread(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """A model's state as it is in the folder: transformers loads and saves it under other names than it runs with."""
    if isinstance(model, tf.PreTrainedModel):
        return type(model).from_pretrained(folder).state_dict()
    return load_file(folder / "model.safetensors")


def randomize(model: nn.Module, seed: int) -> None:
    """Trained weights far from the base's, so that the dense way has many digits of the change."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def zoo(folder: Path, make: Callable[[], nn.Module], **config: Any) -> Path:
    """A base, two adapters a1 and a2, and the same merged: t1 and t2."""
    torch.manual_seed(0)
    save(make(), folder / "base")
    for seed in (1, 2):
        adapt(folder, make, seed, **config)
    return folder


def recipe(folder: Path, tasks: list[str], more: str = "", method: str = "tsv_m") -> Path:
    """A recipe file that merges adapters or models of such a zoo: DIR in a task's reference is its folder."""
    lines = "".join(f"  - {{model: {task.replace('DIR', str(folder))}, name: n{i}}}\n" for i, task in enumerate(tasks))
    path = folder / "recipe.yaml"
    path.write_text(f"merge_method: {method}\nbase_model: {folder}/base\nmodels:\n{lines}{more}")
    return path
