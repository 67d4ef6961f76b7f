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
    assert max(map(plan.working_bytes, plan.steps)) < 40e9


PYTHONS_OWN = 8_000_000  # stacks and buffers of threads, plan, record, freed memory that is kept; measured: 3 MB

MERGE = """
import re, sys
from pathlib import Path
import hf_tsv
held = lambda what: int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
hf_tsv.merge(sys.argv[1], sys.argv[2] + "-small", max_memory=int(sys.argv[4]))
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = held("VmRSS")
hf_tsv.merge(sys.argv[3], sys.argv[2], max_memory=int(sys.argv[4]))
print(held("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a new peak")
@pytest.mark.parametrize("method", ["linear", "tsv_m"])
def test_a_model_larger_than_the_memory_allowed_is_merged_in_it(method: str, tmp_path: Path) -> None:
    """Measured: what the large merge takes beyond a tiny one, which has loaded the same code."""
    large, small = tmp_path / "large", tmp_path / "small"
    count, wide, allowed = (60, 1024, 60_000_000) if method == "linear" else (130, 384, 18_000_000)
    for folder, tensors, side in ((large, count, wide), (small, 2, 8)):
        for seed, name in enumerate(("base", "t0", "t1")):
            (folder / name).mkdir(parents=True)
            generator = torch.Generator().manual_seed(seed)
            weights = {f"layers.{i}.w.weight": torch.randn(side, side, generator=generator) for i in range(tensors)}
            save_file(weights, folder / name / "model.safetensors", metadata={"format": "pt"})
            (folder / name / "config.json").write_text("{}")
    assert (large / "base" / "model.safetensors").stat().st_size > 4 * allowed
    recipes = [str(models.recipe(folder, method, tasks=2)) for folder in (small, large)]
    command = [sys.executable, "-c", MERGE, recipes[0], str(tmp_path / "out"), recipes[1], str(allowed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < allowed + PYTHONS_OWN
