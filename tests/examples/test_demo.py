"""The demo, on texts of a few words and a transformer of a few weights."""

import gzip
import importlib.util
import io
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch
import transformers as tf
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers

from examples.demo import compare, data, train, zoo
from examples.demo.encoder import Encoder, batches
from examples.demo.head import Head, fit_head
from examples.demo.zoo import Task, Zoo, prepare
from hf_tsv.errors import HfTsvError, ResourceError
from hf_tsv.merging.progress import Silent
from tests.support.models import SMALL, save

COLOURS = ("red", "green", "blue", "black", "white", "brown", "pink", "grey")
ANIMALS = ("cat", "dog", "horse", "cow", "sheep", "goat", "bird", "fish")
WORDS = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "a", "the", *COLOURS, *ANIMALS))}
TEXTS = [
    (f"{article} {word}", label)
    for label, words in enumerate((COLOURS, ANIMALS))
    for word in words
    for article in ("a", "the the")
]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A BERT of two layers, with the tokenizer of a language of 20 words."""
    words = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    model = tf.BertModel(tf.BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **SMALL))
    folder = save(model, tmp_path / "base")
    tokenizer.save_pretrained(folder)
    return folder


def head_for(encoder: Encoder, examples: list[data.Example]) -> Head:
    texts, labels = train._encoded(encoder, examples)
    return fit_head(encoder.embed(texts), labels, ("colour", "animal"))


def task(folder: Path, head: Head, test: list[data.Example]) -> Task:
    folder.mkdir()
    head.save(folder / train.HEAD)
    (folder / train.TEXTS).write_text(json.dumps({"validation": test[:4], "test": test}))
    return Task(folder.name, folder, base_accuracy=0.5, accuracy=0.8)


class TestTexts:
    def test_icd_gives_every_diagnosis_its_chapter(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "icd10c-tabular-2026.xml").write_text(
            "<t><chapter><desc>Injuries</desc><section><diag><desc>Fracture</desc><diag><desc>of skull</desc></diag>"
            "</diag></section></chapter><chapter><desc>Eye</desc><diag><desc>Myopia</desc></diag></chapter></t>"
        )
        assert list(data.icd(tmp_path)) == [("Fracture", "Injuries"), ("of skull", "Injuries"), ("Myopia", "Eye")]

    def test_langid_drops_accents_and_skin_tones(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(data, "LANGUAGES_OF_EMOJI", ("en", "fr"))
        (tmp_path / "unicode_codes").mkdir()
        names = {"🥇": {"en": ":1st_place_medal:"}, "👋🏽": {"en": ":waving_hand:"}}
        (tmp_path / "unicode_codes" / "emoji.json").write_text(json.dumps(names))
        (tmp_path / "unicode_codes" / "emoji_fr.json").write_text(json.dumps({"🥇": ":Médaille_d’or:"}))
        assert list(data.langid(tmp_path)) == [("1st place medal", "en"), ("medaille d’or", "fr")]

    def test_pos_takes_plain_words_of_the_open_classes(self, tmp_path: Path) -> None:
        (tmp_path / "resources").mkdir()
        lines = "Aachen,noun,Aachen\nmust,aux,must\nrun,verb,ran/run\nwell-off,adj,,\nquick,adj,,\n"
        (tmp_path / "resources" / "infl_lu.csv.gz").write_bytes(gzip.compress(lines.encode()))
        assert list(data.pos(tmp_path)) == [("run", "verb"), ("quick", "adj")]

    def test_proglang_reads_assigned_names_only(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(data, "PROGRAMMING", ("php",))
        (tmp_path / "lexers").mkdir()
        code = '"""docstring"""\nM = {"array": ("array_Map", "a b c d", "if")}\nif 1:\n    x = "generator"\n'
        (tmp_path / "lexers" / "_php_builtins.py").write_text(code)
        assert sorted(data.proglang(tmp_path)) == [("array", "php"), ("array_map", "php")]

    def test_sentiment_is_the_sign_of_the_rating(self, tmp_path: Path) -> None:
        (tmp_path / "vader_lexicon.txt").write_text(
            "$:\t-1.5\t0.8\t[-1]\nawful\t-2.0\t0.9\t[-2]\nfine\t0.8\t0.6\t[1]\n"
        )
        assert list(data.sentiment(tmp_path)) == [("awful", "negative"), ("fine", "positive")]

    def test_wordlang_takes_the_most_frequent_words(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(data, "LANGUAGES_OF_WORDS", ("de",))
        monkeypatch.setattr(data, "WORDS_A_LANGUAGE", 2)
        (tmp_path / "resources").mkdir()
        counts = {"selten": 1, "und": 9, "über-all": 8, "Schön": 7, "immer": 6, "manchmal": 5}
        (tmp_path / "resources" / "de.json.gz").write_bytes(gzip.compress(json.dumps(counts).encode()))
        assert list(data.wordlang(tmp_path)) == [("schon", "de"), ("immer", "de")]

    @pytest.mark.slow
    @pytest.mark.parametrize("name", data.SOURCES)
    def test_real_packages_hold_enough(self, name: str) -> None:
        if (
            importlib.util.find_spec(data.SOURCES[name].module) is None
        ):  # the extra `demo`, which `make test` goes without
            pytest.skip(f"{data.SOURCES[name].package} isn't installed")
        splits = data.load(name, seed=0)
        assert len(splits.train) > 0.95 * data.SOURCES[name].train
        assert len(splits.test) > 0.95 * data.TEST

    def test_a_missing_package_is_told_with_the_way_out(self) -> None:
        with pytest.raises(HfTsvError, match=r"no_such_package isn't installed. Run pip install -r examples/demo"):
            data.installed("no_such_package")
        with pytest.raises(HfTsvError, match=r"no-such-package isn't installed"):
            data.version_of("no-such-package")


class TestSplit:
    texts = tuple((f"{label}{i}", label) for label in "xyz" for i in range(80))

    def test_is_disjoint_and_even(self) -> None:
        splits = data.split(self.texts, train=120, validation=30, test=60, seed="s")
        parts = (splits.train, splits.validation, splits.test)
        assert [len(part) for part in parts] == [120, 30, 60]
        assert len({text for part in parts for text, _ in part}) == 210
        assert all(len(set(Counter(label for _, label in part).values())) == 1 for part in parts)
        assert all(text[0] == splits.labels[label] for part in parts for text, label in part)

    def test_depends_on_the_seed_and_on_nothing_else(self) -> None:
        def drawn(texts: Sequence[data.Labelled], seed: str) -> data.Splits:
            return data.split(texts, train=120, validation=30, test=60, seed=seed)

        assert drawn(self.texts, "s") == drawn(self.texts[::-1], "s") != drawn(self.texts, "t")

    def test_leaves_out_what_is_ambiguous_or_rare(self) -> None:
        both = [("x0", "y"), (" x1 \n", "x"), ("", "x"), *((f"r{i}", "rare") for i in range(59))]
        splits = data.split([*self.texts, *both], train=240, validation=0, test=0, seed="s")
        texts = [text for text, _ in splits.train]
        assert splits.labels == ("x", "y", "z")
        assert "x0" not in texts
        assert len(texts) == 239


class TestHead:
    def test_maximises_the_penalised_likelihood(self) -> None:
        x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(40) % 3
        head = fit_head(x, labels, ("a", "b", "c"))
        error = torch.softmax(head(x), 1) - torch.nn.functional.one_hot(labels)
        torch.testing.assert_close(error.T @ x + 2 * 0.05 * head.weight, torch.zeros(3, 5), atol=1e-3, rtol=0)
        torch.testing.assert_close(error.sum(0), torch.zeros(3), atol=1e-3, rtol=0)

    def test_accuracy_is_the_share_of_right_labels(self) -> None:
        head = Head(torch.eye(2), torch.tensor([0.0, 0.5]), ("a", "b"))
        embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.2], [0.0, 1.0], [1.0, 0.2]])
        assert head.accuracy(embeddings, torch.tensor([0, 0, 1, 0])) == 0.75

    def test_comes_back_from_its_file(self, tmp_path: Path) -> None:
        head = Head(torch.randn(2, 3), torch.randn(2), ("ä", "b"))
        head.save(tmp_path / "head.safetensors")
        again = Head.load(tmp_path / "head.safetensors")
        assert again.labels == head.labels
        assert torch.equal(again.weight, head.weight)
        assert torch.equal(again.bias, head.bias)


class TestEncoder:
    def test_padding_and_batching_change_nothing(self, base: Path) -> None:
        encoder = Encoder(base, base)
        texts = encoder.tokens(["a red cat", "dog", "the blue fish a a", "white sheep"])
        alone = torch.cat([encoder.embed([text]) for text in texts])
        torch.testing.assert_close(encoder.embed(texts, batch=3), alone)
        torch.testing.assert_close(alone.norm(dim=1), torch.ones(4))

    def test_long_texts_are_cut(self, base: Path) -> None:
        assert list(map(len, Encoder(base, base).tokens(["cat " * 40, "cat"]))) == [24, 1]

    def test_batches_hold_every_text_once_and_like_lengths(self) -> None:
        texts = [[0] * length for length in random.Random(0).choices(range(2, 24), k=500)]
        found = list(batches(texts, 32, random.Random(0)))
        assert sorted(i for batch in found for i in batch) == list(range(500))
        padded = sum(max(len(texts[i]) for i in batch) * len(batch) for batch in found)
        assert padded < 1.15 * sum(map(len, texts))
        assert found != list(batches(texts, 32, random.Random(1)))


class TestFineTune:
    def tuned(self, base: Path) -> tuple[Encoder, float, float]:
        encoder = Encoder(base, base)
        head = head_for(encoder, [TEXTS[0], TEXTS[-1]])
        before, weight = train.evaluate_texts(encoder, head, TEXTS), head.weight.clone()
        texts, labels = train._encoded(encoder, TEXTS)
        train.fine_tune(encoder, head, texts, labels, lambda tokens: None)
        assert torch.equal(head.weight, weight)
        return encoder, before, train.evaluate_texts(encoder, head, TEXTS)

    def test_teaches_the_encoder_what_the_head_asks_for(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(train, "EPOCHS", 30)
        monkeypatch.setattr(train, "RATE", 3e-3)
        _, before, after = self.tuned(base)
        assert before < 0.9
        assert after == 1.0

    def test_gives_the_same_weights_again(self, base: Path) -> None:
        once, again = (self.tuned(base)[0].model.state_dict() for _ in range(2))
        assert all(torch.equal(once[name], again[name]) for name in once)

    def test_reports_every_token_it_is_trained_on(self, base: Path) -> None:
        encoder = Encoder(base, base)
        texts, labels = train._encoded(encoder, TEXTS)
        told: list[float] = []
        train.fine_tune(encoder, head_for(encoder, TEXTS), texts, labels, told.append)
        assert sum(told) == train.EPOCHS * sum(map(len, texts))

    def test_the_rate_rises_then_falls_to_nothing(self) -> None:
        shares = [train._share_of_rate(step, 20) for step in range(21)]
        assert shares[:2] == [0.5, 1.0]
        assert shares[1:] == sorted(shares[1:], reverse=True)
        assert shares[-1] == 0


class TestPrepare:
    @pytest.fixture
    def made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """A folder with all models but one, which was made with other settings; what `prepare` then makes."""
        made: list[str] = []

        def make(names: list[str], folder: Path, progress: object) -> None:
            made.extend(names)
            for name in names:
                self.put(folder / name, "now", 0.9)

        monkeypatch.setattr(zoo, "settings", lambda name: f"{name} now")
        monkeypatch.setattr(zoo, "_make", make)
        (tmp_path / "base").mkdir()
        for name in data.SOURCES:
            self.put(tmp_path / name, "before" if name == "pos" else "now", 0.7)
        return made

    def put(self, folder: Path, when: str, accuracy: float) -> None:
        folder.mkdir(exist_ok=True)
        facts = {"settings": f"{folder.name} {when}", "base_accuracy": 0.5, "accuracy": accuracy}
        (folder / train.FACTS).write_text(json.dumps(facts))

    def test_makes_only_what_is_missing(self, tmp_path: Path, made: list[str]) -> None:
        found = prepare(tmp_path, Silent())
        assert made == ["pos"]
        assert {task.name: task.accuracy for task in found.tasks} == {
            n: 0.9 if n == "pos" else 0.7 for n in data.SOURCES
        }
        prepare(tmp_path, Silent())
        assert made == ["pos"]

    def test_a_folder_appears_whole_or_not_at_all(self, tmp_path: Path) -> None:
        def fill(text: str, *, fail: bool) -> None:
            with zoo.appearing(tmp_path / "task") as unfinished:
                (unfinished / "file").write_text(text)
                if fail:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fill("one", fail=True)
        assert not (tmp_path / "task").exists()
        fill("two", fail=False)
        with pytest.raises(KeyboardInterrupt):
            fill("three", fail=True)
        assert (tmp_path / "task" / "file").read_text() == "two"

    def test_a_killed_process_is_told(self) -> None:
        future: Future[None] = Future()
        future.set_exception(BrokenProcessPool())
        with pytest.raises(ResourceError, match=r"want of memory.*run this again"):
            zoo._raise_error(future)


class TestMakeTask:
    def test_fills_a_folder_that_transformers_loads(
        self, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        splits = data.Splits(("colour", "animal"), TEXTS[::2], TEXTS[1::8], TEXTS[1::2])
        monkeypatch.setattr(data, "load", lambda name, seed: splits)
        monkeypatch.setattr(train, "settings", lambda name: {"of": name})
        folder = tmp_path / "words"
        folder.mkdir()
        train.make_task("words", base, folder, lambda tokens: None)
        made = zoo.read_task(folder)
        assert zoo._facts(folder)["settings"] == {"of": "words"}
        assert [tuple(example) for example in made.test] == splits.test
        assert [tuple(example) for example in made.validation] == splits.validation
        assert made.head.labels == splits.labels
        assert train.evaluate_texts(Encoder(folder, folder), made.head, made.test) == made.accuracy
        assert train.evaluate_texts(Encoder(base, base), made.head, made.test) == made.base_accuracy

    @pytest.mark.slow
    def test_an_interrupted_run_leaves_no_half_made_task(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Impatient(Silent):
            def advance(self, work: float, name: str) -> None:
                assert (tmp_path / ".words.unfinished").exists()
                raise KeyboardInterrupt(name)

        monkeypatch.setattr(zoo, "_make_one", endless_task)
        with pytest.raises(KeyboardInterrupt, match="words"):
            zoo._make(["words"], tmp_path, Impatient())
        assert not (tmp_path / "words").exists()


def endless_task(name: str, folder: Path) -> None:
    """Stands for a fine-tuning that only an interruption ends; a process of its own finds it by its name."""
    with zoo.appearing(folder / name):
        while True:
            zoo._report(name, 1)
            time.sleep(0.01)


class TestCompare:
    @pytest.fixture
    def small(self, base: Path, tmp_path: Path) -> Zoo:
        head = head_for(Encoder(base, base), TEXTS)
        wrong = Head(-head.weight, -head.bias, head.labels)
        return Zoo(base, (task(tmp_path / "right", head, TEXTS), task(tmp_path / "wrong", wrong, TEXTS)))

    def test_evaluates_every_task_under_its_own_head(self, small: Zoo) -> None:
        scores = compare.evaluate(small.base, small)
        assert scores["right"] > 0.9
        assert scores["wrong"] == pytest.approx(1 - scores["right"])

    def test_evaluates_on_the_split_asked_for(self, small: Zoo) -> None:
        right, wrong = (compare.evaluate(small.base, small, split="validation")[name] for name in ("right", "wrong"))
        assert {4 * right, 4 * wrong} <= {0, 1, 2, 3, 4}
        assert right + wrong == 1

    def test_scores_are_kept_until_the_weights_change(self, small: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
        first = compare._known_or_evaluated(small.base, small, Silent())
        monkeypatch.setattr(compare, "evaluate", lambda *_, **__: {"right": 0.0, "wrong": 0.0})
        assert compare._known_or_evaluated(small.base, small, Silent()) == first
        save(tf.AutoModel.from_pretrained(small.base).half().float(), small.base)
        assert compare._known_or_evaluated(small.base, small, Silent()) == {"right": 0.0, "wrong": 0.0}

    def test_summary_is_relative_to_each_fine_tune(self) -> None:
        tasks = (Task("x", Path(), base_accuracy=0.4, accuracy=0.8), Task("y", Path(), base_accuracy=0.1, accuracy=0.5))
        found = compare.summary(Zoo(Path(), tasks), {"ties": {"x": 0.6, "y": 0.5}})
        assert found["accuracy"]["y"] == {"base": 0.1, "fine-tuned": 0.5, "ties": 0.5}
        assert found["relative"]["x"]["ties"] == pytest.approx(0.75)
        assert found["mean"]["accuracy"]["ties"] == pytest.approx(0.55)
        assert found["mean"]["relative"] == pytest.approx({"base": 0.35, "fine-tuned": 1.0, "ties": 0.875})

    def test_table_shows_all_of_it(self) -> None:
        tasks = (Task("x", Path(), base_accuracy=0.4, accuracy=0.8),)
        scores = {method: {"x": 0.6 + i / 25} for i, method in enumerate(compare.METHODS)}
        written = io.StringIO()
        Console(file=written, width=80).print(compare.table(compare.summary(Zoo(Path(), tasks), scores)))
        text = written.getvalue()
        for cell in ("40.0 (50)", "80.0 ", "60.0 (75)", "64.0 (80)", "68.0 (85)", "72.0 (90)"):
            assert text.count(cell) == 2  # the task's row and the mean's
        assert all(column in text for column in ("base", "fine-tuned", *compare.METHODS))

    @pytest.mark.parametrize("method", compare.METHODS)
    def test_recipes_name_the_demos_models_where_they_lie(self, method: str, tmp_path: Path) -> None:
        for name in ("base", *data.SOURCES):
            (tmp_path / "my zoo" / name).mkdir(parents=True)
        recipe = compare.recipe_for(method, tmp_path / "my zoo")
        assert recipe.merge_method == method
        assert Path(recipe.base.path) == tmp_path / "my zoo" / "base"
        assert {model.name: Path(model.ref.path) for model in recipe.models} == {
            name: tmp_path / "my zoo" / name for name in data.SOURCES
        }
