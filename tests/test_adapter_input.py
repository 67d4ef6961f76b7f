"""LoRA adapters as inputs: whatever PEFT saves merges as what PEFT makes of it, from the factors alone."""

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hf_tsv
from hf_tsv.errors import CheckpointError, MethodError
from hf_tsv.loaders import MemoryCheckpoint, open_adapter, open_checkpoint
from hf_tsv.methods import METHODS

from . import models
from .methods.test_tsv_m import error

ATTENTION = {"target_modules": ["q_proj", "v_proj"]}


class Oddities(nn.Module):
    """Kinds of modules that the small transformers don't have."""

    def __init__(self) -> None:
        super().__init__()
        self.cube = nn.Conv3d(3, 16, (1, 2, 3), bias=False)
        self.line = nn.Conv1d(12, 16, 3)
        self.point = nn.Conv2d(12, 16, 1)
        self.attention = nn.MultiheadAttention(16, 2)
        self.table = nn.Embedding(20, 16)


def gpt_oss() -> nn.Module:
    """Experts in one tensor, stored (in, out), and square."""
    return tf.GptOssForCausalLM(
        tf.GptOssConfig(
            vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2, pad_token_id=0,
        )
    )  # fmt: skip


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "linear": (models.llama, ATTENTION),
    "patterns": (
        models.llama,
        {
            "target_modules": ["q_proj", "v_proj", "gate_proj", "down_proj"],
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, r"^model\.layers\.1\.mlp\.(gate|down)_proj": 6},
            "alpha_pattern": {".*v_proj": 3, "1.self_attn.v_proj": 100},
        },
    ),
    "rslora": (models.llama, {**ATTENTION, "use_rslora": True, "rank_pattern": {"v_proj": 7}}),
    "conv1d of transformers": (models.gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "embedding and head": (models.llama, {"target_modules": ["embed_tokens", "lm_head", "o_proj"]}),
    "embedding alone": (models.bert, {"target_modules": ["word_embeddings", "dense"]}),
    "conv2d": (models.clip, {"target_modules": ["patch_embedding", "visual_projection", "k_proj"]}),
    "conv1d": (models.whisper, {"target_modules": ["conv1", "conv2", "fc1"]}),
    "oddities": (Oddities, {"target_modules": ["cube", "line", "point", "attention", "table"]}),
    "biases": (models.bert, {"target_modules": ["query", "value", "dense"], "lora_bias": True}),
    "all biases trained": (models.bert, {"target_modules": ["query"], "bias": "all"}),
    "biases of its own": (models.bert, {"target_modules": ["query", "key"], "bias": "lora_only"}),
    "modules to save": (models.bert, {"target_modules": ["query"], "modules_to_save": ["LayerNorm", "pooler"]}),
    "tokens": (models.bert, {"target_modules": ["query"], "trainable_token_indices": {"word_embeddings": [3, 1, 8]}}),
    "experts": (
        models.mixtral,
        {**ATTENTION, "target_parameters": ["experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"]},
    ),
    "down of the experts": (
        models.mixtral,
        {"target_modules": [], "target_parameters": ["experts.down_proj"], "rank_pattern": {"experts.down_proj": 2}},
    ),
    "experts in one tensor": (
        gpt_oss,
        {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
    "square experts alone": (gpt_oss, {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]}),
    "a square parameter": (models.gpt2, {"target_modules": [], "target_parameters": ["attn.c_proj.weight"]}),
    "names of transformers 5": (models.vit, {"target_modules": ["q_proj", "fc1"], "modules_to_save": ["classifier"]}),
}


def save(model: nn.Module, folder: Path) -> Path:
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
    lines = "".join(f"  - {{model: {task.replace('DIR', str(folder))}, name: n{i}}}\n" for i, task in enumerate(tasks))
    path = folder / "recipe.yaml"
    path.write_text(f"merge_method: {method}\nbase_model: {folder}/base\nmodels:\n{lines}{more}")
    return path


def merged(folder: Path, tasks: list[str], out: str, more: str = "", method: str = "tsv_m") -> dict[str, Tensor]:
    """Every tensor of the merge."""
    hf_tsv.merge(recipe(folder, tasks, more, method), folder / out)
    checkpoint = open_checkpoint(folder / out)
    return {name: checkpoint.read(name) for name in checkpoint.names()}


def assert_same_change(folder: Path, got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    base = open_checkpoint(folder / "base")
    assert got.keys() == want.keys()
    changed = [name for name in want if not torch.equal(want[name], base.read(name))]
    assert changed
    for name in want:
        if name in changed:
            origin = base.read(name).double()
            assert error(got[name].double() - origin, want[name].double() - origin) < tolerance, name
        else:
            assert torch.equal(got[name], want[name]), name


@pytest.mark.parametrize("case", CASES)
def test_merges_as_what_peft_makes_of_it(case: str, tmp_path: Path) -> None:
    make, config = CASES[case]
    folder = zoo(tmp_path, make, **config)
    got = merged(folder, ["DIR/base+DIR/a1", "DIR/a2"], "got")
    assert_same_change(folder, got, merged(folder, ["DIR/t1", "DIR/t2"], "want"))
