"""mergekit's recipes: written as its users write them, they run as they are or are refused with a reason."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import hf_tsv
from hf_tsv.errors import HfTsvError, RecipeError
from hf_tsv.merging.plan import Step
from hf_tsv.merging.planner import make_plan
from hf_tsv.recipe import Recipe, parse_recipe
from tests.support import models
from tests.support.headers import Headers
from tests.support.tensors import read_all
from tests.support.tolerances import WEIGHTS

TWO = "  - model: org/math\n  - model: org/code\n"


def recipe(text: str) -> Recipe:
    return parse_recipe(text)


def rule(text: str, name: str = "model.layers.0.mlp.up_proj.weight", depth: float = 0.0) -> tuple[dict, tuple]:
    found = recipe(text).rule_at(name, "linear", depth)
    return dict(found.parameters), found.weights


def test_dare_ties_with_densities_and_weights_per_model() -> None:
    text = """
models:
  - model: org/base
  - model: org/math
    parameters: {density: 0.53, weight: 0.4}
  - model: org/code
    parameters:
      density: 0.6
      weight: [0, 0.3, 0.7, 1]
merge_method: dare_ties
base_model: org/base
parameters: {int8_mask: true}
dtype: bfloat16
"""
    assert rule(text, depth=1.0) == ({"density": (0.53, 0.6)}, (0.4, 1.0))
    assert "int8_mask has no effect" in recipe(text).notes[0]


def test_della_with_its_own_parameters() -> None:
    text = f"""
merge_method: della_linear
base_model: org/base
models:
{TWO}
parameters: {{density: 0.7, epsilon: 0.1, lambda: 1.1, normalize: false, weight: 0.5}}
"""
    want = {"density": (0.7, 0.7), "epsilon": (0.1, 0.1), "scale": 1.1, "normalize": False}
    assert rule(text) == (want, (0.5, 0.5))


def test_breadcrumbs_with_gamma_by_filter() -> None:
    text = f"""
merge_method: breadcrumbs_ties
base_model: org/base
models:
{TWO}
parameters:
  density: 0.9
  gamma:
    - filter: mlp
      value: 0.05
    - value: 0.01
"""
    assert rule(text)[0]["gamma"] == (0.05, 0.05)
    assert rule(text, "model.norm.weight")[0]["gamma"] == (0.01, 0.01)


def test_slerp_with_gradients_by_filter() -> None:
    text = """
models:
  - model: org/chat
  - model: org/math
merge_method: slerp
base_model: org/chat
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: bfloat16
"""
    assert rule(text) == ({"t": 1.0}, (1.0,))
    assert rule(text, "model.norm.weight", 1.0)[0] == {"t": 0.5}
    assert [model.name for model in recipe(text).models] == ["math"]


SLICES = """
slices:
  - sources:
      - model: org/chat
        layer_range: [0, 2]
      - model: org/math
        layer_range: [0, 2]
        parameters: {weight: 2.0}
merge_method: slerp
base_model: org/chat
parameters: {t: [0, 1]}
"""


def test_one_slice_of_all_layers_is_the_models() -> None:
    read = recipe(SLICES)
    assert [(model.name, model.line) for model in read.models] == [("math", 6)]
    assert rule(SLICES, depth=0.5) == ({"t": 0.5}, (2.0,))
    assert read.layers == (2, 5)


def test_a_slice_of_all_layers_merges_and_one_of_some_is_refused(tmp_path: Path) -> None:
    folder = models.zoo(models.llama, tmp_path, tasks=1)
    (folder / "r.yaml").write_text(SLICES.replace("org/chat", f"{folder}/base").replace("org/math", f"{folder}/t0"))
    hf_tsv.merge(folder / "r.yaml", tmp_path / "out")
    merged, tuned, base = (read_all(tmp_path / name) for name in ("out", "t0", "base"))
    head, first = "lm_head.weight", "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(merged[first], base[first])
    torch.testing.assert_close(merged[head] - base[head], 2 * (tuned[head] - base[head]), rtol=0, atol=WEIGHTS)
    again = hf_tsv.load_recipe(tmp_path / "out" / "recipe.lock.yaml")
    assert [model.name for model in again.models] == ["t0"]
    (folder / "r.yaml").write_text((folder / "r.yaml").read_text().replace("[0, 2]", "[0, 1]"))
    with pytest.raises(HfTsvError, match=r"r\.yaml:5: 'layer_range' ends at 1, but the base has 2 layers"):
        hf_tsv.plan(folder / "r.yaml")


@pytest.mark.parametrize("other", ["[1, 2]", "[0, 3]", "[0, x]", "2"])
def test_other_slices_are_refused(other: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(SLICES.replace("[0, 2]", other, 1))
    (problem,) = caught.value.problems
    assert "'slices' isn't taken" in problem


def planned(text: str) -> dict[str, Step]:
    """The steps of a plan from headers: three layers under a name of Llama's, in half precision."""
    layers = {
        f"model.layers.{i}.{name}.weight": ((8, 8), "F16")
        for i in range(3)
        for name in ("self_attn.q_proj", "mlp.up_proj")
    }
    tensors = {"model.embed_tokens.weight": ((20, 8), "F16"), **layers, "lm_head.weight": ((20, 8), "F16")}
    read = recipe(text)
    checkpoints = [Headers(tensors, model.name) for model in read.models]
    return {step.name: step for step in make_plan(read, Headers(tensors), checkpoints).steps}  # type: ignore[arg-type]


# The shapes of the recipes in mergekit's folder of examples, by the file that has them.


def test_examples_linear() -> None:
    """Without a base model, the weights' sum not 1."""
    weights = {"a": 2.0, "b": 0.5, "c": 0.5}
    three = "".join(f"  - model: org/{name}\n    parameters:\n      weight: {w}\n" for name, w in weights.items())
    steps = planned(f"models:\n{three}merge_method: linear\ndtype: float16\n")
    assert {(step.method, step.weights, step.base_weight, step.out.dtype) for step in steps.values()} == {
        ("linear", (0.5, 0.5), 2.0, "F16")
    }


def test_examples_ties() -> None:
    """Gradients and filters of single models."""
    steps = planned("""
models:
  - model: org/chat
    parameters:
      density: [0.9, 0.5, 0.3]
      weight: 1.0
  - model: org/code
    parameters:
      density: 0.4
      weight: [0, 0.5, 1]
  - model: org/math
    parameters:
      density: 0.2
      weight:
        - filter: mlp
          value: 0.6
        - value: 0
merge_method: ties
base_model: org/base
parameters:
  normalize: true
  int8_mask: true
dtype: float16
""")
    first, last = steps["model.layers.0.mlp.up_proj.weight"], steps["model.layers.2.self_attn.q_proj.weight"]
    assert (first.weights, last.weights) == ((1.0, 0.0, 0.6), (1.0, 1.0, 0.0))
    assert [step.parameters["density"] for step in (first, last)] == [(0.9, 0.4, 0.2), (0.3, 0.4, 0.2)]
    assert first.parameters["normalize"] is True
    middle_one = steps["model.layers.1.mlp.up_proj.weight"]
    assert (middle_one.parameters["density"][0], middle_one.weights[1]) == (0.5, 0.5)


def test_examples_bio_merge() -> None:
    """Numbers per model, without normalising."""
    two = "".join(f"  - model: org/{m}\n    parameters:\n      density: 0.4\n      weight: 0.7\n" for m in "ab")
    steps = planned(
        f"models:\n{two}merge_method: ties\nbase_model: org/base\nparameters:\n  normalize: false\n  int8_mask: true\n"
        "dtype: float16\n"
    )
    assert {(step.method, step.weights) for step in steps.values()} == {("ties", (0.7, 0.7))}
    assert all(step.parameters == {"density": (0.4, 0.4), "normalize": False} for step in steps.values())


def test_examples_gradient_slerp() -> None:
    """One slice of all layers, and filters with gradients."""
    steps = planned("""
slices:
  - sources:
      - model: org/chat
        layer_range: [0, 3]
      - model: org/math
        layer_range: [0, 3]
merge_method: slerp
base_model: org/chat
parameters:
  t:
    - filter: self_attn
      value: [0, 0.4, 0.8]
    - filter: mlp
      value: [1, 0.6, 0.2]
    - value: 0.3 # the rest
dtype: float16
""")
    t = {name: step.parameters["t"] for name, step in steps.items()}
    assert [t[f"model.layers.{i}.self_attn.q_proj.weight"] for i in range(3)] == [0, 0.4, 0.8]
    assert [t[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(3)] == [1, 0.6, 0.2]
    assert (t["lm_head.weight"], t["model.embed_tokens.weight"]) == (0.3, 0.3)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (  # orcamini-platy-44layer.yml: layers of two models stacked
            "slices:\n"
            "  - sources:\n    - model: org/a\n      layer_range: [0, 20]\n"
            "  - sources:\n    - model: org/b\n      layer_range: [12, 32]\n"
            "merge_method: passthrough\ndtype: float16\n",
            ["r.yaml:1: 'slices' isn't taken", "r.yaml:8: unknown merge method 'passthrough'"],
        ),
        (  # arcee_fusion.yml: a method that isn't here
            "models:\n  - model: a\n  - model: b\nmerge_method: arcee_fusion\nbase_model: a\ndtype: bfloat16\n",
            ["r.yaml:4: unknown merge method 'arcee_fusion'. Known methods: "],
        ),
    ],
    ids=["orcamini-platy-44layer", "arcee_fusion"],
)
def test_examples_that_are_refused(text: str, told: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.yaml")
    assert [said in problem for said, problem in zip(told, caught.value.problems, strict=True)] == [True] * len(told)


@pytest.mark.parametrize(("method", "parameters"), [("sce", "select_topk: 0.1"), ("model_stock", "filter_wise: true")])
def test_methods_without_weights(method: str, parameters: str) -> None:
    text = f"merge_method: {method}\nbase_model: org/base\nmodels:\n{TWO}parameters: {{{parameters}}}\n"
    assert recipe(text).merge_method == method


def test_nuslerp_and_karcher_do_without_a_base() -> None:
    for method in ("nuslerp", "karcher"):
        read = recipe(f"merge_method: {method}\nmodels:\n{TWO}dtype: float32\n")
        assert (str(read.base), [m.name for m in read.models]) == ("org/math", ["code"])
        assert read.rule_at("w", "linear", 0.0).base_weight == 1.0


def test_the_base_of_nuslerp_is_no_model_of_it_when_it_is_named() -> None:
    read = recipe(f"merge_method: nuslerp\nbase_model: org/base\nmodels:\n  - model: org/base\n{TWO}")
    assert read.rule_at("w", "linear", 0.0).base_weight == 0.0


def test_the_base_of_karcher_counts_when_it_is_listed() -> None:
    listed = recipe(f"merge_method: karcher\nbase_model: org/base\nmodels:\n  - model: org/base\n{TWO}")
    named = recipe(f"merge_method: karcher\nbase_model: org/base\nmodels:\n{TWO}")
    assert [read.rule_at("w", "linear", 0.0).base_weight for read in (listed, named)] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("merge_method: slerp\nbase_model: org/base\nmodels:\n" + TWO, "slerp, expected at most 1 besides the base"),
        (
            "merge_method: model_stock\nbase_model: org/base\nmodels:\n  - model: org/math\n",
            "too few models for model_stock, expected at least 2 besides the base but got 1",
        ),
        ("merge_method: nuslerp\nmodels:\n" + TWO + "  - model: org/more\n", "expected at most 2 but got 3"),
        ("merge_method: passthrough\nmodels:\n" + TWO, "unknown merge method 'passthrough'"),
        ("merge_method: slerp\nslices: []\nbase_model: org/a\nmodels:\n" + TWO, "'slices' isn't taken"),
        (
            "merge_method: dare_ties\nbase_model: org/base\nmodels:\n" + TWO + "parameters: {densty: 0.5}\n",
            "Did you mean 'density'?",
        ),
        (
            "merge_method: della\nbase_model: org/base\nmodels:\n" + TWO + "parameters: {density: 1.5}\n",
            "expected a number of at most 1 but got 1.5",
        ),
    ],
)
def test_what_is_not_taken_is_refused_with_the_reason(text: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(text)
    assert told in str(caught.value)


def test_models_without_a_base_are_merged_among_themselves(tmp_path: Path) -> None:
    """NuSLERP and the Karcher mean of two models: the arc's middle either way, by the norms' mean with the latter."""
    folder = models.zoo(models.llama, tmp_path, tasks=2)
    a, b = (read_all(folder / f"t{t}") for t in range(2))
    for method in ("nuslerp", "karcher"):
        text = f"merge_method: {method}\nmodels:\n  - model: {folder}/t0\n  - model: {folder}/t1\n"
        (folder / "r.yaml").write_text(text + "dtype: float64\n")
        hf_tsv.merge(folder / "r.yaml", tmp_path / method)
    for name, merged in read_all(tmp_path / "nuslerp").items():
        torch.testing.assert_close(merged, middle(a[name], b[name]).float(), rtol=WEIGHTS, atol=WEIGHTS)
    for name, merged in read_all(tmp_path / "karcher").items():
        mean = (a[name].double().norm() + b[name].double().norm()) / 2
        unit = middle(*(w / w.double().norm() for w in (a[name], b[name])))
        torch.testing.assert_close(merged, (mean * unit).float(), rtol=WEIGHTS, atol=WEIGHTS)


def middle(a: Tensor, b: Tensor) -> Tensor:
    """(a + b) sin(phi / 2) / sin(phi), with phi the angle between them."""
    cos = torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0).clamp(-1, 1)
    return (a.double() + b.double()) / (2 * ((1 + cos) / 2).sqrt())
