"""Every bundled recipe parses and plans, against headers made from its models' configurations."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import torch
import transformers as tf
from ruamel.yaml import YAML
from torch import nn

from benchmarks.papers import copy_suite, suite_of
from hf_tsv.checkpoints.aligned import aligned
from hf_tsv.evaluation import load_suite
from hf_tsv.merging.plan import Plan, make_plan
from hf_tsv.recipe import ModelRef, load_recipe
from hf_tsv.recipe.bundled import bundled
from tests.merging.test_plan import Headers

RECIPES = sorted(bundled("recipes").glob("*.yaml"))
CLIP = {  # size and patch: the vision encoder's configuration, and the text encoder's
    "base-patch32": ({"patch_size": 32}, {}),
    "base-patch16": ({"patch_size": 16}, {}),
    "large-patch14": (
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
        },
        {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    ),
}


def clip_base(size: str) -> nn.Module:
    vision, text = CLIP[size]
    return tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=768 if text else 512))


def clip_vision(size: str) -> nn.Module:
    return tf.CLIPVisionModel(tf.CLIPVisionConfig(**CLIP[size][0]))


def flan_t5() -> nn.Module:
    sizes = {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "feed_forward_proj": "gated-gelu"}
    return tf.T5ForConditionalGeneration(tf.T5Config(**sizes, tie_word_embeddings=False))


def llama_3b() -> nn.Module:
    sizes = {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24}
    return tf.LlamaModel(tf.LlamaConfig(vocab_size=128256, num_key_value_heads=8, head_dim=128, **sizes))


def minilm() -> nn.Module:
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    return tf.BertModel(tf.BertConfig(**sizes))


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{f"openai/clip-vit-{size}": partial(clip_base, size) for size in CLIP},
    **{f"tanganke/clip-vit-{size}_": partial(clip_vision, size) for size in CLIP},
    **dict.fromkeys(("google/flan-t5-base", "tanganke/flan-t5-base_glue-"), flan_t5),
    **dict.fromkeys(("meta-llama/Llama-3.2-3B", "MergeBench/Llama-3.2-3B_"), llama_3b),
    ".demo/": minilm,
}


@cache
def shapes(start: str) -> dict[str, tuple[tuple[int, ...], str]]:
    with torch.device("meta"):
        model = MODELS[start]()
    return {name: (tuple(tensor.shape), "F32") for name, tensor in model.state_dict().items()}


def headers(ref: ModelRef) -> Headers:
    return Headers(shapes(next(start for start in MODELS if ref.text.startswith(start))), ref.text)


def plan_of(path: Path) -> Plan:
    recipe = load_recipe(path)
    base = headers(recipe.base)
    return make_plan(recipe, base, [aligned(headers(model.ref), base) for model in recipe.models])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_bundled_recipe_plans(path: Path) -> None:
    planned = plan_of(path)
    assert len(planned.merged) > len(planned.steps) / 3
    assert not planned.parts
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", [path for path in RECIPES if "demo" not in path.stem], ids=lambda path: path.stem)
def test_a_bundled_recipe_has_its_suite(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert suite_of(path.stem, recipe).is_file()
    suite = load_suite(copy_suite(path.stem, recipe, tmp_path))
    scored, tasks = [task.name for task in suite.file.tasks], [model.name for model in recipe.models]
    not_scored = {"stsb", "coding"} & set(tasks)  # for want of a metric, as the suites say
    assert sorted(scored) == sorted(set(tasks) - not_scored)


def test_the_tasks_that_a_suite_includes_come_along(tmp_path: Path) -> None:
    name = "flan-t5-base-glue-tsv-m"
    suite = load_suite(copy_suite(name, load_recipe(bundled("recipes") / f"{name}.yaml"), tmp_path))
    for task in suite.file.tasks:
        written = YAML(typ="safe", pure=True).load((tmp_path / task.include / f"{task.name}.yaml").read_text("utf-8"))
        assert written["task"] == task.task
        assert written["dataset_name"] == task.name
