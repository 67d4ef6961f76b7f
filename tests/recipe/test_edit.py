"""Recipes that are changed in their authors' text: what is meant changes, and comments, quotes and order stay."""

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from ruamel.yaml.comments import CommentedMap

from hf_tsv.errors import RecipeError
from hf_tsv.files.bundled import bundled
from hf_tsv.recipe import (
    Recipe,
    RecipeAdapters,
    as_compression,
    edited,
    load_recipe,
    own_value,
    parse_recipe,
    pinned_text,
    put_key,
    put_keys,
    remove_key,
    to_yaml,
)

Q, MLP = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"
COMMENTED = """\
# Two skills, one model.
# And more of it.

merge_method: tsv_m   # the method
base_model: "org/base"
models:   # all of them
  # first
  - model: org/math   # math
    parameters: {weight: 1.0}   # w
  # second
  - model: 'org/code'
    parameters:
      # about density
      density: 0.5   # half
  # the models end

parameters:   # own
  scale: 1e-3   # small
  # after the scale
  rank: 4   # four

# Parts that differ.
overrides:
  - filter: "*.mlp.*"   # f
    merge_method: ties   # t
    # what ties takes
    parameters: {density: 0.50}
  # attention
  - filter: attn   # a
    merge_method: tsv_c
  - filter: norm
    merge_method: base   # untouched
dtype: float32
# The end.
"""


def comments(text: str) -> list[str]:
    return [line.partition("#")[2].strip() for line in text.splitlines() if "#" in line]


def squeezed(text: str) -> str:
    """The text with one space before every comment, whose column may move."""
    return re.sub(" +#", " #", text)


def rule(recipe: Recipe, name: str = Q) -> tuple[str, dict[str, Any]]:
    found = recipe.rule_at(name, "linear", 0.0)
    return found.method, dict(found.parameters)


class TestEdited:
    def test_nothing_changed_is_the_same_recipe(self) -> None:
        recipe = parse_recipe(COMMENTED)
        assert edited(recipe, lambda document: None) is recipe

    def test_one_value_changes_one_line(self) -> None:
        recipe = parse_recipe(COMMENTED, "mine.yaml", Path("here"))
        changed = edited(recipe, lambda document: put_key(document, "dtype", "float64"))
        assert changed.text == COMMENTED.replace("dtype: float32", "dtype: float64")
        assert (changed.dtype, changed.source, changed.folder) == ("float64", "mine.yaml", Path("here"))

    @pytest.mark.parametrize("indent", ["models:\n- model: org/a\n", "models:\n    -   model: org/a\n"])
    def test_indents_stay(self, indent: str) -> None:
        text = f"merge_method: tsv_m\nbase_model: org/base\n{indent}dtype: float32\n"
        changed = edited(parse_recipe(text), lambda document: put_key(document, "dtype", "float64"))
        assert changed.text == text.replace("float32", "float64")

    def test_indents_of_mappings_stay(self) -> None:
        text = "merge_method: tsv_m\nbase_model: org/base\nmodels: [{model: org/a}]\nparameters:\n    scale: 1\n"
        changed = edited(parse_recipe(text), lambda document: put_key(document, "svd", "sketch"))
        assert changed.text == text + "svd: sketch\n"

    @pytest.mark.parametrize("path", sorted(bundled("recipes").glob("*.yaml")), ids=lambda path: path.stem)
    def test_a_bundled_recipe_changes_by_one_line(self, path: Path) -> None:
        recipe = load_recipe(path)
        changed = edited(recipe, lambda document: put_key(document, "svd", "sketch"))
        lines = changed.text.splitlines()
        lines.remove("svd: sketch")
        assert lines == recipe.text.splitlines()

    def test_long_lines_are_not_broken(self) -> None:
        template = "{{ messages }} " * 30
        text = COMMENTED + f'chat_template: "{template}"\n'
        changed = edited(parse_recipe(text), lambda document: put_key(document, "dtype", "float64"))
        assert changed.text == text.replace("dtype: float32", "dtype: float64")

    def test_comment_lines_below_what_is_removed_or_replaced_stay_there(self) -> None:
        def change(document: CommentedMap) -> None:
            remove_key(document, "parameters")
            put_key(document, "dtype", "float64")
            put_keys(document, "adapters", {"rank": 8})
            remove_key(own_value(own_value(document, "overrides"), 0), "parameters")
            put_keys(own_value(own_value(document, "models"), 1), "parameters", {"weight": 2})

        changed = edited(parse_recipe(COMMENTED), change)
        gone = {"own", "small", "after the scale", "four"}
        assert comments(changed.text) == [comment for comment in comments(COMMENTED) if comment not in gone]
        assert (
            "      density: 0.5   # half\n      weight: 2\n  # the models end\n\n\n# Parts that differ." in changed.text
        )
        assert changed.text.endswith("dtype: float64\nadapters:\n  rank: 8\n# The end.\n")

    def test_comment_lines_stay_when_the_first_key_goes(self) -> None:
        changed = edited(
            parse_recipe(COMMENTED), lambda document: remove_key(own_value(document, "parameters"), "scale")
        )
        assert "parameters:   # own\n  # after the scale\n  rank: 4   # four\n" in changed.text

    def test_json_stays_json(self) -> None:
        data = {"merge_method": "tsv_m", "base_model": "org/base", "models": [{"model": "org/a"}], "svd": None}
        changed = edited(parse_recipe(json.dumps(data)), lambda document: put_keys(document, "adapters", {"rank": 8}))
        assert json.loads(changed.text.replace("adapters: {rank: 8}", '"adapters": {"rank": 8}')) == {
            **data,
            "adapters": {"rank": 8},
        }

    def test_anchors_stay_where_nothing_changes_in_them(self) -> None:
        text = (
            "merge_method: ties\nbase_model: org/base\nmodels:\n  - model: org/math\n"
            "    parameters: &half {density: 0.5}\n  - model: org/code\n    parameters: *half\n"
        )
        changed = edited(parse_recipe(text), lambda document: put_key(document, "dtype", "float64"))
        assert changed.text == f"{text}dtype: float64\n"

    def test_a_shared_value_changes_in_one_place_alone(self) -> None:
        text = (
            "merge_method: ties\nbase_model: org/base\nmodels:\n  - &math\n    model: org/math\n"
            "    parameters: &half {density: &d 0.5, weight: 3}\n  - model: org/code\n    parameters: *half\n"
            "  - {<<: *math, model: org/law}\n"
        )

        def change(document: CommentedMap) -> None:
            models = own_value(document, "models")
            put_keys(own_value(models, 0), "parameters", {"density": 0.1})
            remove_key(own_value(own_value(models, 2), "parameters"), "density")

        changed = edited(parse_recipe(text), change)
        found = changed.rule_at(Q, "linear", 0.0)
        default = 1.0 if "density" not in found.parameters else found.parameters["density"][2]
        assert [m.name for m in changed.models] == ["math", "code", "law"]
        assert found.parameters["density"] == (0.1, 0.5, default)
        assert found.weights == (3.0, 3.0, 3.0)
        assert default not in (0.1, 0.5)

    def test_keys_merged_into_the_whole_recipe_can_be_removed(self) -> None:
        text = "<<: {merge_method: tsv_m, base_model: org/base, dtype: float64}\nmodels: [{model: org/a}]\n"
        changed = edited(parse_recipe(text), lambda document: remove_key(document, "dtype"))
        assert (changed.dtype, changed.merge_method) == ("float32", "tsv_m")

    def test_anchors_may_be_defined_twice(self) -> None:
        text = (
            "merge_method: linear\nbase_model: org/base\nmodels: [{model: org/a, parameters: {weight: &w 2}},"
            " {model: org/b, parameters: {weight: &w 3}}, {model: org/c, parameters: {weight: *w}}]\n"
        )
        changed = edited(parse_recipe(text), lambda document: put_key(document, "dtype", "float64"))
        assert changed.rule_at(Q, "linear", 0.0).weights == (2.0, 3.0, 3.0)

    def test_a_change_that_makes_no_recipe_is_told(self) -> None:
        with pytest.raises(RecipeError, match=r"mine\.yaml:4: 'dtype' has a wrong value, .* Did you mean 'float16'"):
            edited(
                parse_recipe("merge_method: tsv_m\nbase_model: org/base\nmodels: [{model: org/a}]\n", "mine.yaml"),
                lambda document: put_key(document, "dtype", "fp16"),
            )


class TestPinned:
    PINS: ClassVar = {"org/base": "org/base@" + "a" * 40, "org/code": "org/code@" + "b" * 40}

    def test_the_lock_is_the_recipe_with_other_references(self) -> None:
        want = COMMENTED.replace('"org/base"', f'"{self.PINS["org/base"]}"')
        want = want.replace("'org/code'", f"'{self.PINS['org/code']}'")
        assert pinned_text(parse_recipe(COMMENTED), self.PINS) == want

    def test_a_listed_base_and_mergekits_mapping_are_pinned(self) -> None:
        text = (
            "merge_method: linear\nbase_model: {model: {path: org/base}}\nmodels:\n  - model: org/code\n"
            "    name: python\n  - model: hf://org/base\ntokenizer: {source: org/code}\n"
        )
        again = parse_recipe(pinned_text(parse_recipe(text), self.PINS))
        assert (again.base.text, [m.ref.text for m in again.models]) == (self.PINS["org/base"], [self.PINS["org/code"]])
        assert again.rule_at(Q, "linear", 0.0).base_weight == 1.0
        assert again.tokenizer.source == again.models[0].ref

    @pytest.mark.parametrize("written", ["base", "code", "union"])
    def test_a_tokenizers_word_stays(self, written: str) -> None:
        text = f"{COMMENTED}tokenizer_source: {written}\n"
        assert pinned_text(parse_recipe(text), self.PINS).endswith(f"tokenizer_source: {written}\n")

    def test_slices_stay_slices(self) -> None:
        text = (
            "slices:\n  - sources:\n      - model: org/base   # theirs\n        layer_range: [0, 2]\n"
            "      - model: org/code\n        layer_range: [0, 2]\nmerge_method: slerp\nbase_model: org/base\n"
            "parameters: {t: [0, 1]}\n"
        )
        pinned = pinned_text(parse_recipe(text), self.PINS)
        want = text.replace("org/base", self.PINS["org/base"]).replace("org/code", self.PINS["org/code"])
        assert squeezed(pinned) == squeezed(want)


class TestCompression:
    def test_a_merge_becomes_a_compression(self) -> None:
        recipe = as_compression(parse_recipe(COMMENTED))
        assert (rule(recipe, "lm_head"), rule(recipe, MLP)) == (("tsv_c", {}), ("tsv_c", {}))
        assert rule(recipe, "model.layers.0.attn.q") == ("tsv_c", {"rank": 4})  # as it had from the recipe's own
        assert rule(recipe, "model.norm.weight") == ("base", {})
        gone = {"about density", "half", "own", "small", "after the scale", "four"}
        assert comments(recipe.text) == [comment for comment in comments(COMMENTED) if comment not in gone]

    def test_a_rule_is_for_every_tensor(self) -> None:
        recipe = as_compression(parse_recipe(COMMENTED), {"rank": 8})
        names = ("lm_head", MLP, "model.layers.0.attn.q")
        assert [rule(recipe, name) for name in names] == [("tsv_c", {"rank": 8})] * 3
        assert recipe.text.endswith("dtype: float32\nparameters:\n  rank: 8\n# The end.\n")

    @pytest.mark.parametrize(
        ("own", "want"),
        [
            ("parameters: {fraction: 1.0, weight: 2}   # all\n", "parameters: {weight: 2, rank: 8}   # all\n"),
            ("parameters:\n  # much\n  energy: 0.9   # e\n# below\n", "parameters:\n  # much\n  rank: 8\n# below\n"),
            ("parameters:\n  budget: [1MB, 10%]\n", "parameters:\n  rank: 8\n"),
            ("parameters:\n  rank:\n    - {filter: q, value: 2}\n", "parameters:\n  rank: 8\n"),
            ("parameters: {}\n", "parameters:\n  rank: 8\n"),
            ("", "parameters:\n  rank: 8\n"),
        ],
    )
    def test_a_rule_takes_the_place_of_the_recipes_own(self, own: str, want: str) -> None:
        head = "merge_method: tsv_c\nbase_model: org/base\nmodels:\n  - model: org/a\n"
        override = "overrides:\n  - filter: mlp   # here\n    parameters: {error: 0.1}   # e\n  # end\n"
        recipe = as_compression(parse_recipe(head + own + override), {"rank": 8})
        assert rule(recipe) == rule(recipe, MLP) == ("tsv_c", {"rank": 8})
        end = "overrides:\n  - filter: mlp   # here\n  # end\n"
        want = want + end if own else end.replace("  # end\n", f"{want}  # end\n")
        assert squeezed(recipe.text) == squeezed(head + want)

    def test_a_compression_stays_as_it_is(self) -> None:
        text = (
            "merge_method: tsv_c\nbase_model: org/base\nmodels: [{model: org/a, parameters: {weight: 2}}]\n"
            "parameters: {rank: 8, int8_mask: true}\noverrides: [{filter: norm, merge_method: base}]\n"
            "residuals: {rank: 2}\nadapters: {rank: 16, profiles: [serving]}\n"
        )
        recipe = parse_recipe(text)
        assert as_compression(recipe) is recipe
        assert as_compression(recipe, {"rank": 8}) is recipe
        assert as_compression(recipe, adapters={"rank": 16, "profiles": ("serving",)}) is recipe

    def test_adapters_are_set(self) -> None:
        recipe = parse_recipe("merge_method: tsv_c\nbase_model: org/base\nmodels:\n  - model: org/a\n")
        options = {"profiles": ("faithful", "serving"), "rank": 16, "factor_dtype": "float16"}
        changed = as_compression(recipe, adapters=options)
        assert changed.adapters == RecipeAdapters(("faithful", "serving"), 16, "float16")
        assert "  profiles: [faithful, serving]\n" in changed.text
        again = as_compression(changed, adapters={"rank": 32})
        assert again.text == changed.text.replace("16\n", "32\n", 1)
        with pytest.raises(RecipeError, match="'rank' has a wrong value, expected 8, 16, 32, 64 or 128 but got 7"):
            as_compression(recipe, adapters={"rank": 7})

    def test_what_several_methods_took_goes_where_only_overrides_are_replaced(self) -> None:
        text = (
            "merge_method: tsv_c\nbase_model: org/base\nmodels: [{model: org/a, parameters: {density: 1, weight: 2}}]\n"
            "parameters: {fraction: 0.5, density: 0.1}\noverrides:\n  - {filter: mlp, merge_method: ties}\n"
        )
        recipe = as_compression(parse_recipe(text))
        assert rule(recipe) == rule(recipe, MLP) == ("tsv_c", {"fraction": 0.5})
        assert recipe.rule_at(Q, "linear", 0.0).weights == (2.0,)

    def test_base_on_top_chooses_what_is_compressed(self) -> None:
        text = (
            "merge_method: base\nbase_model: org/base\nmodels: [{model: org/a}]\nparameters: {density: 0.1}\n"
            "overrides: [{filter: mlp, merge_method: ties}]\n"
        )
        recipe = as_compression(parse_recipe(text), {"energy": 0.9})
        assert (rule(recipe), rule(recipe, MLP)) == (("base", {}), ("tsv_c", {"energy": 0.9}))
        nothing = parse_recipe("merge_method: base\nbase_model: org/base\nmodels: [{model: org/a}]\n")
        assert rule(as_compression(nothing)) == ("tsv_c", {})

    def test_residuals_go_with_the_merge(self) -> None:
        text = COMMENTED + "residuals: {rank: 2}   # what is lost\n"
        assert as_compression(parse_recipe(text)).residuals is None

    def test_the_model_that_stood_in_for_the_base_is_named(self) -> None:
        recipe = as_compression(parse_recipe("merge_method: linear\nmodels:\n  - model: org/a\n  - model: org/b\n"))
        assert (recipe.base.text, [model.name for model in recipe.models]) == ("org/a", ["b"])

    def test_slices_and_json_and_merge_keys(self) -> None:
        sources = [{"model": f"org/{m}", "layer_range": [0, 2], "parameters": {"density": 1}} for m in ("base", "a")]
        data = {"merge_method": "ties", "base_model": "org/base", "slices": [{"sources": sources}]}
        assert rule(as_compression(parse_recipe(json.dumps(data)), {"rank": 8})) == ("tsv_c", {"rank": 8})
        text = (
            "merge_method: ties\nbase_model: org/base\nmodels: [&m {model: org/a, parameters: &p {density: 1}},"
            " {<<: *m, model: org/b}]\nparameters: *p\noverrides:\n  - &o {filter: mlp, merge_method: tsv_m,"
            " parameters: {rank: 3}}\n  - {<<: *o, filter: attn}\n  - {filter: x, merge_method: ties, parameters: *p}\n"
        )
        recipe = as_compression(parse_recipe(text), {"rank": 8})
        assert {rule(recipe, name) == ("tsv_c", {"rank": 8}) for name in (Q, MLP, "attn", "x")} == {True}


METHODS = st.sampled_from(["tsv_c", "base", "ties", "tsv_m", None])
OWN = st.dictionaries(st.sampled_from(["rank", "scale", "density", "energy", "weight"]), st.just(1), max_size=3)


@pytest.mark.slow
@given(METHODS, OWN, st.lists(st.tuples(METHODS, OWN), max_size=3), st.booleans())
def test_a_compression_of_any_recipe_compresses_all_but_the_base(
    own: str | None, parameters: dict[str, int], overrides: list[tuple[str | None, dict[str, int]]], flow: bool
) -> None:
    entries = [
        {"filter": f"part{i}", **({"merge_method": method} if method else {}), "parameters": given_}
        for i, (method, given_) in enumerate(overrides)
    ]
    data = {"merge_method": own or "ties", "base_model": "org/base", "models": [{"model": "org/a"}]}
    text = json.dumps({**data, "parameters": parameters, "overrides": entries})
    if not flow:
        text = to_yaml(json.loads(text))
    try:
        recipe = parse_recipe(text)
    except RecipeError:
        reject()  # a parameter that no method takes
    plain, by_rank = as_compression(recipe), as_compression(recipe, {"rank": 8})
    for i in range(len(overrides) + 1):
        before, after = recipe.rule_at(f"part{i}", "linear", 0.0), plain.rule_at(f"part{i}", "linear", 0.0)
        if before.method == "tsv_c":
            assert dict(after.parameters) == dict(before.parameters)
        if before.method != "base" or set(recipe.methods) == {"base"}:
            assert after.method == "tsv_c"
            assert dict(by_rank.rule_at(f"part{i}", "linear", 0.0).parameters) == {"rank": 8}
        else:
            assert after.method == "base"
    assert as_compression(by_rank, {"rank": 8}) is by_rank
