"""Records as merges and compressions write them, and the folders that their cards need."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from hf_tsv.methods import METHODS
from hf_tsv.record import Record

VERSIONS = {"hf_tsv": "0.1.0", "numerics": "4", "torch": "2.9.1", "python": "3.12.3", "processor": "CPU"}
SHAS = ["1f2e3d4c5b6a79880112233445566778899aabbc", "a" * 40, "b0c1" * 10]


def typed(record: Mapping[str, Any]) -> Any:
    """A record as it is read from its file."""
    return TypeAdapter(Record).validate_json(json.dumps(record))


def tensor(shape: list[int], method: str = "tsv_m", kind: str = "linear", **more: Any) -> dict[str, Any]:
    return {"kind": kind, "shape": shape, "dtype": "BF16", "method": method, **more, "sha256": "0" * 64}


def source(model: str, task: str | None = None, revision: str | None = None) -> dict[str, Any]:
    role = "task" if task else "base"
    return {"role": role, "task": task, "model": model, "revision": revision, "fingerprint": None}


def a_record(sources: list[dict[str, Any]], tensors: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    used = {facts["method"] for facts in tensors.values()} - {"base"}
    return {
        "format": 2,
        "kind": "merge",
        "versions": VERSIONS,
        "sources": sources,
        "method": "tsv_m",
        "methods": {name: {"paper": METHODS[name].paper} for name in sorted(used)},
        "arithmetic": {"dtype": "float32", "svd": "exact"},
        "bytes": {"read": 0, "written": 0},
        "seconds": 1.5,
        "warnings": [],
        "files": ["model.safetensors"],
        "task_parts": {},
        "tensors": dict(tensors),
    } | more


def hub_merge() -> dict[str, Any]:
    """Three fine-tunes of a language model on the Hub, with methods and parameters that differ from layer to layer."""
    tensors: dict[str, Any] = {"model.embed_tokens.weight": tensor([49152, 576], "linear", "embedding")}
    for i, scale in enumerate((1.0, 1.25)):
        layer = f"model.layers.{i}"
        parameters = {"scale": scale, "cut": "noise"}
        notes = {"rank": [192, 192 - i, 190], "energy": [0.9712, 0.9655, 0.99 + i / 200]}
        tensors |= {
            f"{layer}.self_attn.q_proj.weight": tensor([576, 576], parameters=parameters, notes=notes),
            f"{layer}.self_attn.k_proj.weight": tensor([192, 576], "base", unchanged=True),
            f"{layer}.mlp.up_proj.weight": tensor([1536, 576], "ties", parameters={"density": (0.2, 0.3, 0.2)}),
            f"{layer}.input_layernorm.weight": tensor([576], parameters=parameters, kind="norm"),
        }
    tensors["lm_head.weight"] = tensor([49152, 576], "base", "head", why="the recipe says so")
    tensors["model.position_ids"] = tensor([1, 2048], "base", "other", why="I64 is not merged") | {"dtype": "I64"}
    sources = [
        source("example/small-lm", revision=SHAS[0]),
        source("example/small-lm-math", "math", SHAS[1]),
        source("example/small-lm", "code", SHAS[0]) | {"adapter": f"someone/small_lm-code@{SHAS[2]}"},
        source("example/small-lm", "chat", SHAS[1]),
    ]
    return a_record(sources, tensors)


def folder_merge() -> dict[str, Any]:
    """Two classifiers in local folders, with a head each that the merged encoder can't hold."""
    tensors = {
        "encoder.layer.0.dense.weight": tensor([384, 384], "task_arithmetic", parameters={"scale": 0.5}),
        "encoder.layer.0.dense.bias": tensor([384], "task_arithmetic", "bias", parameters={"scale": 0.5}),
        "logit_scale": tensor([], "task_arithmetic", "other", parameters={"scale": 0.5}),
        "pooler.weight": tensor([384, 384], "base", why="in no fine-tuned model"),
    }
    sources = [
        source("/home/alice/models/minilm"),
        source("/home/alice/models/minilm-reviews", "reviews"),
        source("../minilm-questions", "questions"),
    ]
    heads = ["classifier.weight", "classifier.bias", "classifier.norm.weight", "classifier.norm.bias"]
    return a_record(
        sources,
        {name: facts | {"dtype": "F32"} for name, facts in tensors.items()},
        method="task_arithmetic",
        task_parts={
            "reviews": {"file": "task_parts/reviews.safetensors", "tensors": heads[:2]},
            "questions": {"file": "task_parts/questions.safetensors", "tensors": heads},
        },
        warnings=[
            "/home/alice/My Recipes/recipe.yaml:3: there is no base_model: /home/alice/models/minilm stands in for it.",
            "1 tensors of the base are in no fine-tuned model and stay as they are: pooler.weight",
        ],
    )


def lock_of(record: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The pinned recipe of a record."""

    def reference(source: Mapping[str, Any]) -> str:
        model = f"{source['model']}@{source['revision']}" if source["revision"] else source["model"]
        return f"{model}+{source['adapter']}" if "adapter" in source else model

    base, *tasks = ({"model": reference(s), "name": s["task"]} for s in record["sources"])
    return {"merge_method": record["method"], "base_model": base["model"], "models": tasks, **more}


def output(folder: Path, lock: Mapping[str, Any], **configs: Any) -> Path:
    """What lies in a merged model's folder when its card is written; `config` stands for `config.json`."""
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text("merge_method: tsv_m  # as it was written\n")
    (folder / "recipe.lock.yaml").write_text(yaml.safe_dump(lock, sort_keys=False, allow_unicode=True), "utf-8")
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    return folder


def adapters_record() -> dict[str, Any]:
    """Two compressed fine-tunes, one under a stricter licence."""
    licences = ["apache-2.0", "apache-2.0", "llama3.1"]
    names = [("example/small-lm", None), ("example/small-lm-math", "math"), ("example/small-lm-code", "code")]
    sources = [source(model, task, sha) for (model, task), sha in zip(names, SHAS, strict=True)]
    for one, licence in zip(sources, licences, strict=True):
        one["terms"] = [
            {"license": licence, "language": ["en"], "datasets": [f"org/{one['task']}"] if one["task"] else []}
        ]
    facts = {
        "bytes": 1_234_567,
        "tensors": 4,
        "left_out": {},
        "in_sidecar": [],
        "errors": {},
        "energy": 0.912,
        "left_out_share": 0.088,
        "ranks": {
            f"layers.{i}.{name}.weight": rank for i in (0, 1) for name, rank in (("q", 8 + i), ("norm", "dense"))
        },
    }
    return {
        "format": 2,
        "kind": "adapters",
        "versions": VERSIONS,
        "sources": sources,
        "method": "tsv_c",
        "arithmetic": {"dtype": "float32", "svd": "exact"},
        "seconds": 1.5,
        "warnings": [],
        "checkpoint_bytes": {"math": 12_345_678, "code": 12_345_678},
        "adapters": {"math": {"faithful": facts}, "code": {"faithful": facts}},
    }
