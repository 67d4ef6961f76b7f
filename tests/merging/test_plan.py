"""A plan is made of headers alone and tells every misfit."""

from collections.abc import Mapping

import pytest

from hf_tsv.errors import PlanError
from hf_tsv.merging.plan import Plan
from hf_tsv.merging.planner import make_plan
from hf_tsv.recipe import parse_recipe
from tests.support.headers import Headers

BASE = {
    "embed_tokens.weight": ((100, 8), "BF16"),
    "layers.0.w.weight": ((8, 8), "BF16"),
    "layers.1.w.weight": ((8, 8), "BF16"),
    "layers.2.w.weight": ((8, 8), "BF16"),
    "layers.0.norm.weight": ((8,), "BF16"),
    "position_ids": ((1, 20), "I64"),
    "lm_head.weight": ((100, 8), "BF16"),
}
HEAD = "merge_method: tsv_m\nbase_model: ./base\nmodels: [{model: ./a}, {model: ./b}]\n"


def plan(text: str = HEAD, base: Mapping[str, tuple[tuple[int, ...], str]] = BASE, **changes: object) -> Plan:
    """A plan of two fine-tunes with the base's tensors, `b` with changes: a shape and dtype, or None to take away."""
    theirs = {**base, **changes}
    b = {name: value for name, value in theirs.items() if value is not None}
    return make_plan(parse_recipe(text), Headers(base), [Headers(base, "a"), Headers(b, "b")])  # type: ignore[arg-type]


def steps(planned: Plan) -> dict[str, tuple[str, dict[str, object]]]:
    return {step.name: (step.method, dict(step.parameters)) for step in planned.steps}


def test_every_base_tensor_has_a_step_and_no_data_is_read() -> None:
    planned = plan()
    assert [step.name for step in planned.steps] == list(BASE)
    assert steps(planned)["position_ids"] == ("base", {})
    assert planned.bytes_out == 2 * (100 * 8 * 2 + 3 * 64 + 8) + 160
    assert planned.bytes_in == 3 * 2 * (100 * 8 * 2 + 3 * 64 + 8) + 160


def test_a_plan_depends_on_its_input_alone() -> None:
    assert plan().steps == plan().steps


def test_overrides_choose_by_name_and_by_kind() -> None:
    planned = steps(
        plan(
            HEAD + "overrides:\n  - {filter: layers.1., merge_method: base}\n"
            "  - {filter: {kind: embedding}, merge_method: linear}\n"
            "  - {filter: '*.norm.*', merge_method: task_arithmetic, parameters: {scale: 0.3}}\n"
        )
    )
    assert planned["layers.0.w.weight"] == ("tsv_m", {})
    assert planned["layers.1.w.weight"] == ("base", {})
    assert planned["embed_tokens.weight"] == ("linear", {})
    assert planned["layers.0.norm.weight"] == ("task_arithmetic", {"scale": 0.3})


def test_gradients_run_over_the_layers_and_hold_at_both_ends() -> None:
    planned = plan(HEAD + "parameters: {scale: [0.0, 1.0]}\n")
    scales = {step.name: step.parameters.get("scale") for step in planned.merged}
    assert [scales[f"layers.{i}.w.weight"] for i in range(3)] == [0.0, 0.5, 1.0]
    assert scales["embed_tokens.weight"] == 0.0
    assert scales["lm_head.weight"] == 1.0


def test_a_filter_that_matches_nothing_is_told() -> None:
    with pytest.raises(PlanError, match="filter 'layers.9.'"):
        plan(HEAD + "overrides:\n  - {filter: layers.9., merge_method: base}\n")


def test_all_misfits_are_told_at_once() -> None:
    with pytest.raises(PlanError) as caught:
        plan(**{"embed_tokens.weight": ((101, 8), "BF16"), "lm_head.weight": None, "layers.0.w.weight": ((8, 8), "I8")})
    assert [line.split(":")[0] for line in caught.value.problems] == [
        "embed_tokens.weight",
        "layers.0.w.weight",
        "lm_head.weight",
    ]


def test_a_tensor_kept_from_the_base_may_differ_in_shape_and_becomes_a_task_part() -> None:
    planned = plan(
        HEAD + "overrides:\n  - {filter: lm_head, merge_method: base}\n", **{"lm_head.weight": ((101, 8), "BF16")}
    )
    assert [(part.task, part.info.shape) for part in planned.parts] == [("b", (101, 8))]


def test_what_only_one_model_has_is_its_part() -> None:
    planned = plan(**{"classifier.weight": ((3, 8), "F32")})
    assert [(part.task, part.info.name) for part in planned.parts] == [("b", "classifier.weight")]


def test_what_no_fine_tuned_model_has_stays_and_is_told() -> None:
    base = BASE | {"pooler.weight": ((8, 8), "F32")}
    tuned = [Headers(BASE, "a"), Headers(BASE, "b")]
    planned = make_plan(parse_recipe(HEAD), Headers(base), tuned)
    assert steps(planned)["pooler.weight"] == ("base", {})
    assert planned.warnings == ("in no fine-tuned model, so they stay as the base has them: pooler.weight",)


def test_out_dtype_holds_for_every_float() -> None:
    planned = plan(HEAD + "out_dtype: float32\n")
    assert {step.out.dtype for step in planned.steps} == {"F32", "I64"}


def test_shards_are_planned_from_headers() -> None:
    planned = make_plan(parse_recipe(HEAD), Headers(BASE), [Headers(BASE), Headers(BASE)], max_shard_size=1700)
    assert [shard.file for shard in planned.shards] == [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [info.name for shard in planned.shards for info in shard.tensors] == list(BASE)


@pytest.mark.parametrize(
    ("method", "weights", "told"),
    [
        ("task_arithmetic", ("2", "-2"), "can't be normalized. Set normalize: false"),
        ("linear", ("[1, 1, 0.5]", "[1, 1, -0.5]"), "can't be normalized. Set normalize: false"),
        ("karcher", ("1", "-1"), "there is no mean. Leave them out, or make them positive"),
    ],
)
def test_weights_that_a_method_refuses_are_told_once(method: str, weights: tuple[str, str], told: str) -> None:
    """Before anything is downloaded."""
    models = "".join(f"  - {{model: ./{n}, parameters: {{weight: {w}}}}}\n" for n, w in zip("ab", weights, strict=True))
    normalize = "parameters: {normalize: true}\n" if method == "task_arithmetic" else ""
    with pytest.raises(PlanError) as caught:
        plan(f"base_model: ./base\nmodels:\n{models}{normalize}merge_method: {method}\n")
    line = 5 + bool(normalize)
    assert [str(problem).count("the weights sum to 0") for problem in caught.value.problems] == [1]
    assert str(caught.value).startswith(f"recipe.yaml:{line}: {method}: the weights sum to 0, so ")
    assert str(caught.value).endswith(told)
