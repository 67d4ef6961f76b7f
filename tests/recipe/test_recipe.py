"""Recipes: what a good one means, and what is said of a bad one."""

import json
import pickle
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hf_tsv.errors import RecipeError
from hf_tsv.methods import METHODS, Inputs
from hf_tsv.recipe import UNION, ModelRef, Recipe, TokenizerChoice, load_recipe, parse_recipe, to_yaml

BAD = Path(__file__).parent / "bad"
Q, K, MLP = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight", "model.mlp.up.weight"


def recipe(method: str = "tsv_m", rest: str = "", models: str = "") -> Recipe:
    """A recipe of the tasks `math` and `code`, with more YAML after them."""
    models = models or "  - model: org/math\n  - model: org/code\n"
    return parse_recipe(f"merge_method: {method}\nbase_model: org/base\nmodels:\n{models}{rest}")


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text)
    return caught.value.problems


def values(parameter: str, setting: str, *, at: float = 0.0, name: str = Q, kind: str = "linear") -> Any:
    rule = recipe(rest=f"parameters:\n  {parameter}: {setting}").rule_at(name, kind, at)
    return rule.parameters.get(parameter)


class TestBadRecipes:
    @pytest.fixture(autouse=True)
    def _few_methods(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Messages list the methods; a new one is no reason to write them all anew."""
        for name in METHODS.keys() - {"base", "linear", "task_arithmetic", "ties", "tsv_m"}:
            monkeypatch.delitem(METHODS, name)

    @pytest.mark.parametrize("path", sorted(BAD.glob("*.yaml")), ids=lambda path: path.stem)
    def test_every_mistake_is_told_word_for_word(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(BAD)
        with pytest.raises(RecipeError) as caught:
            load_recipe(path.name)
        assert str(caught.value) == path.with_suffix(".txt").read_text().rstrip("\n")

    @pytest.mark.parametrize("path", sorted(BAD.glob("*.txt")), ids=lambda path: path.stem)
    def test_mistakes_come_in_the_order_of_the_file(self, path: Path) -> None:
        lines = [int(line.split(":")[1]) for line in path.read_text().splitlines()]
        assert lines == sorted(lines)
        assert max(lines) <= len(path.with_suffix(".yaml").read_text().splitlines())

    def test_a_control_character_is_told_with_its_line(self) -> None:
        (problem,) = problems("merge_method: tsv_m\nbase_model: a\x00b")
        assert problem == "recipe.yaml:2: character U+0000 isn't allowed in YAML."

    @pytest.mark.parametrize(
        ("written", "told"),
        [
            (r'"\ud800"', "half a character is written here (a lone surrogate). Write the whole character."),
            ("9" * 5000, f"'{'9' * 58}… can't be read as !!int. Leave the tag out, or put the value in quotes."),
            ("!!bool maybe", "'maybe' can't be read as !!bool. Leave the tag out, or put the value in quotes."),
        ],
    )
    def test_what_is_no_value_is_told(self, written: str, told: str) -> None:
        assert problems(f"merge_method: tsv_m\nbase_model: {written}\nmodels: [{{model: org/math}}]") == (
            f"recipe.yaml:2: {told}",
        )

    def test_a_character_that_json_escapes_as_two_is_one(self) -> None:
        read = parse_recipe(json.dumps({"merge_method": "tsv_m", "base_model": "./😀", "models": [{"model": "./b"}]}))
        assert read.base.text == "./😀"

    def test_bytes_are_no_text(self) -> None:
        text = "merge_method: tsv_m\nbase_model: org/base\nmodels: [{model: org/math, name: !!binary aGk=}]"
        assert problems(text) == ("recipe.yaml:3: 'name' has a wrong value, expected text but got b'hi'.",)

    @pytest.mark.slow
    def test_deep_nesting_is_told(self) -> None:
        told = "its values are nested more than 100 levels deep. Write them flatter."
        assert problems("a:\n  " + "[" * 1000) == (f"recipe.yaml:2: {told}",)
        chain = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2000))
        assert problems(chain) == (f"recipe.yaml:100: {told}",)
        # The merged mappings stand under a key that is written twice, so that none of them is read before the last.
        merged = ", ".join(["&b0 {x: 1}", *(f"&b{i} {{<<: *b{i - 1}}}" for i in range(1, 5000))])
        assert problems(f"x: 1\nx: [{merged}]\ny: *b4999") == (f"recipe.yaml:1: {told}",)

    def test_a_file_beyond_any_recipe_is_refused_unread(self, tmp_path: Path) -> None:
        path = tmp_path / "recipe.yaml"
        path.write_text("- a\n" * 2_500_000)
        start = time.process_time()
        with pytest.raises(RecipeError, match=r"recipe\.yaml:1: the file is larger than 1 MB\. Leave out what isn't"):
            load_recipe(path)
        assert time.process_time() - start < 0.5  # parsing it would take minutes

    def test_thousands_of_mistakes_are_told_in_time(self) -> None:
        text = "merge_method: tsv_m\nbase_model: org/base\nmodels:\n" + "  - {nmae: x}\n" * 3_000
        told = problems(text)
        assert len(told) == 6_000
        assert set(told[-2:]) == {
            "recipe.yaml:3003: 'model' is missing. Write a Hub id such as org/name, or a folder.",
            "recipe.yaml:3003: unknown key 'nmae' in 'models'. Did you mean 'name'?"
            " Known keys: model, name, parameters.",
        }

    def test_aliases_of_aliases_do_not_fill_the_memory(self) -> None:
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
        assert problems("\n".join(lines)) == (
            "recipe.yaml:1: it has more than 100000 values, with those that its aliases stand for."
            " Leave out what isn't needed.",
        )

    def test_merge_keys_of_merge_keys_do_not_fill_the_memory(self) -> None:
        text = "{model: org/math}"
        for i in range(30):
            text = f"{{<<: [&a{i} {text}, *a{i}, *a{i}, *a{i}, *a{i}]}}"
        read = recipe(models=f"  - {text}\n")
        assert [m.name for m in read.models] == ["math"]

    def test_a_missing_file_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match=r"no\.yaml: the recipe can't be read: No such file or directory\."):
            load_recipe(tmp_path / "no.yaml")

    def test_a_file_that_is_no_text_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "recipe.yaml").write_bytes(b"merge_method: \xff")
        with pytest.raises(RecipeError, match=r"recipe\.yaml: the recipe isn't UTF-8 text .* Save it as UTF-8\."):
            load_recipe(tmp_path / "recipe.yaml")

    def test_a_method_tells_when_the_models_are_too_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(METHODS, "ties", replace(METHODS["ties"], inputs=Inputs(max_tasks=1)))
        rest = "overrides:\n  - filter: mlp\n    merge_method: ties"
        with pytest.raises(RecipeError) as caught:
            recipe(rest=rest)
        assert str(caught.value) == (
            "recipe.yaml:8: too many models for ties, expected at most 1 besides the base but got 2."
        )


SCALARS = st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.text(max_size=3)
WORDS = st.sampled_from(
    ["tsv_m", "linear", "base", "org/base", "./here", "a@b", "a+b", "re:(", "*.mlp", "q_proj", "auto"]
)
NAMES = st.sampled_from(
    ["weight", "scale", "lambda", "rank", "density", "cut", "model", "filter", "value", "kind", "slices"]
)
MESS = st.recursive(
    SCALARS | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=4,
)


def mapping(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A mapping with some of these keys, or a wrong one too, or something else altogether."""
    return st.fixed_dictionaries({}, optional={**fields, "wrong": MESS}) | MESS


CHOICES = st.lists(mapping(filter=WORDS | mapping(kind=WORDS), value=SCALARS | st.lists(SCALARS)), max_size=3)
PARAMETERS = st.dictionaries(NAMES, CHOICES | MESS, max_size=3) | MESS
REFERENCES = WORDS | mapping(model=WORDS | mapping(path=WORDS, revision=WORDS), lora=WORDS)
MODELS = st.lists(mapping(model=REFERENCES, name=WORDS, parameters=PARAMETERS), max_size=3)
OVERRIDES = st.lists(mapping(filter=WORDS | mapping(kind=WORDS), merge_method=WORDS, parameters=PARAMETERS), max_size=2)
FILES = mapping(
    merge_method=st.just("ties") | WORDS,
    base_model=REFERENCES,
    models=MODELS,
    parameters=PARAMETERS,
    overrides=OVERRIDES,
    dtype=WORDS,
    tokenizer_source=WORDS,
    chat_template=WORDS,
)


class TestAnything:
    @pytest.mark.slow
    @given(FILES)
    @example({"base_model": {"<mapping>": {"<mapping>": 1}}, "parameters": {"<scalar>": {"<scalar>": 1}}})
    def test_yaml_of_any_shape_is_a_recipe_or_told(self, data: object) -> None:
        text = to_yaml(data)
        try:
            parse_recipe(text).rule_at(Q, "linear", 0.5)
            told = ["recipe.yaml:1: nothing"]
        except RecipeError as error:
            told = list(error.problems)
        lines = [int(problem.removeprefix("recipe.yaml:").split(":")[0]) for problem in told]
        assert lines == sorted(lines)
        assert min(lines) >= 1
        assert max(lines) <= text.count("\n") + 1

    @given(st.text(alphabet=st.characters(), max_size=40))
    def test_any_text_is_told(self, text: str) -> None:
        assert problems(text)


class TestMergekitRecipes:
    def test_ties(self) -> None:
        """The example of mergekit's README, as people copy it: the base is listed, each model has its own numbers."""
        read = parse_recipe(
            """
            models:
              - model: mistralai/Mistral-7B-v0.1
              - model: org/Open-Instruct
                parameters: {density: [1, 0.7, 0.1], weight: 1.0}
              - model: org/Wizard-Math@v1.1
                parameters:
                  density: 0.33
                  weight:
                    - filter: mlp
                      value: 0.5
                    - value: 0
            merge_method: ties
            base_model: mistralai/Mistral-7B-v0.1
            parameters:
              normalize: true
              int8_mask: true
            dtype: float16
            """
        )
        assert read.base == ModelRef("mistralai/Mistral-7B-v0.1")
        assert [(m.name, m.ref.revision, m.line) for m in read.models] == [
            ("Open-Instruct", None, 4),
            ("Wizard-Math", "v1.1", 6),
        ]
        assert (read.dtype, read.out_dtype) == ("float32", "float16")
        assert read.notes == (
            "recipe.yaml:17: int8_mask has no effect here: weights are streamed tensor by tensor as it is.",
            "recipe.yaml:18: arithmetic is in float32 whatever the output is, here float16.",
        )
        rule = read.rule_at("model.layers.0.mlp.up_proj.weight", "linear", 0.75)
        assert (rule.method, rule.weights, rule.line) == ("ties", (1.0, 0.5), 13)
        assert rule.parameters == {"normalize": True, "density": (pytest.approx(0.4), 0.33)}
        assert read.rule_at("model.norm.weight", "norm", 1.0).weights == (1.0, 0.0)

    def test_lambda_is_the_scale(self) -> None:
        assert recipe("task_arithmetic", "parameters: {lambda: 0.3}").rule_at(Q, "linear", 0).parameters == {
            "scale": 0.3
        }

    def test_linear_without_a_base_takes_the_first_model_for_it(self) -> None:
        """theta_0 + sum_t w_t (theta_t - theta_0) / sum_t w_t with the first model's own weight in the sum."""
        read = parse_recipe(
            """
            merge_method: linear
            models:
              - model: org/math
                parameters: {weight: 0.7}
              - model: org/code
                parameters: {weight: 0.3}
            """
        )
        assert (read.base.path, [m.name for m in read.models]) == ("org/math", ["code"])
        rule = read.rule_at(Q, "linear", 0)
        assert (rule.base_weight, rule.weights) == (0.7, (0.3,))
        assert read.notes == ("recipe.yaml:4: there is no base_model: org/math stands in for it.",)

    def test_the_first_model_is_no_base_where_a_method_needs_one(self) -> None:
        """Told once, and not again as a base that is its own only fine-tune."""
        text = "merge_method: tsv_m\nmodels:\n  - model: org/math\n"
        assert problems(text) == (
            "recipe.yaml:1: tsv_m needs the model that the others were fine-tuned from. Add base_model.",
        )

    def test_a_listed_base_is_averaged_by_linear_and_by_no_other_method(self) -> None:
        models = "  - model: org/math\n  - model: org/base\n    parameters: {weight: 2}\n"
        read = recipe("linear", "overrides:\n  - filter: mlp\n    merge_method: task_arithmetic", models)
        assert [m.name for m in read.models] == ["math"]
        assert (read.rule_at(Q, "linear", 0).base_weight, read.rule_at(MLP, "linear", 0).base_weight) == (2.0, 0.0)
        assert recipe("linear").rule_at(Q, "linear", 0).base_weight == 0.0

    def test_a_listed_base_weighs_1_unless_said_otherwise(self) -> None:
        models = "  - model: org/math\n  - model: org/base\n"
        assert recipe("linear", models=models).rule_at(Q, "linear", 0).base_weight == 1.0
        assert recipe("linear", "parameters: {weight: 3}", models).rule_at(Q, "linear", 0).base_weight == 3.0

    def test_references_may_be_mappings(self) -> None:
        text = """
            merge_method: linear
            base_model: {model: {path: org/base, revision: v1}}
            models:
              - model: {model: org/base, lora: {path: org/adapter, revision: v2}}
            """
        read = parse_recipe(text)
        assert read.base == ModelRef("org/base", "v1")
        assert read.models[0].ref == ModelRef("org/base", None, "org/adapter", "v2")

    def test_merge_keys_and_aliases_are_read(self) -> None:
        models = "  - &math\n    model: org/math\n    parameters: &p {weight: 2}\n  - {<<: *math, model: org/code}\n"
        models += "  - {<<: [{name: first}, {name: second, model: org/law}], parameters: *p}\n"
        read = recipe(models=models)
        assert [(m.name, m.ref.path) for m in read.models] == [
            ("math", "org/math"),
            ("code", "org/code"),
            ("first", "org/law"),
        ]
        assert read.rule_at(Q, "linear", 0).weights == (2.0, 2.0, 2.0)

    def test_a_mapping_merged_into_itself_is_itself(self) -> None:
        assert recipe(models="  - &math {<<: *math, model: org/math}\n").models[0].name == "math"


class TestPrecedence:
    LEVELS = ("model", "override", "top")

    @given(st.sets(st.sampled_from(LEVELS)))
    def test_a_weight_comes_from_the_most_specific_place_that_gives_one(self, given_at: set[str]) -> None:
        text = {level: f"{{weight: {i + 2}}}" if level in given_at else "{}" for i, level in enumerate(self.LEVELS)}
        read = recipe(
            models=f"  - model: org/math\n    parameters: {text['model']}\n",
            rest=f"overrides:\n  - filter: mlp\n    parameters: {text['override']}\nparameters: {text['top']}\n",
        )
        in_order = [float(i + 2) for i, level in enumerate(self.LEVELS) if level in given_at]
        outside = [w for w, level in ((2.0, "model"), (4.0, "top")) if level in given_at]
        assert read.rule_at(MLP, "linear", 0).weights == ((*in_order, 1.0)[0],)
        assert read.rule_at(Q, "linear", 0).weights == ((*outside, 1.0)[0],)

    def test_the_first_matching_override_counts_alone(self) -> None:
        read = recipe(
            rest="parameters: {scale: 1}\noverrides:\n"
            "  - {filter: q_proj, parameters: {rank: 4}}\n"
            "  - {filter: proj, merge_method: task_arithmetic, parameters: {scale: 3}}\n"
        )
        at_q, at_k, elsewhere = (read.rule_at(name, "linear", 0) for name in (Q, K, MLP))
        assert (at_q.method, at_q.parameters, at_q.line) == ("tsv_m", {"rank": 4, "scale": 1.0}, 8)
        assert (at_k.method, at_k.parameters, at_k.line) == ("task_arithmetic", {"scale": 3.0}, 9)
        assert (elsewhere.method, elsewhere.parameters, elsewhere.line) == ("tsv_m", {"scale": 1.0}, 1)
        assert read.methods == ("tsv_m", "task_arithmetic")

    def test_a_filter_that_does_not_match_leaves_the_next_place_to_decide(self) -> None:
        models = "  - model: org/math\n    parameters:\n      weight:\n        - {filter: q_proj, value: 5}\n"
        read = recipe(rest="parameters: {weight: 2}", models=models)
        assert (read.rule_at(Q, "linear", 0).weights, read.rule_at(K, "linear", 0).weights) == ((5.0,), (2.0,))

    def test_a_parameter_is_passed_to_the_methods_that_take_it(self) -> None:
        rest = "parameters: {rank: 4}\noverrides:\n  - {filter: mlp, merge_method: linear}"
        assert recipe(rest=rest).rule_at(MLP, "linear", 0).parameters == {}
        assert recipe("linear", rest.replace("linear", "tsv_m")).rule_at(MLP, "linear", 0).parameters == {"rank": 4}

    def test_a_task_that_gives_none_of_a_parameter_has_the_default(self) -> None:
        models = "  - model: org/math\n    parameters: {density: 0.9}\n  - model: org/code\n"
        default = METHODS["ties"].parameters["density"].default
        assert recipe("ties", models=models).rule_at(Q, "linear", 0).parameters == {"density": (0.9, default)}
        assert recipe("ties").rule_at(Q, "linear", 0).parameters == {}

    def test_one_value_of_a_parameter_per_task_is_for_every_task(self) -> None:
        assert recipe("ties", "parameters: {density: 1}").rule_at(Q, "linear", 0).parameters == {"density": (1.0, 1.0)}


class TestSettings:
    @pytest.mark.parametrize(
        ("depth", "value"), [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.75, 2.5), (0.875, 3.25), (1.0, 4.0)]
    )
    def test_a_gradient_is_linear_between_its_points(self, depth: float, value: float) -> None:
        """By hand: the points of [0, 1, 4] are at depths 0, 1/2 and 1."""
        assert values("scale", "[0, 1, 4]", at=depth) == value

    @given(st.lists(st.floats(-2, 2), min_size=1, max_size=5), st.floats(0, 1))
    def test_a_gradient_stays_within_its_points(self, points: list[float], depth: float) -> None:
        value = values("scale", str(points), at=depth)
        assert min(points) - 1e-12 <= value <= max(points) + 1e-12

    @pytest.mark.parametrize(("depth", "value"), [(0.0, 4), (0.49, 6), (0.5, 6), (0.6, 6), (1.0, 8)])
    def test_a_gradient_of_whole_numbers_stays_one(self, depth: float, value: int) -> None:
        found = values("rank", "[4, 8]", at=depth)
        assert (found, type(found)) == (value, int)

    @pytest.mark.parametrize(("depth", "value"), [(0.0, "none"), (0.49, "none"), (0.5, "noise"), (1.0, "auto")])
    def test_a_gradient_of_words_goes_in_steps(self, depth: float, value: str) -> None:
        assert values("cut", "[none, noise, auto]", at=depth) == value

    def test_a_gradient_of_one_point_is_constant(self) -> None:
        assert [values("scale", "[0.5]", at=t) for t in (0.0, 0.3, 1.0)] == [0.5] * 3

    @pytest.mark.parametrize(
        ("written", "names"),
        [
            ("q_proj", {Q}),
            ("layers", {Q, K}),
            ("'*'", {Q, K, MLP}),
            ("'*.mlp.*'", {MLP}),
            ("mlp*", set()),
            ("'*proj'", set()),
            ("'*.?_proj.weight'", {Q, K}),
            ("'re:[qk]_proj'", {Q, K}),
            ("re:^model.mlp", {MLP}),
            ("re:^mlp", set()),
            ("q_proj|k_proj", set()),
            ("{kind: linear}", {Q, K, MLP}),
            ("{kind: norm}", set()),
        ],
    )
    def test_filters(self, written: str, names: set[str]) -> None:
        setting = f"[{{filter: {written}, value: 2}}]"
        assert {name for name in (Q, K, MLP) if values("scale", setting, name=name) == 2.0} == names

    def test_the_first_filter_that_matches_counts(self) -> None:
        setting = "[{filter: q_proj, value: [2, 4]}, {filter: proj, value: 6}, {value: 8}]"
        assert [values("scale", setting, name=name, at=0.5) for name in (Q, K, MLP)] == [3.0, 6.0, 8.0]

    @pytest.mark.parametrize(
        ("written", "value"), [("1e-3", 0.001), ("2", 2.0), ("-.5E1", -5.0), ("1_000", 1000.0), ("010", 10.0)]
    )
    def test_numbers(self, written: str, value: float) -> None:
        found = values("scale", written)
        assert (found, type(found)) == (value, float)

    @pytest.mark.parametrize("name", ["2024-01-31", "yes", "no", "on", "off", "y"])
    def test_what_yaml_1_1_took_for_something_else_is_a_name(self, name: str) -> None:
        assert recipe(models=f"  - {{model: org/math, name: {name}}}\n").models[0].name == name

    def test_the_rule_of_many_tensors_is_one_object(self) -> None:
        read = recipe(rest="parameters: {scale: 2}")
        assert read.rule_at(Q, "linear", 0.0) is read.rule_at(MLP, "linear", 1.0)


class TestIdleFilters:
    TENSORS = ((Q, "linear"), (K, "linear"), (MLP, "linear"))

    def found(self, *filters: str) -> list[str]:
        overrides = "".join(f"  - filter: {text}\n" for text in filters)
        return recipe(rest=f"overrides:\n{overrides}").unmatched_filters(self.TENSORS)

    def test_filters_that_match_are_not_told(self) -> None:
        assert self.found("q_proj", "'*.mlp.*'", "{kind: linear}", "'*'") == []

    def test_what_was_meant_is_told(self) -> None:
        assert self.found("mlp.down", "'mlp.*'", "q_proj|k_proj", "{kind: conv}", "re:^layers") == [
            "recipe.yaml:7: filter 'mlp.down' has no effect: it matches no tensor.",
            "recipe.yaml:8: filter 'mlp.*' has no effect: it matches no tensor. Did you mean '*mlp.**'?",
            "recipe.yaml:9: filter 'q_proj|k_proj' has no effect: it matches no tensor."
            " Did you mean 're:q_proj|k_proj'?",
            "recipe.yaml:10: filter 'kind: conv' has no effect: it matches no tensor.",
            "recipe.yaml:11: filter 're:^layers' has no effect: it matches no tensor.",
        ]

    def test_a_filter_behind_a_wider_one_is_told(self) -> None:
        assert self.found("proj", "q_proj") == [
            "recipe.yaml:8: filter 'q_proj' has no effect: every tensor that it matches is taken by a filter above it."
            " Move it up, or leave it out."
        ]

    def test_filters_of_parameters_are_told_too_in_the_order_of_the_file(self) -> None:
        models = "  - model: org/math\n    parameters:\n      weight: [{filter: here, value: 1}, {value: 2}]\n"
        rest = "overrides: [{filter: there}]\nparameters:\n  scale: [{filter: nowhere, value: 1}]\n"
        found = recipe(rest=rest, models=models).unmatched_filters(self.TENSORS)
        assert [message.split(" has")[0] for message in found] == [
            "recipe.yaml:6: filter 'here'",
            "recipe.yaml:7: filter 'there'",
            "recipe.yaml:9: filter 'nowhere'",
        ]


class TestOtherKeys:
    def test_defaults(self) -> None:
        read = recipe()
        assert (read.dtype, read.out_dtype, read.svd, read.chat_template) == ("float32", None, "exact", None)
        assert (read.tokenizer, read.tokenizer_model) == (TokenizerChoice(), read.base)
        assert (read.notes, read.where(3)) == ((), "recipe.yaml:3")

    @pytest.mark.parametrize(
        ("written", "dtypes"),
        [
            ("dtype: float64", ("float64", None)),
            ("dtype: float32", ("float32", None)),
            ("dtype: bfloat16", ("float32", "bfloat16")),
            ("dtype: bfloat16\nout_dtype: float16", ("float32", "float16")),
            ("out_dtype: float16", ("float32", "float16")),
        ],
    )
    def test_dtypes(self, written: str, dtypes: tuple[str, str | None]) -> None:
        read = recipe(rest=written)
        assert (read.dtype, read.out_dtype) == dtypes
        assert len(read.notes) == written.startswith("dtype: bfloat16")

    @pytest.mark.parametrize(
        ("written", "path"),
        [("base", "org/base"), ("org/base", "org/base"), ("code", "org/code"), ("org/code", "org/code")],
    )
    def test_tokenizer_sources(self, written: str, path: str) -> None:
        for rest in (f"tokenizer_source: {written}", f"tokenizer: {{source: {written}}}"):
            read = recipe(rest=rest)
            assert read.tokenizer.source == read.tokenizer_model
            assert read.tokenizer_model.path == path

    @pytest.mark.parametrize("written", ["tokenizer_source: union", "tokenizer: {source: union}", "tokenizer: {}"])
    def test_a_union_has_the_bases_files(self, written: str) -> None:
        read = recipe(rest=written)
        assert (read.tokenizer.source, read.tokenizer_model) == (UNION, read.base)

    def test_padding_of_a_vocabulary(self) -> None:
        read = recipe(rest="tokenizer: {source: base, pad_to_multiple_of: 64}")
        assert read.tokenizer == TokenizerChoice(read.base, 64)

    @pytest.mark.parametrize("written", ["auto", "'{{ messages }}'"])
    def test_chat_templates(self, written: str) -> None:
        assert recipe(rest=f"chat_template: {written}").chat_template == written.strip("'")

    def test_nothing_after_a_key_is_as_good_as_no_key(self) -> None:
        empty = recipe(rest="parameters:\noverrides:\ndtype:\nout_dtype:\nsvd:\n")
        assert replace(empty, text=recipe().text) == recipe()

    def test_a_recipe_can_be_sent_to_another_process(self) -> None:
        read = recipe(rest="overrides:\n  - {filter: '*.mlp.*', parameters: {scale: [0, 1]}}")
        again = pickle.loads(pickle.dumps(read))
        assert again == read
        assert again.rule_at(MLP, "linear", 0.5).parameters == {"scale": 0.5}


class TestReferences:
    @pytest.mark.parametrize(
        ("text", "ref"),
        [
            ("gpt2", ModelRef("gpt2")),
            ("org/name", ModelRef("org/name")),
            ("org/name@v1.0", ModelRef("org/name", "v1.0")),
            ("org/name@refs/pr/3", ModelRef("org/name", "refs/pr/3")),
            ("org/name+org/lora", ModelRef("org/name", None, "org/lora")),
            ("org/name@a+org/lora@b", ModelRef("org/name", "a", "org/lora", "b")),
            ("hf://org/name@v1", ModelRef("org/name", "v1")),
            ("hf://org/name@v1+hf://org/lora@v2", ModelRef("org/name", "v1", "org/lora", "v2")),
            ("https://huggingface.co/org/name/tree/v1", ModelRef("org/name", "v1")),
            ("./not/there", ModelRef("./not/there")),
            ("./not/there+org/lora@v2", ModelRef("./not/there", None, "org/lora", "v2")),
            ("/not/there", ModelRef("/not/there")),
        ],
    )
    def test_references(self, text: str, ref: ModelRef) -> None:
        parsed = ModelRef.parse(text)
        assert (parsed, parsed.text, str(parsed)) == (ref, text, text)
        assert parsed.is_local == text.startswith((".", "/"))

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("org/name@v1", "name"),
            ("gpt2", "gpt2"),
            ("org/name+org/lora@v1", "lora"),
            ("./folder/my model/", "my-model"),
            ("./.hidden", "hidden"),
            ("./a+./b", "b"),
        ],
    )
    def test_default_names(self, text: str, name: str) -> None:
        assert ModelRef.parse(text).default_name == name

    def test_a_folder_is_taken_as_a_whole_whatever_signs_it_holds(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("a@b+c", "a@b", "plain"):
            (tmp_path / name).mkdir()
        assert ModelRef.parse("a@b+c") == ModelRef("./a@b+c")
        assert ModelRef.parse("a@b+org/lora@v1") == ModelRef("./a@b", None, "org/lora", "v1")
        assert ModelRef.parse("a@b+c+plain") == ModelRef("./a@b+c", None, "./plain")
        assert ModelRef.parse("plain") == ModelRef.parse("./plain/") == ModelRef("./plain")
        assert ModelRef.parse("plain").is_local

    def test_a_folder_beside_the_recipe_counts_where_none_is_here(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, beside = tmp_path / "here", tmp_path / "beside"
        for folder in (here / "both", beside / "both", beside / "models" / "math"):
            folder.mkdir(parents=True)
        monkeypatch.chdir(here)
        path = beside / "recipe.yaml"
        path.write_text("merge_method: tsv_m\nbase_model: both\nmodels: [{model: models/math}, {model: ./not/there}]\n")
        read = load_recipe(path)
        assert read.base.path == "./both"
        assert [m.ref.path for m in read.models] == [str(beside / "models" / "math"), "./not/there"]
        assert read.source == str(path)

    @pytest.mark.parametrize("text", ["x" * 5000, "a\0b", "~nobody-of-this-name/x" + "@v1"])
    def test_what_cannot_be_a_path_is_told(self, text: str) -> None:
        with pytest.raises(RecipeError):
            ModelRef.parse(text)
