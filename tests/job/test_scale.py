"""Large models: a plan from headers takes seconds, and a merge the memory that it was allowed."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import hf_tsv
from hf_tsv.checkpoints.protocol import Shard, TensorInfo
from hf_tsv.checkpoints.writer import METADATA, layout
from hf_tsv.merging.cost import largest_bytes
from hf_tsv.merging.plan import plan_shards
from tests.support import models


def llama3_70b() -> list[TensorInfo]:
    """meta-llama/Meta-Llama-3-70B, 141 GB in bfloat16."""
    layer = {
        "self_attn.q_proj": (8192, 8192), "self_attn.k_proj": (1024, 8192), "self_attn.v_proj": (1024, 8192),
        "self_attn.o_proj": (8192, 8192), "mlp.gate_proj": (28672, 8192), "mlp.up_proj": (28672, 8192),
        "mlp.down_proj": (8192, 28672), "input_layernorm": (8192,), "post_attention_layernorm": (8192,),
    }  # fmt: skip
    shapes = {f"model.layers.{i}.{n}.weight": shape for i in range(80) for n, shape in layer.items()}
    ends = {"model.embed_tokens.weight": (128256, 8192), "lm_head.weight": (128256, 8192), "model.norm.weight": (8192,)}
    return [TensorInfo(name, shape, "BF16") for name, shape in (shapes | ends).items()]


def write_sparse(folder: Path, shards: tuple[Shard, ...]) -> None:
    """A checkpoint that takes no room: headers, and holes where the tensors would be."""
    folder.mkdir()
    weight_map = {}
    for shard in shards:
        header, _ = layout(shard.tensors, METADATA)
        with (folder / shard.file).open("wb") as file:
            file.write(header)
            file.truncate(len(header) + shard.nbytes)
        weight_map |= {info.name: shard.file for info in shard.tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_plan_of_eight_70b_models_takes_seconds(tmp_path: Path) -> None:
    shards = plan_shards(llama3_70b(), "5GB")
    for name in ("base", *(f"t{t}" for t in range(8))):
        write_sparse(tmp_path / name, shards)
    recipe = models.recipe(tmp_path, tasks=8)
    started = time.process_time()
    plan = hf_tsv.plan(recipe)
    assert time.process_time() - started < 5
    assert len(plan.steps) == 723
    assert plan.bytes_out == sum(info.nbytes for info in llama3_70b()) > 141e9
    assert plan.bytes_in == 9 * plan.bytes_out
    assert largest_bytes(plan) < 40e9


# What a process takes beyond its starting point while it merges one model. A tiny merge before has loaded the code.
MERGE = """
import re, sys
from pathlib import Path
import hf_tsv
held = lambda what: int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
warm_up, recipe, out, allowed = sys.argv[1:]
hf_tsv.merge(warm_up, out + "-warm-up", hf_tsv.Options(max_memory=int(allowed)))
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = held("VmRSS")
hf_tsv.merge(recipe, out, hf_tsv.Options(max_memory=int(allowed)))
print(held("VmHWM") - before)
"""


def save_square(folder: Path, tensors: int, side: int) -> None:
    """A base and two fine-tunes of so many square matrices."""
    for seed, name in enumerate(("base", "t0", "t1")):
        (folder / name).mkdir(parents=True)
        generator = torch.Generator().manual_seed(seed)
        weights = {f"layers.{i}.w.weight": torch.randn(side, side, generator=generator) for i in range(tensors)}
        save_file(weights, folder / name / "model.safetensors", metadata={"format": "pt"})
        (folder / name / "config.json").write_text("{}")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a new peak")
@pytest.mark.parametrize(
    ("method", "tensors", "side", "allowed"), [("linear", 60, 1024, 60_000_000), ("tsv_m", 130, 384, 18_000_000)]
)
def test_a_model_larger_than_the_memory_allowed_is_merged_in_it(
    method: str, tensors: int, side: int, allowed: int, tmp_path: Path
) -> None:
    """Beyond what the same merge takes of matrices that weigh nothing: threads, plan, record and journal."""
    sides = {"warm-up": 8, "weightless": 8, "large": side}
    recipes = {}
    for name, own_side in sides.items():
        save_square(tmp_path / name, 2 if name == "warm-up" else tensors, own_side)
        recipes[name] = str(models.recipe(tmp_path / name, method, tasks=2))
    model = (tmp_path / "large" / "base" / "model.safetensors").stat().st_size
    assert model > 4 * allowed

    def taken(name: str) -> int:
        arguments = [recipes["warm-up"], recipes[name], str(tmp_path / f"{name}-out"), str(allowed)]
        done = subprocess.run([sys.executable, "-c", MERGE, *arguments], capture_output=True, text=True, check=True)
        return int(done.stdout)

    baseline, large = taken("weightless"), taken("large")
    # What is in use at once is `allowed` at most; what was in use before and is free again, which malloc keeps for each
    # thread, is no more than that. Whoever held one whole model would take more than four times `allowed`.
    assert 0 < large < baseline + 2 * allowed < model
