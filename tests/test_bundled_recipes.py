"""Every bundled recipe parses and plans, against headers made from its models' configurations."""

from pathlib import Path

import pytest
import torch
import transformers as tf
from torch import nn

from hf_tsv.bundled import bundled
from hf_tsv.loaders import aligned
from hf_tsv.planner import Plan, make_plan
from hf_tsv.recipe import ModelRef, load_recipe

from .test_planner import Headers

RECIPES = sorted(bundled("recipes").glob("*.yaml"))
CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}


def clip_base() -> nn.Module:
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    return tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=CLIP_L, projection_dim=768))


def clip_vision() -> nn.Module:
    return tf.CLIPVisionModel(tf.CLIPVisionConfig(**CLIP_L))


def minilm() -> nn.Module:
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    return tf.BertModel(tf.BertConfig(**sizes))


MODELS = {
    "openai/clip-vit-large-patch14": clip_base,
    "tanganke/clip-vit-large-patch14_": clip_vision,
    ".demo/": minilm,
}


def headers(ref: ModelRef) -> Headers:
    make = next(make for start, make in MODELS.items() if ref.text.startswith(start))
    with torch.device("meta"):
        model = make()
    return Headers({name: (tuple(tensor.shape), "F32") for name, tensor in model.state_dict().items()}, ref.text)


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
