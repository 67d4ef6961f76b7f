"""`hf-tsv eval`: every score against transformers used by hand, and none computed twice."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers as tf
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hf_tsv
from hf_tsv.checkpoints.folder import open_checkpoint
from hf_tsv.errors import CheckpointError, HfTsvError, OutputError, RecipeError
from hf_tsv.evaluation import Contestant, load_suite
from hf_tsv.evaluation import run as evaluation_run
from hf_tsv.evaluation.contestants import load_model
from hf_tsv.evaluation.data import read_examples
from hf_tsv.evaluation.results import Results
from hf_tsv.evaluation.scoring import Score
from hf_tsv.record import ScoreLine
from tests.support import models
from tests.support.cli import run
from tests.support.suites import TEXTS, examples, suite, text_task, tokenizer
from tests.support.tolerances import OUTPUTS


@pytest.fixture(autouse=True)
def _quiet_transformers() -> None:
    tf.utils.logging.disable_progress_bar()


@torch.no_grad()
def accuracy_by_hand(model: nn.Module, words: Any, rows: list[dict[str, Any]]) -> float:
    """One text at a time, without any padding."""
    found = [int(model.eval()(**words(row["text"], return_tensors="pt")).logits.argmax()) for row in rows]
    return sum(own == row["label"] for own, row in zip(found, rows, strict=True)) / len(rows)


def classifiers(tmp_path: Path, size: float = 0.3) -> tuple[Path, Any, list[dict[str, Any]]]:
    """A merged output of classifiers with heads of one shape; its tokenizer and the examples."""
    for name, seed in (("base", 9), ("t0", 1), ("t1", 2)):
        torch.manual_seed(0)
        models.save(models.perturbed(models.bert_classifier(), seed, size), tmp_path / name)
    words = tokenizer(tmp_path / "base")
    rows = examples(tmp_path, 3)
    hf_tsv.merge(models.recipe(tmp_path, tasks=2), tmp_path / "out")
    return tmp_path / "out", words, rows


def loaded(folder: Path) -> Any:
    return tf.AutoModelForSequenceClassification.from_pretrained(folder)


def test_scores_are_those_of_transformers(tmp_path: Path) -> None:
    out, words, rows = classifiers(tmp_path)
    found = hf_tsv.evaluate(out, suite(tmp_path, text_task("t0"), text_task("t1"), batch_size=5))
    for task in ("t0", "t1"):
        scores = found.tasks[task].scores
        folders = {"base": tmp_path / "base", "finetuned": tmp_path / task, "merged": out}
        assert scores == {label: accuracy_by_hand(loaded(f), words, rows) for label, f in folders.items()}
        relative = found.tasks[task].relative
        assert relative["merged"] == scores["merged"] / scores["finetuned"]
    means = [found.tasks[task].relative["merged"] for task in ("t0", "t1")]
    assert found.mean.relative["merged"] == pytest.approx(sum(means) / 2)


def test_record_and_card_hold_what_was_measured(tmp_path: Path) -> None:
    out, _, _ = classifiers(tmp_path)
    assert "has not been measured" in (out / "README.md").read_text()
    found = hf_tsv.evaluate(out, suite(tmp_path, text_task()))
    assert json.loads((out / "hf_tsv.json").read_text())["evaluation"] == found.model_dump(mode="json")
    card = (out / "README.md").read_text()
    assert "has not been measured" not in card
    header = YAML(typ="safe", pure=True).load(card.split("---")[1])
    (result,) = header["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "accuracy", "value": found.tasks["t0"].scores["merged"]}
    assert result["dataset"] == {"name": "t0", "type": "data.jsonl"}
    assert "| `t0` | `data.jsonl` | accuracy | 12 |" in card


def test_nothing_is_computed_twice_unless_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _, _ = classifiers(tmp_path)
    path = suite(tmp_path, text_task("t0"), text_task("t1"))
    loads: list[str] = []
    real = evaluation_run.load_model

    def counted(contestant: Any, *rest: Any) -> Any:
        loads.append(contestant.label)
        if len(loads) == 2:
            raise KeyboardInterrupt
        return real(contestant, *rest)

    monkeypatch.setattr(evaluation_run, "load_model", counted)
    with pytest.raises(KeyboardInterrupt):
        hf_tsv.evaluate(out, path)
    with (out / "evaluation.jsonl").open("a") as file:
        file.write('{"key": "cut sho')  # by a crash
    first = hf_tsv.evaluate(out, path)
    # The base, of which both tasks ask the same; the fine-tune that was interrupted; what was left.
    assert loads == ["base", "finetuned", "finetuned", "finetuned", "merged"]
    assert hf_tsv.evaluate(out, path) == first
    assert len(loads) == 5
    examples(tmp_path, 3, seed=5)
    hf_tsv.evaluate(out, path)
    assert len(loads) == 5 + 4


LINE = {"key": "0" * 64, "score": 0.5, "examples": 4, "task": "t0", "model": "base", "metric": "accuracy"}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (json.dumps(LINE | {"score": "0.5"}), "'score' has a wrong value, expected a number but got '0.5'."),
        (json.dumps(LINE | {"examples": -1}), "'examples' has a wrong value, expected"),
        (json.dumps(LINE | {"seconds": 3}), "unknown field 'seconds', perhaps of another version of hf_tsv."),
        (json.dumps({k: v for k, v in LINE.items() if k != "key"}), "the field 'key' is missing."),
        ('{"key": oops}', "not valid JSON ("),
        ('[1, {"a": 2}', "not valid JSON ("),
    ],
)
def test_an_edited_line_is_told_with_its_place(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{line}\n")
    with pytest.raises(OutputError) as caught:
        Results(path)
    (message,) = caught.value.problems
    assert message.startswith(f"{path}:2: {problem}")
    assert message.endswith("Correct it, or delete the line: its score is then computed again.")
    assert "\n" not in message


def test_scores_are_known_again_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    third, infinite, whole = "3" * 64, "f" * 64, "1" * 64
    values = {third: 1 / 3, infinite: float("inf"), whole: 1.0}
    for key, value in values.items():
        Results(path).put(ScoreLine(**{**LINE, "key": key, "score": value}))
        with path.open("a") as file:
            file.write('{"key": "cut sho')  # by a crash
    again = Results(path)
    for key, value in values.items():
        assert again.get(key) == Score(value, 4)
    assert again.get("cut sho") is None
    assert path.read_text().splitlines()[0] == json.dumps(LINE | {"key": third, "score": 1 / 3})


def test_a_head_that_only_the_finetune_has(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = models.bert()
    models.save(base, tmp_path / "base")
    words = tokenizer(tmp_path / "base")
    for t, labels in enumerate((3, 4)):
        own = models.bert_classifier(labels)
        own.bert.load_state_dict({k: v + 0.2 * torch.randn_like(v) for k, v in base.state_dict().items()})
        models.save(own, tmp_path / f"t{t}")
    rows = examples(tmp_path, 4)
    hf_tsv.merge(models.recipe(tmp_path, tasks=2), tmp_path / "out")
    found = hf_tsv.evaluate(tmp_path / "out", suite(tmp_path, text_task("t1"))).tasks["t1"].scores
    for label, body in (("base", "base"), ("merged", "out")):
        by_hand = loaded(tmp_path / "t1")
        by_hand.bert.load_state_dict(tf.AutoModel.from_pretrained(tmp_path / body).state_dict())
        assert found[label] == accuracy_by_hand(by_hand, words, rows)
    assert found["finetuned"] == accuracy_by_hand(loaded(tmp_path / "t1"), words, rows)


def test_adapters_of_a_compression(tmp_path: Path) -> None:
    for t, name in enumerate(("base", "t0")):
        torch.manual_seed(0)
        models.save(models.perturbed(models.bert_classifier(), t, 0.3 * t), tmp_path / name)
    words, rows = tokenizer(tmp_path / "base"), examples(tmp_path, 3)
    recipe = models.recipe(tmp_path, tasks=1)
    hf_tsv.compress(recipe, tmp_path / "out", "fraction=1.0")
    found = hf_tsv.evaluate(tmp_path / "out", suite(tmp_path, text_task())).tasks["t0"].scores
    by_hand = accuracy_by_hand(loaded(tmp_path / "t0"), words, rows)
    assert found["adapter"] == found["finetuned"] == by_hand != found["base"]


def test_a_task_with_a_mask(tmp_path: Path) -> None:
    for t, name in enumerate(("base", "t0", "t1")):
        torch.manual_seed(0)
        models.save(models.perturbed(models.bert_classifier(), t, 0.3 * t), tmp_path / name)
    words, rows = tokenizer(tmp_path / "base"), examples(tmp_path, 3)
    hf_tsv.merge(models.recipe(tmp_path, "tall_mask", tasks=2), tmp_path / "out")
    found = hf_tsv.evaluate(tmp_path / "out", suite(tmp_path, text_task("t1"))).tasks["t1"].scores
    hf_tsv.restore(tmp_path / "out", "t1", tmp_path / "restored")
    assert found["restored"] == accuracy_by_hand(loaded(tmp_path / "restored"), words, rows)
    assert found["merged"] == accuracy_by_hand(loaded(tmp_path / "out"), words, rows)


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooled"])
def test_a_head_that_the_suite_gives(tmp_path: Path, pooling: str) -> None:
    models.zoo(models.bert, tmp_path, tasks=2)
    words, rows = tokenizer(tmp_path / "base"), examples(tmp_path, 3)
    names = ["x", "y", "z"]
    rows = [{"text": row["text"], "label": names[row["label"]]} for row in rows]
    (tmp_path / "data.csv").write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows))
    weight = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight}, tmp_path / "head.safetensors", metadata={"labels": json.dumps(names)})
    hf_tsv.merge(models.recipe(tmp_path, tasks=2), tmp_path / "out")
    task = text_task(data="data.csv", head="head.safetensors", pooling=pooling, normalize=False)
    found = hf_tsv.evaluate(tmp_path / "out", suite(tmp_path, task)).tasks["t0"].scores

    def embedded(output: Any) -> Tensor:
        if pooling == "pooled":
            return output.pooler_output[0]
        return output.last_hidden_state[0, 0] if pooling == "cls" else output.last_hidden_state[0].mean(0)

    model = tf.AutoModel.from_pretrained(tmp_path / "t0").eval()
    with torch.no_grad():
        right = [
            names[int((weight @ embedded(model(**words(r["text"], return_tensors="pt")))).argmax())] == r["label"]
            for r in rows
        ]
    assert found["finetuned"] == sum(right) / len(right)


def test_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    models.zoo(models.vit, tmp_path, tasks=2)
    processor = tf.ViTImageProcessor(size={"height": 16, "width": 16})
    processor.save_pretrained(tmp_path / "base")
    rows = []
    for i in range(6):
        pixels = torch.randint(256, (20, 20, 3), generator=torch.Generator().manual_seed(i)).byte().numpy()
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "label": i % 5})
    (tmp_path / "data.json").write_text(json.dumps(rows))
    hf_tsv.merge(models.recipe(tmp_path, tasks=2), tmp_path / "out")
    task = {"name": "t0", "kind": "image-classification", "data": "data.json"}
    found = hf_tsv.evaluate(tmp_path / "out", suite(tmp_path, task)).tasks["t0"].scores
    model = tf.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        inputs = [processor(Image.open(tmp_path / r["image"]), return_tensors="pt") for r in rows]
        right = [int(model(**i).logits.argmax()) == r["label"] for i, r in zip(inputs, rows, strict=True)]
    assert found["merged"] == sum(right) / len(right)


def test_perplexity(tmp_path: Path) -> None:
    models.zoo(models.llama, tmp_path, tasks=2)
    words = tokenizer(tmp_path / "base")
    (tmp_path / "text.txt").write_text(" ".join(TEXTS))
    hf_tsv.merge(models.recipe(tmp_path, tasks=2), tmp_path / "out")
    task = {"name": "t0", "kind": "perplexity", "data": "text.txt", "context": 8}
    found = hf_tsv.evaluate(tmp_path / "out", suite(tmp_path, task)).tasks["t0"]
    model = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor(words(" ".join(TEXTS))["input_ids"])
    losses = []
    with torch.no_grad():
        for start in range(0, len(ids), 8):
            window = ids[start : start + 8]
            logits = model(input_ids=window[None]).logits[0, :-1].log_softmax(-1)
            losses += [-float(row[token]) for row, token in zip(logits, window[1:], strict=True)]
    assert found.scores["merged"] == pytest.approx(torch.tensor(losses).mean().exp().item(), rel=OUTPUTS)
    assert found.examples == len(losses)
    assert found.relative["merged"] == found.scores["finetuned"] / found.scores["merged"]
    assert not found.higher_is_better


def test_a_task_without_finetune_is_scored_absolutely(tmp_path: Path) -> None:
    out, _, _ = classifiers(tmp_path)
    found = hf_tsv.evaluate(out, suite(tmp_path, text_task("other"), text_task("t", finetuned="t1")))
    assert set(found.tasks["other"].scores) == {"base", "merged"}
    assert found.tasks["other"].relative == {}
    assert found.mean.relative["merged"] == found.tasks["t"].relative["merged"]


def test_a_limit_is_drawn_by_the_seed(tmp_path: Path) -> None:
    out, _, _ = classifiers(tmp_path)
    one = hf_tsv.evaluate(out, suite(tmp_path, text_task(limit=4), seed=1), results=tmp_path / "one")
    again = hf_tsv.evaluate(out, suite(tmp_path, text_task(limit=4), seed=1), results=tmp_path / "two")
    assert one == again
    assert one.tasks["t0"].examples == 4


def test_every_mistake_of_a_suite_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(
        "sed: 1\ntasks:\n  - name: a\n    kind: text-classification\n    data: d.jsonl\n    labl: y\n"
        "  - name: b\n    kind: perplexty\n  - kind: perplexity\n    data: t.txt\n  - name: c\n    data: d\n"
        "  - {name: d, kind: image-classification, data: {hub: x, splt: y}, pooling: men}\n  - 3\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_suite(path)
    told = [problem.removeprefix(f"{path}:") for problem in caught.value.problems]
    assert told == [
        "1: unknown key 'sed'. Did you mean 'seed'? Known keys: seed, batch_size, dtype, tasks.",
        "6: unknown key 'labl' in a task. Did you mean 'label'? Known keys: name, finetuned, limit, data, label, head,"
        " pooling, normalize, kind, text, max_length.",
        "8: unknown kind 'perplexty'. Did you mean 'perplexity'? Known kinds: text-classification,"
        " image-classification, perplexity, lm-eval.",
        "9: 'name' is missing in a task.",
        "11: 'kind' is missing in a task. Write one of: text-classification, image-classification, perplexity,"
        " lm-eval.",
        "13: unknown key 'splt' in a task. Did you mean 'split'? Known keys: hub, config, split, revision.",
        "13: 'pooling' has a wrong value, expected mean, cls or pooled but got 'men'. Did you mean 'mean'?",
        "14: 'tasks' has a wrong value, expected a mapping but got 3.",
    ]


def test_names_that_are_taken_and_empty_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the name 't0' is taken"):
        load_suite(suite(tmp_path, text_task(), text_task()))
    (tmp_path / "suite.yaml").write_text("")
    with pytest.raises(RecipeError, match="the file is empty, expected tasks"):
        load_suite(tmp_path / "suite.yaml")


def test_what_is_wrong_with_the_data_is_told_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _, _ = classifiers(tmp_path)
    monkeypatch.setattr(evaluation_run, "load_model", None)
    path = suite(
        tmp_path,
        text_task("a", data="none.jsonl"),
        text_task("b", label="class"),
        text_task("c", head="none.safetensors"),
        text_task("d", finetuned="t7"),
        text_task("e", data="data.xlsx"),
        text_task("f", data={"hub": "org/name"}),
    )
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(HfTsvError) as caught:
        hf_tsv.evaluate(out, path)
    told = caught.value.problems
    for problem, fact in zip(
        told,
        (
            "none.jsonl can't be read",
            "no column 'class', expected one of text, label",
            "none.safetensors can't be read",
            "'finetuned' of 'd' is 't7', which the recipe doesn't have. Use one of t0, t1.",
            "has an unknown ending",
            "pip install datasets",
        ),
        strict=True,
    ):
        assert problem.startswith(f"{path}:")
        assert fact in problem


def test_unknown_labels_and_models_without_a_head_are_told(tmp_path: Path) -> None:
    out, _, _ = classifiers(tmp_path)
    (tmp_path / "data.jsonl").write_text('{"text": "a", "label": "spam"}\n')
    with pytest.raises(HfTsvError, match="unknown label 'spam', expected one of LABEL_0, LABEL_1"):
        hf_tsv.evaluate(out, suite(tmp_path, text_task()))
    models.zoo(models.bert, tmp_path / "bare", tasks=2)
    tokenizer(tmp_path / "bare" / "base")
    examples(tmp_path, 2)
    hf_tsv.merge(models.recipe(tmp_path / "bare", tasks=2), tmp_path / "bare" / "out")
    with pytest.raises(CheckpointError, match=r"lacks classifier\.bias, classifier\.weight\. Give the task a 'head'"):
        hf_tsv.evaluate(tmp_path / "bare" / "out", suite(tmp_path, text_task()))


def test_lm_eval_that_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.zoo(models.llama, tmp_path, tasks=2)
    tokenizer(tmp_path / "base")
    hf_tsv.merge(models.recipe(tmp_path, tasks=2), tmp_path / "out")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    path = suite(tmp_path, {"name": "arc", "kind": "lm-eval", "task": "arc_easy"})
    result = run("eval", tmp_path / "out", "--suite", path, "-q")
    assert result.exit_code == 1
    assert "hf-tsv[lm-eval]" in result.stderr


def test_lm_eval_is_asked_and_read_as_it_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the surface of lm-eval 0.4.13, which was tried with this code by hand."""
    models.zoo(models.llama, tmp_path, tasks=2)
    tokenizer(tmp_path / "base")
    hf_tsv.merge(models.recipe(tmp_path, tasks=2), tmp_path / "out")
    asked: list[dict[str, Any]] = []

    def simple_evaluate(**options: Any) -> dict[str, Any]:
        asked.append(options)
        scores = {"alias": "toy", "acc,none": len(asked) / 4, "acc_stderr,none": "N/A"}
        return {"results": {"toy": scores}, "n-samples": {"toy": {"original": 9, "effective": 5}}}

    package, huggingface, tasks = (ModuleType(f"lm_eval{end}") for end in ("", ".models.huggingface", ".tasks"))
    vars(package).update(simple_evaluate=simple_evaluate, tasks=tasks)
    vars(huggingface).update(HFLM=lambda **options: options)
    vars(tasks).update(TaskManager=lambda include_path: include_path)
    models_package = ModuleType("lm_eval.models")
    vars(models_package).update(huggingface=huggingface)
    for module in (package, huggingface, tasks, models_package):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    task = {"name": "t0", "kind": "lm-eval", "task": "toy", "include": "own", "limit": 5, "num_fewshot": 2}
    found = hf_tsv.evaluate(tmp_path / "out", suite(tmp_path, task, seed=3)).tasks["t0"]
    assert found.scores == {"base": 0.25, "finetuned": 0.5, "merged": 0.75}
    assert (found.metric, found.examples) == ("acc", 5)
    assert type(asked[0]["model"]["pretrained"]).__name__ == "LlamaForCausalLM"
    assert (asked[0]["tasks"], asked[0]["num_fewshot"], asked[0]["limit"]) == (["toy"], 2, 5)
    assert asked[0]["fewshot_random_seed"] == 3
    assert asked[0]["task_manager"] == str(tmp_path / "own")
    with pytest.raises(HfTsvError, match="has no score 'f1', expected one of acc"):
        hf_tsv.evaluate(tmp_path / "out", suite(tmp_path, task | {"score": "f1"}))


def test_a_head_of_another_size_is_told(tmp_path: Path) -> None:
    models.zoo(models.bert, tmp_path, tasks=2)
    tokenizer(tmp_path / "base")
    examples(tmp_path, 3)
    save_file({"weight": torch.zeros(3, 31)}, tmp_path / "head.safetensors")
    hf_tsv.merge(models.recipe(tmp_path, tasks=2), tmp_path / "out")
    with pytest.raises(HfTsvError, match="the head of 't0' reads 31 numbers, but BertModel gives 32"):
        hf_tsv.evaluate(tmp_path / "out", suite(tmp_path, text_task(head="head.safetensors")))


def test_a_zero_shot_head_on_clips_image_encoder(tmp_path: Path) -> None:
    models.zoo(models.clip, tmp_path, tasks=2)
    processor = tf.CLIPImageProcessor(
        size={"height": 16, "width": 16}, crop_size={"height": 16, "width": 16}, do_center_crop=False
    )
    processor.save_pretrained(tmp_path / "base")
    pixels = torch.randint(256, (16, 16, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "0.png")
    weight = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight}, tmp_path / "head.safetensors")
    hf_tsv.merge(models.recipe(tmp_path, tasks=2), tmp_path / "out")
    model = tf.CLIPModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        seen = model.vision_model(**processor(Image.open(tmp_path / "0.png"), return_tensors="pt")).pooler_output[0]
    (tmp_path / "data.json").write_text(json.dumps([{"image": "0.png", "label": int((weight @ seen).argmax())}]))
    task = {"name": "t0", "kind": "image-classification", "data": "data.json", "head": "head.safetensors"}
    found = hf_tsv.evaluate(tmp_path / "out", suite(tmp_path, task | {"pooling": "pooled"}))
    assert found.tasks["t0"].scores["merged"] == 1


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    out, _, _ = classifiers(tmp_path)
    path = suite(tmp_path, text_task())
    shown = run("eval", out, "--suite", path, "-q")
    assert shown.exit_code == 0, shown.stderr
    assert "finetuned" in shown.stdout
    assert "100.0%" in shown.stdout
    data = json.loads(run("eval", out, "--suite", path, "--json", "-q").stdout)
    assert data["tasks"]["t0"]["data"] == "data.jsonl"
    assert run("eval", tmp_path / "base", "--suite", path).exit_code == 1


def test_the_weights_that_are_scored_are_the_outputs(tmp_path: Path) -> None:
    """A merged model's own file is what is read, under the names that it has there."""
    out, _, rows = classifiers(tmp_path)
    weights = load_file(out / "model.safetensors")
    weights["classifier.bias"] += torch.tensor([100.0, 0.0, 0.0])
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    found = hf_tsv.evaluate(out, suite(tmp_path, text_task()))
    assert found.tasks["t0"].scores["merged"] == sum(row["label"] == 0 for row in rows) / len(rows)


@pytest.mark.slow
def test_what_peft_does_not_load_counts_in_the_restored_model(tmp_path: Path) -> None:
    """PEFT can't replace a bare parameter: an adapter under a budget has such a change in a file of its own."""
    models.zoo(models.clip, tmp_path, tasks=1)
    tf.CLIPImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(tmp_path / "base")
    Image.new("RGB", (16, 16), (200, 30, 90)).save(tmp_path / "0.png")
    save_file({"weight": torch.eye(4, 32)}, tmp_path / "head.safetensors")
    (tmp_path / "data.json").write_text(json.dumps([{"image": "0.png", "label": 1}]))
    record = hf_tsv.compress(models.recipe(tmp_path, tasks=1), tmp_path / "out", "1000000B")
    assert record.adapters["t0"]["faithful"].in_sidecar
    task = {"name": "t0", "kind": "image-classification", "data": "data.json", "head": "head.safetensors"}
    found = hf_tsv.evaluate(tmp_path / "out", suite(tmp_path, task)).tasks["t0"].scores
    assert list(found) == ["base", "finetuned", "adapter", "restored"]
    assert found["restored"] == found["finetuned"]


def test_adapters_on_a_merged_model(tmp_path: Path) -> None:
    for t, name in enumerate(("base", "t0", "t1")):
        torch.manual_seed(0)
        models.save(models.perturbed(models.bert_classifier(), t, 0.3 * t), tmp_path / name)
    words, own = tokenizer(tmp_path / "base"), loaded(tmp_path / "t1").eval()
    with torch.no_grad():  # the labels are what the fine-tune says
        labels = [int(own(**words(text, return_tensors="pt")).logits.argmax()) for text in TEXTS]
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=True)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hf_tsv.merge(models.recipe(tmp_path, tasks=2, more="residuals: {energy: 1.0}\n"), tmp_path / "out")
    found = hf_tsv.evaluate(tmp_path / "out", suite(tmp_path, text_task("t1"))).tasks["t1"].scores
    assert list(found) == ["base", "finetuned", "merged", "adapter"]
    assert found["adapter"] == found["finetuned"] == 1
    assert found["merged"] == accuracy_by_hand(loaded(tmp_path / "out"), words, rows) < 1


def test_examples_on_the_hub_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the surface of datasets 4: rows by number, columns by name."""
    read: list[int] = []

    class Dataset:
        _fingerprint = "f00d"

        def __len__(self) -> int:
            return 100

        def __getitem__(self, key: int | str) -> Any:
            if key == "label":
                return [i % 2 for i in range(100)]
            read.append(int(key))
            return {"text": f"text {key}", "label": int(key) % 2}

    package = ModuleType("datasets")
    monkeypatch.setattr(package, "load_dataset", lambda *_, **__: Dataset(), raising=False)
    monkeypatch.setitem(sys.modules, "datasets", package)
    loaded = load_suite(suite(tmp_path, text_task("a", data={"hub": "org/name"}, limit=10)))
    found = read_examples(loaded, loaded.file.tasks[0])
    assert set(read) == {0}
    texts = [text for (text,) in found.inputs]
    assert len(texts) == len(found.labels) == 10
    assert [int(text.split()[1]) % 2 for text in texts] == found.labels
    assert found.sha256 == "f00d"


def test_lm_eval_gets_encoders_with_decoders(tmp_path: Path) -> None:
    folder = models.save(models.t5(), tmp_path / "t5")
    entrant = Contestant("base", "", open_checkpoint(folder), None, folder, (folder,))
    asked = suite(tmp_path, {"name": "a", "kind": "lm-eval", "task": "a"})
    model = load_model(entrant, load_suite(asked).file.tasks[0], "auto", "cpu")
    assert type(model).__name__ == "T5ForConditionalGeneration"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_auto_is_never_less_than_what_is_stored_up_to_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = models.save(models.t5(), tmp_path / "t5", dtype)
    entrant = Contestant("base", "", open_checkpoint(folder), None, folder, (folder,))
    asked = suite(tmp_path, {"name": "a", "kind": "lm-eval", "task": "a"})
    model = load_model(entrant, load_suite(asked).file.tasks[0], "auto", "cpu")
    assert model.dtype == (torch.float32 if dtype == torch.float64 else dtype)
