"""Model cards: what they say, that they say it whole, and that no name can make them say something else.

`python -m tests.cards.test_cards` writes the golden examples anew.
"""

import json
import re
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unicodedata import category

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from ruamel.yaml import YAML
from transformers import BertTokenizer

import hf_tsv
from hf_tsv.cards import (
    Licence,
    check_card,
    code,
    fence,
    inherited,
    link,
    of_task,
    render_adapters,
    render_card,
    text,
    write_card,
)
from hf_tsv.cards._sections import compose
from hf_tsv.cards._tensors import value_text
from hf_tsv.checkpoints.folder import open_checkpoint
from hf_tsv.files.bundled import bundled
from hf_tsv.job.recording import KeptFiles, make_record
from hf_tsv.methods import METHODS
from hf_tsv.recipe import pinned_text, to_yaml
from hf_tsv.record import SourceEntry, Terms, Versions
from tests.support import models
from tests.support.bundled import RECIPES, plan_of
from tests.support.records import (
    SHAS,
    VERSIONS,
    adapters_record,
    folder_merge,
    hub_merge,
    lock_of,
    output,
    source,
    tensor,
    typed,
)

EXAMPLES = bundled("cards") / "examples"
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def card_of(record: Mapping[str, Any], folder: Path, **configs: Any) -> str:
    return render_card(typed(record), output(folder, lock_of(record), **configs))


def hub_card(folder: Path) -> str:
    record = hub_merge()
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    lock = lock_of(record, overrides=[{"filter": "mlp", "merge_method": "ties"}])
    return render_card(typed(record), output(folder, lock, config=config, tokenizer={}))


def folder_card(folder: Path) -> str:
    record = folder_merge()
    return render_card(typed(record), output(folder, lock_of(record), config={"model_type": "bert"}, modules=[]))


def adapters_card(folder: Path) -> str:
    record = adapters_record()
    for task in record["adapters"]:
        (folder / "adapters" / task).mkdir(parents=True)
        (folder / "adapters" / task / "adapter_config.json").write_text('{"task_type": "CAUSAL_LM"}')
    return render_card(typed(record), output(folder, lock_of(record)))


def adapter_card(folder: Path) -> str:
    adapters_card(folder)
    part = of_task(typed(adapters_record()), "code")
    return render_adapters(part, folder, {("code", "faithful"): "."}, olds=[], licence=None)


def recipe_card(path: Path, folder: Path) -> str:
    """The card of a bundled recipe's merge, which nobody has run here: from headers alone."""
    planned = plan_of(path)
    models = [planned.recipe.base.text, *(model.ref.text for model in planned.recipe.models)]
    shas = [None if model.startswith(".") else f"{i:02d}" * 20 for i, model in enumerate(models)]
    tasks = [None, *planned.tasks]
    sources = [SourceEntry(**source(*one)) for one in zip(models, tasks, shas, strict=True)]
    facts = {step.name: {"sha256": "0" * 64} for step in planned.steps}
    record = make_record(planned, sources, facts, KeptFiles(), seconds=1.5)
    record = record.model_copy(update={"versions": Versions(**VERSIONS)})
    output(folder, {}, config={"architectures": ["CLIPModel"]} if shas[0] else {"model_type": "bert"})
    (folder / "recipe.yaml").write_text(planned.recipe.text)
    pins = {model: f"{model}@{sha}" for model, sha in zip(models, shas, strict=True) if sha}
    (folder / "recipe.lock.yaml").write_text(pinned_text(planned.recipe, pins))
    return render_card(record, folder)


GOLDEN = {
    "merge": hub_card,
    "merge_of_folders": folder_card,
    "adapters": adapters_card,
    "adapter": adapter_card,
    **{path.stem: partial(recipe_card, path) for path in RECIPES},
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_examples(name: str, tmp_path: Path) -> None:
    assert GOLDEN[name](tmp_path) == (EXAMPLES / f"{name}.md").read_text("utf-8")


def test_a_value_that_all_tasks_have_is_told_once() -> None:
    assert [value_text([0.4, 0.4]), value_text([0.4, 0.3]), value_text([True, True])] == ["0.4", "0.4/0.3", "true"]


def header_of(card: str) -> dict[str, Any]:
    """The header as the Hub's own rules find it."""
    header: dict[str, Any] = ModelCard(card).data.to_dict()  # type: ignore[no-untyped-call]  # huggingface_hub has no types for it
    return header


def test_every_example_is_one_of_these() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.md")} == GOLDEN.keys()


@pytest.mark.parametrize("name", GOLDEN)
def test_the_hub_would_take_every_example(name: str) -> None:
    assert check_card((EXAMPLES / f"{name}.md").read_text("utf-8")) == []


class TestWrittenByPeople:
    """What people write between our sections, and into the header, stays when the card is written anew."""

    def test_sections_stay_where_they_stood(self, tmp_path: Path) -> None:
        card = hub_card(tmp_path)
        edited = (
            card.replace("<!-- hf_tsv:begin sources", "## Mine\n\nwords\n\n<!-- hf_tsv:begin sources")
            + "\nlast words\n"
        )
        edited = "---" + edited.split("---", 1)[1].replace("The weights take", "Stale: the weights take")
        again = render_card(typed(hub_merge()), tmp_path, olds=[edited])
        assert again == edited.replace("Stale: the", "The")
        assert again.index("How to load") < again.index("## Mine\n\nwords") < again.index("## Sources")
        assert again.endswith("last words\n")

    @given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r")), max_size=4))
    def test_composing_again_changes_nothing(self, written: list[str]) -> None:
        header, sections = ModelCardData(tags=["a"]), {"one": "# One", "two": "two", "three": "three"}
        card = compose(header, sections, [])
        for words in written:
            card = card.replace("<!-- hf_tsv:begin two", f"{words}\n\n<!-- hf_tsv:begin two", 1)
        once = compose(header, sections, [card])
        assert compose(header, sections, [once]) == once
        assert compose(header, sections, [once, card]) == once
        assert all(words.strip() in once for words in written)

    def test_sections_that_are_gone_leave_their_followers(self, tmp_path: Path) -> None:
        record = folder_merge()
        card = render_card(typed(record), output(tmp_path, lock_of(record)))
        old = card.replace("<!-- hf_tsv:begin recipe", "after the warnings\n\n<!-- hf_tsv:begin recipe")
        again = render_card(typed(record | {"warnings": []}), tmp_path, olds=[old])
        assert "## Warnings" not in again
        assert again.index("## What was merged") < again.index("after the warnings") < again.index("## Recipe")

    def test_a_card_of_somebody_else_stays_below_ours(self, tmp_path: Path) -> None:
        hub_card(tmp_path)
        old = "---\nlicense: mit\ntags: [ties, mine]\nmodel_name: M\n---\n# Theirs\n"
        again = render_card(typed(hub_merge()), tmp_path, olds=[old])
        assert again.endswith("# Theirs\n")
        header = header_of(again)
        assert header["tags"] == ["merge", "hf_tsv", "linear", "ties", "tsv-m", "mine"]
        assert header["model_name"] == "M"
        assert "license" not in header

    @pytest.mark.parametrize("name", ["<!-- hf_tsv:end recipe 0123456789abcdef -->", "<!-- hf_tsv:begin x -->", "---"])
    def test_no_name_passes_for_a_mark(self, name: str) -> None:
        card = disguised(f"{name}\n{name}")
        record = folder_merge()
        with TemporaryDirectory() as folder:
            fresh = render_card(typed(record), output(Path(folder), lock_of(record)))
            again = render_card(typed(record), Path(folder), olds=[card])
        assert ModelCard(again).text == ModelCard(fresh).text

    def test_a_header_that_is_none_is_no_reason_to_lose_the_rest(self, tmp_path: Path) -> None:
        hub_card(tmp_path)
        again = render_card(typed(hub_merge()), tmp_path, olds=["---\n: [\n---\nwords\n"])
        assert again.endswith("words\n")


class TestLicence:
    @pytest.mark.parametrize(
        ("licences", "expected"),
        [
            (["mit", "mit"], "mit"),
            (["mit", "apache-2.0", "bsd-3-clause"], "apache-2.0"),
            (["mit", "isc"], "mit"),
            (["mit", "cc-by-nc-4.0", "apache-2.0"], "cc-by-nc-4.0"),
            (["llama3.1", "mit"], "llama3.1"),
            (["llama3.1", "llama3.1"], "llama3.1"),
            (["llama3.1", "gemma"], None),
            (["cc-by-sa-4.0", "cc-by-nc-sa-4.0", "mit"], None),
            (["mit", None], None),
            ([None], None),
        ],
    )
    def test_follows_from_the_sources(self, licences: list[str | None], expected: str | None) -> None:
        found = inherited([Terms(license=licence) for licence in licences]).licence
        assert (found and found.id) == expected

    def test_two_that_are_called_other_are_not_one(self) -> None:
        terms = [Terms(license="other", license_name=name, license_link=f"https://x/{name}") for name in "ab"]
        assert inherited(terms).licence is None
        assert inherited(terms[:1] * 2).licence == Licence("other", "a", "https://x/a")

    @pytest.mark.parametrize(
        "card", ["---\nlicense: Apache 2\n---\n", "---\nbase_model: [a b]\n---\n", "---\n: [\n---\n"]
    )
    def test_a_header_that_the_hub_refuses_is_found_without_it(self, card: str) -> None:
        assert check_card(card)


class TestHeader:
    def test_says_what_it_was_made_from(self, tmp_path: Path) -> None:
        assert header_of(hub_card(tmp_path)) == {
            "base_model": ["example/small-lm", "example/small-lm-math", "someone/small_lm-code"],
            "base_model_relation": "merge",
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "tags": ["merge", "hf_tsv", "linear", "ties", "tsv-m"],
            "hf_tsv": {
                "version": "0.1.0",
                "recipe_sha256": sha256((tmp_path / "recipe.yaml").read_bytes()).hexdigest(),
            },
        }

    def test_of_folders_alone_names_no_base(self, tmp_path: Path) -> None:
        assert not {"base_model", "base_model_relation"} & header_of(folder_card(tmp_path)).keys()

    @pytest.mark.parametrize(
        ("config", "model_class", "pipeline_tag"),
        [
            ({"architectures": ["GPTNeoXForCausalLM"]}, "AutoModelForCausalLM", "text-generation"),
            ({"architectures": ["BertForMaskedLM"]}, "AutoModelForMaskedLM", "fill-mask"),
            ({"architectures": ["Wav2Vec2ForSequenceClassification"]}, "Wav2Vec2ForSequenceClassification", None),
            ({"architectures": ["T5ForConditionalGeneration"]}, "T5ForConditionalGeneration", None),
            ({"architectures": None, "model_type": "bert"}, "AutoModel", None),
            ({"architectures": ["MyModel"], "auto_map": {}}, "AutoModel", None),
            ({"architectures": ["os; import shutil"]}, "AutoModel", None),
            ({"architectures": 5}, "AutoModel", None),
        ],
    )  # fmt: skip
    def test_class_and_task_go_by_the_architecture(
        self, config: dict[str, Any], model_class: str, pipeline_tag: str | None, tmp_path: Path
    ) -> None:
        card = card_of(hub_merge(), tmp_path, config=config)
        assert f"from transformers import {model_class}\n" in card
        assert header_of(card).get("pipeline_tag") == pipeline_tag

    @pytest.mark.parametrize(
        ("called", "model_class"),
        [("SparseEncoder", "SparseEncoder"), (None, "SentenceTransformer"), ([], "SentenceTransformer")],
    )
    def test_sentence_transformers_say_their_class(self, called: object, model_class: str, tmp_path: Path) -> None:
        named = {"config_sentence_transformers": {"model_type": called}}
        card = card_of(hub_merge(), tmp_path, modules=[], **named)
        assert f"from sentence_transformers import {model_class}\n" in card

    @pytest.mark.parametrize("config", [None, [], {"_class_name": "UNet2DConditionModel"}])
    def test_a_model_of_another_library_has_no_snippet(self, config: object, tmp_path: Path) -> None:
        card = card_of(hub_merge(), tmp_path, **({} if config is None else {"config": config}))
        assert "How to load it" not in card
        assert "library_name" not in header_of(card)

    def test_a_broken_configuration_does_not_lose_the_card(self, tmp_path: Path) -> None:
        output(tmp_path, lock_of(hub_merge()))
        (tmp_path / "config.json").write_text('{"architectures": ')
        assert render_card(typed(hub_merge()), tmp_path)


class TestBody:
    def test_sections_without_content_are_absent(self, tmp_path: Path) -> None:
        record = hub_merge()
        record["tensors"] = {name: t for name, t in record["tensors"].items() if "q_proj" in name}
        titles = {line for line in card_of(record, tmp_path).splitlines() if line.startswith("##")}
        assert titles == {"## Sources", "## Method", "## What was merged", "## Recipe", "## Reproduce", "## Citation"}

    def test_a_merge_that_changed_nothing_says_so(self, tmp_path: Path) -> None:
        record = hub_merge()
        record["tensors"] = {"a.weight": tensor([4, 4], unchanged=True), "b.weight": tensor([4], unchanged=True)}
        card = card_of(record, tmp_path)
        assert "## What was merged" not in card
        assert "| `a.weight` | 1 | 4 × 4 | no task changed it |" in card

    def test_stacked_experts_count_expert_by_expert(self, tmp_path: Path) -> None:
        record = hub_merge()
        experts: dict[str, Any] = {"rank": [[3, 2], [1, None], None], "energy": [[0.5, 0.75], [1.0], None]}
        record["tensors"] = {"experts.up": tensor([3, 8, 6], notes=experts)}
        assert "| `experts.up` | 1 | 3 × 8 × 6 | `tsv_m` | 1 to 3 | 50.0% to 100.0% |" in card_of(record, tmp_path)

    def test_mixed_dtypes_are_loaded_as_the_configuration_says(self, tmp_path: Path) -> None:
        record = hub_merge()
        record["tensors"]["lm_head.weight"]["dtype"] = "F32"
        card = card_of(record, tmp_path, config={"model_type": "llama"})
        assert 'dtype="auto"' in card
        assert "in float32 and bfloat16." in card

    def test_only_the_papers_that_were_used_are_cited(self, tmp_path: Path) -> None:
        cited = set(re.findall(r"eprint = {(.*)}", hub_card(tmp_path)))
        assert cited == {"2412.00081", "2306.01708", "2203.05482"}

    def test_every_method_can_be_cited(self) -> None:
        entries = (bundled("cards") / "citations.bib").read_text("utf-8")
        papers = {method.paper for method in METHODS.values() if method.paper}
        assert papers <= {f"https://arxiv.org/abs/{arxiv}" for arxiv in re.findall(r"eprint = {(.*)}", entries)} | {
            f"https://doi.org/{doi}" for doi in re.findall(r"doi = {(.*)}", entries)
        }


PRIVATE = "/home/alice/secret"


class TestFolders:
    """Where a model lies on somebody's machine doesn't belong on a public page."""

    def test_no_path_reaches_the_card(self, tmp_path: Path) -> None:
        record = folder_merge()
        paths = [f"{PRIVATE}/base", f"{PRIVATE}/with spaces/reviews", "~alice/secret/c++/questions"]
        for found, path in zip(record["sources"], paths, strict=True):
            found["model"] = path
        record["sources"].append(source("org/name", "adapted", SHAS[0]) | {"adapter": f"{PRIVATE}/lora"})
        record["warnings"] = [
            f"{PRIVATE}/my recipes/r.yaml:7: '{PRIVATE}/base' stands in",
            f"see {PRIVATE}/base, ~alice/secret/x, ../secret/y",
        ]
        lock = lock_of(record, tokenizer_source=f"{PRIVATE}/base") | {"base_model": {"model": {"path": paths[0]}}}
        card = render_card(typed(record), output(tmp_path, lock))
        assert not re.search("alice|secret|my recipes|with spaces", card)
        assert "- r.yaml:7: 'base' stands in\n- see base, x, y\n" in card
        assert "tokenizer_source: base\n" in card
        assert "- model: reviews\n" in card
        assert "- model: questions\n" in card
        assert f"- model: org/name@{SHAS[0]}+lora\n" in card
        assert "](https://huggingface.co/org/name/tree/" in card
        assert " + `lora` | " in card
        assert " + local folder |" in card

    @pytest.mark.parametrize(("written", "path"), [("secret/base", "secret/base"), ("./base", "secret/base")])
    def test_a_folder_is_known_by_the_record_or_by_how_it_is_written(
        self, written: str, path: str, tmp_path: Path
    ) -> None:
        record = folder_merge()
        record["sources"][0]["model"] = path
        card = render_card(typed(record), output(tmp_path, lock_of(record) | {"base_model": written}))
        assert "\nbase_model: base\n" in card

    @pytest.mark.parametrize("path", [".", "..", "~", "/"])
    def test_a_folder_without_a_name(self, path: str, tmp_path: Path) -> None:
        record = folder_merge()
        record["sources"][0]["model"] = path
        assert "\nbase_model: local folder\n" in card_of(record, tmp_path)

    def test_addresses_and_tensor_names_stay_whole(self, tmp_path: Path) -> None:
        record = folder_merge()
        record["warnings"] = ["hf://org/name and org/name@main, a/b/c: 3 of 4, www.x.org"]
        assert "- hf&#58;//org/name and org/name@main, a/b/c: 3 of 4, &#119;ww.x.org\n" in card_of(record, tmp_path)


NASTY = [
    "a|b", "a\\|b", "a\\", "`", "``` x", "x\n---\nlicense: mit\n---\n", "\r\n# heading", "\u2028# heading", "\x85x",
    "<script>alert(1)</script>", "<!--", "-->", "</code>", "<img src=x>", "&lt;b&gt;", "](https://evil.example) [",
    "![x](y)", "[x]: https://evil.example", "<https://evil.example>", "*a* _b_ ~~c~~", "$$x$$", "# x", "- x", "1. x",
    "{{ 7 * 7 }}", "{% raw %}", "\u202egnp", "\x00\x1b[31m", "a: b # c", "'", '"', "!!python/object", "| a |\n| - |",
    "é漢字",
]  # fmt: skip


def disguised(name: str) -> str:
    """The card of a merge in which everything that strangers name has this name."""
    record = folder_merge()
    record["sources"][0] |= {"model": f"org/{name}", "revision": name}
    record["sources"][1] |= {"model": name.replace("/", ""), "task": name, "adapter": f"org/{name}@{SHAS[1]}"}
    merged, kept = tensor([4, 4], "task_arithmetic"), tensor([4], "base", why=name)
    record["tensors"] = {name: merged, f"kept {name}": kept}
    # A record's paths have no NUL, and nothing that Windows would take for a drive.
    file = re.sub("[\0:]", "", name)
    record["task_parts"] = {name: {"file": file, "tensors": [name, name]}}
    record["warnings"] = [f"x {name}", name]
    with TemporaryDirectory() as folder:
        lock = lock_of(record, chat_template=name)
        return render_card(typed(record), output(Path(folder), lock, config={"architectures": [name]}))


INLINE = ("html_inline", "image", "softbreak", "hardbreak", "link_open", "s_open", "em_open")


def structure(card: str) -> list[str]:
    """The blocks of a card, its headings' words but for the title, and which sites its lines link to."""
    tokens = MARKDOWN.parse(ModelCard(card).text)
    found = []
    for before, token in pairwise(tokens):
        found.append(token.type)
        found += [inline(child) for child in token.children or () if child.type in INLINE]
        if before.type == "heading_open" and before.tag != "h1":
            found.append(token.content)
    return [entry for entry in found if entry not in ("<code>", "</code>")]


def inline(token: Token) -> str:
    """HTML as it is, or the first part of where a link goes."""
    return token.content or "/".join([token.type, *str(token.attrs.get("href", "")).split("/")[2:4]])


class TestNasty:
    @pytest.mark.parametrize("name", NASTY)
    def test_names_change_nothing_but_what_is_read(self, name: str) -> None:
        assert structure(disguised(name)) == structure(disguised("x"))

    @pytest.mark.parametrize("name", NASTY)
    def test_the_header_holds_the_usual_keys(self, name: str) -> None:
        header = header_of(disguised(name))
        assert list(header) == ["base_model", "library_name", "tags", "base_model_relation", "hf_tsv"]
        assert header["base_model"] == [shown("org/" + name.partition("/")[0])]  # behind it is a folder in it

    @pytest.mark.parametrize("name", NASTY)
    def test_the_recipe_reads_back(self, name: str) -> None:
        fences = [t for t in MARKDOWN.parse(disguised(name)) if t.type == "fence" and t.info == "yaml"]
        as_yaml_has_it = YAML(typ="safe", pure=True).load(to_yaml(name))
        recipes = [YAML(typ="safe", pure=True).load(fence.content) for fence in fences]
        assert [recipe["chat_template"] for recipe in recipes] == [as_yaml_has_it]

    @given(st.text())
    def test_a_name_reads_as_itself(self, name: str) -> None:
        row = f"| a | b | c |\n| - | - | - |\n| {code(name)} | {text(name)} | {link(name, 'https://x.org/' + name)} |\n"
        cells = [read(token) for token in MARKDOWN.parse(row) if token.type == "inline"]
        assert cells == ["a", "b", "c", shown(name), shown(name), shown(name)]

    @given(st.text(min_size=1).filter(lambda name: name.strip()))
    def test_a_message_is_one_item_of_a_list(self, message: str) -> None:
        tokens = MARKDOWN.parse(f"- {text(message)}\n")
        types = ["bullet_list", "list_item", "paragraph"]
        assert [t.type for t in tokens] == [
            *(f"{t}_open" for t in types),
            "inline",
            *(f"{t}_close" for t in types[::-1]),
        ]
        assert read(tokens[3]) == shown(message)

    @given(st.lists(st.sampled_from(["`", "```", "````", "~~~", "a", " ", "\n"])).map("".join))
    def test_a_fence_holds_whatever_it_is_given(self, content: str) -> None:
        tokens = MARKDOWN.parse(f"{fence(content, 'yaml')}\n\nafter\n")
        assert [t.type for t in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]
        assert tokens[0].content.rstrip("\n") == content.rstrip("\n")


def shown(name: str) -> str:
    """What a reader sees of a name: one line, with a mark for each sign that can't be seen."""
    return "".join(c if c.isprintable() or category(c) == "Zs" else "\ufffd" for c in " ".join(name.split()))


def read(token: Token) -> str:
    return "".join(child.content for child in token.children or () if child.type in ("text", "code_inline"))


def snippet_of(folder: Path) -> dict[str, Any]:
    """What the names in the card's snippet stand for once it ran."""
    (found,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(found.replace('path = "."', f"path = {str(folder)!r}"), names)
    return names


@pytest.mark.parametrize("arch", ["llama", "clip", "t5"])
def test_a_real_merge_loads_as_its_card_says(arch: str, tmp_path: Path) -> None:
    folder, out = models.zoo(models.ARCHITECTURES[arch], tmp_path), tmp_path / "out"
    hf_tsv.merge(models.recipe(folder, more="out_dtype: bfloat16\n"), out)
    card = (out / "README.md").read_text("utf-8")
    assert header_of(card)["library_name"] == "transformers"
    assert str(tmp_path) not in card
    model, merged = snippet_of(out)["model"], open_checkpoint(out)
    assert type(model) is type(models.ARCHITECTURES[arch]())
    assert model.dtype == torch.bfloat16
    state = model.state_dict()
    assert all(torch.equal(state[name], merged.read(name)) for name in merged.names())


@pytest.mark.slow
def test_a_real_sentence_transformer_loads_as_its_card_says(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    folder, out = models.zoo(models.bert, tmp_path), tmp_path / "out"
    modules = {"Transformer": "", "Pooling": "1_Pooling"}
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(modules.items())
    ]
    (folder / "base" / "modules.json").write_text(json.dumps(listed))
    (folder / "base" / "1_Pooling").mkdir()
    (folder / "base" / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 32}')
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello"])}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder / "base")
    hf_tsv.merge(models.recipe(folder), out)
    assert header_of((out / "README.md").read_text("utf-8"))["library_name"] == "sentence-transformers"
    model = snippet_of(out)["model"]
    assert isinstance(model, library.SentenceTransformer)
    assert model.encode("hello").shape == (32,)


def test_the_card_is_written_into_the_folder(tmp_path: Path) -> None:
    output(tmp_path, lock_of(hub_merge()))
    write_card(typed(hub_merge()), tmp_path)
    assert (tmp_path / "README.md").read_text("utf-8") == render_card(typed(hub_merge()), tmp_path)


if __name__ == "__main__":
    for golden, make in GOLDEN.items():
        with TemporaryDirectory() as made:
            (EXAMPLES / f"{golden}.md").write_text(make(Path(made)), "utf-8")
