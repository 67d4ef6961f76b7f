"""Whole merges of real architectures, from files to a folder that transformers loads."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hf_tsv
from hf_tsv.errors import (
    CheckpointError,
    HfTsvError,
    MethodError,
    OutputError,
    PlanError,
    RecipeError,
    ResourceError,
)
from hf_tsv.merging import engine as run
from hf_tsv.merging import plan as planner
from hf_tsv.merging.plan import Plan, Step
from hf_tsv.methods import METHODS
from hf_tsv.recipe import parse_recipe, pinned_text
from tests.support import models, oracles
from tests.support.tensors import deltas_of, error, read_all
from tests.support.tolerances import CHANGE, WEIGHTS


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_every_architecture_comes_out_whole(arch: str, tmp_path: Path) -> None:
    shards = {"max_shard_size": "30KB"} if arch.startswith("llama") else {}
    folder = models.zoo(models.ARCHITECTURES[arch], tmp_path, **shards)
    record = hf_tsv.merge(models.recipe(folder), tmp_path / "out")
    base, merged = read_all(folder / "base"), read_all(tmp_path / "out")
    assert {n: (t.shape, t.dtype) for n, t in merged.items()} == {n: (t.shape, t.dtype) for n, t in base.items()}
    assert all(not torch.equal(merged[name], base[name]) for name in base if record.tensors[name].method != "base")
    model_class = type(models.ARCHITECTURES[arch]())
    model, info = model_class.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        outputs = model(**models.INPUTS.get(arch, {"input_ids": models.TOKENS}))
    tensors = [value for value in outputs.values() if isinstance(value, Tensor)]
    assert tensors
    assert all(value.isfinite().all() for value in tensors)


def test_every_tensor_is_what_the_paper_says(tmp_path: Path) -> None:
    folder = models.zoo(models.vit, tmp_path)
    hf_tsv.merge(models.recipe(folder), tmp_path / "out")
    base, merged = read_all(folder / "base"), read_all(tmp_path / "out")
    for name in base:
        deltas = deltas_of(folder, name)
        if base[name].ndim == 2:
            want = oracles.tsv_m(deltas)
        elif base[name].ndim == 4:
            want = oracles.tsv_m(deltas.flatten(2)).reshape(base[name].shape)
        else:
            want = deltas.mean(0)
        assert error(merged[name].double() - base[name].double(), want) < CHANGE, name


def test_paper_parity_averages_kernels(tmp_path: Path) -> None:
    folder = models.zoo(models.vit, tmp_path)
    hf_tsv.merge(models.recipe(folder, more="parameters: {parity: paper, scale: 0.5}\n"), tmp_path / "out")
    name = "vit.embeddings.patch_embeddings.projection.weight"
    merged = read_all(tmp_path / "out")[name].double() - read_all(folder / "base")[name].double()
    assert error(merged, 0.5 * deltas_of(folder, name).mean(0)) < CHANGE


def test_experts_are_merged_one_by_one(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"layers.0.experts.gate_up_proj": torch.randn(4, 16, 12, generator=generator)}
    tuned = {f"t{t}": {n: v + torch.randn(v.shape, generator=generator) for n, v in base.items()} for t in range(3)}
    merged = hf_tsv.merge_state_dicts(base, tuned)
    for name, weight in base.items():
        deltas = torch.stack([state[name] - weight for state in tuned.values()])
        for expert in range(4):
            assert error(merged[name][expert] - weight[expert], oracles.tsv_m(deltas[:, expert])) < CHANGE


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_pieces_do_not_show(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods that merge every entry by itself get large tensors in pieces."""
    path = models.recipe(models.zoo(models.vit, tmp_path, dtype=torch.bfloat16), method)
    hf_tsv.merge(path, tmp_path / "whole")
    monkeypatch.setattr(planner, "PIECE", 100)
    record = hf_tsv.merge(path, tmp_path / "pieces")
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (
        tmp_path / "pieces" / "model.safetensors"
    ).read_bytes()
    assert record.tensors["classifier.weight"].method == method


def test_ties_trims_over_the_whole_vector(tmp_path: Path) -> None:
    folder = models.zoo(models.bert, tmp_path)
    # One tensor changes much more than the others: it takes most of the 20 % that stay.
    state = load_file(folder / "t0" / "model.safetensors")
    state["pooler.dense.weight"] *= 3
    save_file(state, folder / "t0" / "model.safetensors", metadata={"format": "pt"})
    hf_tsv.merge(models.recipe(folder, "ties"), tmp_path / "out")
    base, merged = read_all(folder / "base"), read_all(tmp_path / "out")
    flat = torch.cat([deltas_of(folder, name).flatten(1) for name in base], dim=1)
    got = torch.cat([(merged[name].double() - base[name].double()).flatten() for name in base])
    assert error(got, oracles.ties(flat, 0.2)) < CHANGE


# A merge by tsv_c alone gives adapters, and no model.
@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.keeps != "adapter"])
def test_bf16_is_rounded_once(method: str, tmp_path: Path) -> None:
    folder = models.zoo(models.llama, tmp_path, dtype=torch.bfloat16)
    tasks = METHODS[method].max_tasks or 3
    hf_tsv.merge(models.recipe(folder, method, tasks), tmp_path / "bf16")
    more = "dtype: float64\nout_dtype: float64\n"
    hf_tsv.merge(models.recipe(folder, method, tasks, more), tmp_path / "f64")
    got, want = read_all(tmp_path / "bf16"), read_all(tmp_path / "f64")
    assert {tensor.dtype for tensor in got.values()} == {torch.bfloat16}
    same = sum(int((got[name] == want[name].bfloat16()).sum()) for name in got)
    assert same / sum(tensor.numel() for tensor in got.values()) >= 0.999


def test_out_dtype_is_written_everywhere(tmp_path: Path) -> None:
    folder = models.zoo(models.llama, tmp_path)
    hf_tsv.merge(models.recipe(folder, more="out_dtype: bfloat16\n"), tmp_path / "out")
    assert {tensor.dtype for tensor in read_all(tmp_path / "out").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_shards_are_as_large_as_asked_and_none_is_stale(tmp_path: Path) -> None:
    folder = models.zoo(models.llama, tmp_path)
    hf_tsv.merge(models.recipe(folder), tmp_path / "out", options=hf_tsv.Options(max_shard_size="20KB"))
    many = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(many) > 3
    hf_tsv.merge(models.recipe(folder), tmp_path / "out", options=hf_tsv.Options(overwrite=True))
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors*")] == ["model.safetensors"]


def test_a_head_that_one_model_has_is_kept_beside(tmp_path: Path) -> None:
    folder = models.zoo(models.bert, tmp_path)
    torch.manual_seed(0)
    head = models.bert_classifier()
    head.bert.load_state_dict(load_file(folder / "t2" / "model.safetensors"))
    models.save(head, folder / "t2")
    record = hf_tsv.merge(models.recipe(folder), tmp_path / "out")
    parts = load_file(tmp_path / "out" / record.task_parts["t2"].file)
    assert torch.equal(parts["classifier.weight"], head.classifier.weight)
    assert record.task_parts.keys() == {"t2"}


def test_integers_and_frozen_tensors_stay_as_they_are(tmp_path: Path) -> None:
    folder = models.zoo(models.bert, tmp_path)
    for name in ("base", "t0"):
        path = folder / name / "model.safetensors"
        state = load_file(path) | {"embeddings.position_ids": torch.arange(20)}
        save_file(state, path, metadata={"format": "pt"})
    frozen = load_file(folder / "base" / "model.safetensors")["pooler.dense.weight"]
    for t in range(3):
        path = folder / f"t{t}" / "model.safetensors"
        save_file(load_file(path) | {"pooler.dense.weight": frozen}, path, metadata={"format": "pt"})
    record = hf_tsv.merge(models.recipe(folder), tmp_path / "out")
    merged = read_all(tmp_path / "out")
    assert torch.equal(merged["embeddings.position_ids"], torch.arange(20))
    assert torch.equal(merged["pooler.dense.weight"], frozen)
    assert record.tensors["pooler.dense.weight"].unchanged
    assert record.tensors["embeddings.position_ids"].why == "I64 is not merged"


def test_companions_come_along_and_old_outputs_do_not(tmp_path: Path) -> None:
    folder = models.zoo(models.bert, tmp_path)
    (folder / "base" / "1_Pooling").mkdir()
    for name in (
        "modules.json",
        "1_Pooling/config.json",
        "tokenizer.json",
        "LICENSE",
        "README.md",
        "pytorch_model.bin",
    ):
        (folder / "base" / name).write_text(f'"{name}"')
    theirs = json.dumps({"model": {"type": "WordLevel", "vocab": {"theirs": 0}}})
    for name, vocabulary in (("base", theirs.replace("theirs", "ours")), ("t1", theirs)):
        (folder / name / "tokenizer.json").write_text(vocabulary)
    hf_tsv.merge(models.recipe(folder, more=f"tokenizer_source: {folder}/t1\n"), tmp_path / "out")
    out = tmp_path / "out"
    assert (out / "1_Pooling" / "config.json").read_text() == '"1_Pooling/config.json"'
    assert (out / "tokenizer.json").read_text() == theirs
    assert (out / "LICENSE").exists()
    assert not (out / "pytorch_model.bin").exists()
    assert (out / "README.md").read_text() != '"README.md"'


def test_the_lock_is_a_recipe_that_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = models.zoo(models.bert, tmp_path)
    hf_tsv.merge(models.recipe(folder), tmp_path / "out")
    hf_tsv.merge(tmp_path / "out" / "recipe.lock.yaml", tmp_path / "again")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again"))
    assert first == second


def test_the_lock_pins_every_way_to_name_a_model() -> None:
    text = (
        "merge_method: ties\nbase_model: {model: {path: org/base, revision: main}}\ntokenizer_source: org/a\n"
        "models:\n- model: org/a\n- {model: {model: {path: org/b}}, name: b, parameters: {weight: 1e-3}}\n"
    )
    pins = {"org/base@main": "org/base@0", "org/a": "org/a@1", "org/b": "org/b@2"}
    lock = parse_recipe(pinned_text(parse_recipe(text), pins))
    assert (lock.base.text, lock.tokenizer_model.text) == ("org/base@0", "org/a@1")
    assert [model.ref.text for model in lock.models] == ["org/a@1", "org/b@2"]
    assert lock.rule_at("x", "linear", 0).weights == (1.0, 1e-3)


@pytest.mark.slow
def test_the_number_of_workers_does_not_show_in_the_bytes(tmp_path: Path) -> None:
    folder = models.zoo(models.clip, tmp_path)
    outs = [tmp_path / f"out{workers}" for workers in (1, 2, 4)]
    for workers, out in zip((1, 2, 4), outs, strict=True):
        hf_tsv.merge(models.recipe(folder), out, options=hf_tsv.Options(workers=workers))
    assert len({(out / "model.safetensors").read_bytes() for out in outs}) == 1


def test_a_head_that_the_base_ties_is_told(tmp_path: Path) -> None:
    folder = models.zoo(lambda: models.llama(tied=True), tmp_path)
    untied = models.llama()
    models.save(untied, folder / "t1")
    planned = hf_tsv.plan(models.recipe(folder))
    assert [part.info.name for part in planned.parts] == ["lm_head.weight"]
    assert planned.warnings == (
        "lm_head.weight: 't1' has its own head, but the base ties its head to model.embed_tokens.weight;"
        " the merged model stays tied",
    )


class TestMistakes:
    """Each is told in a line, and nothing is written."""

    def told(self, tmp_path: Path, kind: type[HfTsvError], **options: Any) -> str:
        with pytest.raises(kind) as caught:
            hf_tsv.merge(tmp_path / "recipe.yaml", tmp_path / "out", hf_tsv.Options(**options))
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out*"))
        return str(caught.value).replace(str(tmp_path), "DIR")

    def test_nan(self, tmp_path: Path) -> None:
        folder = models.zoo(models.bert, tmp_path)
        path = folder / "t1" / "model.safetensors"
        state = load_file(path)
        state["pooler.dense.bias"][3] = float("nan")
        save_file(state, path, metadata={"format": "pt"})
        models.recipe(folder)
        assert self.told(tmp_path, MethodError) == (
            "pooler.dense.bias (32,), tsv_m: the weights of task 't1' hold NaN or infinity."
            " Get them again, or leave them out"
        )

    def test_shapes_that_differ(self, tmp_path: Path) -> None:
        folder = models.zoo(models.bert_classifier, tmp_path)
        path = folder / "t1" / "model.safetensors"
        state = load_file(path)
        state["bert.embeddings.word_embeddings.weight"] = torch.ones(91, 32)
        state["classifier.bias"] = torch.ones(4)
        save_file(state, path, metadata={"format": "pt"})
        models.recipe(folder)
        assert sorted(self.told(tmp_path, PlanError).splitlines()) == [
            "bert.embeddings.word_embeddings.weight: 't1' has 91 rows, the base has 90; DIR/base: no tokenizer in it,"
            " but rows are matched by it. Put a tokenizer.json beside the weights, which"
            " AutoTokenizer.from_pretrained(...).save_pretrained(...) writes, or keep the base's embeddings by an"
            " override with merge_method: base",
            "classifier.bias: 't1' has shape (4,), expected the base's (3,). Override it with merge_method: base;"
            " 't1' keeps its own as a task part.",
        ]

    def test_a_missing_tensor(self, tmp_path: Path) -> None:
        folder = models.zoo(models.bert, tmp_path)
        path = folder / "t1" / "model.safetensors"
        state = load_file(path)
        del state["pooler.dense.weight"]
        save_file(state, path, metadata={"format": "pt"})
        models.recipe(folder)
        assert self.told(tmp_path, PlanError) == (
            "pooler.dense.weight: 't1' doesn't have it, but others do. Keep the base's weight by an override with"
            " merge_method: base, or leave 't1' out"
        )

    def test_models_of_another_base(self, tmp_path: Path) -> None:
        folder = models.zoo(models.bert, tmp_path)
        for t in range(3):
            models.save(models.gpt2(), folder / f"t{t}")
        models.recipe(folder)
        assert "nothing in it would be merged" in self.told(tmp_path, PlanError)

    def test_one_model_of_another_base(self, tmp_path: Path) -> None:
        folder = models.zoo(models.bert, tmp_path)
        models.save(models.bert_wide(), folder / "t1")
        models.recipe(folder)
        told = self.told(tmp_path, PlanError)
        assert told.startswith(
            "'t1': DIR/t1 is not a fine-tune of DIR/base: 39 of 39 tensors don't fit. Check the model's name."
        )
        assert len(told.splitlines()) == 1

    @pytest.mark.parametrize("more", ["parameters: {scale: 1e38}\n", "parameters: {scale: 1e7}\nout_dtype: float16\n"])
    def test_a_result_that_overflows(self, more: str, tmp_path: Path) -> None:
        folder = models.zoo(models.bert, tmp_path)
        for t in range(3):
            models.save(models.perturbed(models.bert(), t, 100.0), folder / f"t{t}")
        models.recipe(folder, "task_arithmetic", more=more)
        assert "the result is too large for F" in self.told(tmp_path, MethodError)

    def test_a_file_as_a_model(self, tmp_path: Path) -> None:
        folder = models.zoo(models.bert, tmp_path)
        path = models.recipe(folder)
        path.write_text(path.read_text().replace(f"{folder}/t1", f"{folder}/t1/model.safetensors"))
        assert "t1/model.safetensors' is a file, expected the folder it is in" in self.told(tmp_path, RecipeError)

    def test_every_broken_model(self, tmp_path: Path) -> None:
        folder = models.zoo(models.bert, tmp_path)
        for t in (0, 2):
            path = folder / f"t{t}" / "model.safetensors"
            path.write_bytes(path.read_bytes()[:-7])
        models.recipe(folder)
        lines = self.told(tmp_path, CheckpointError).splitlines()
        assert [line.split(":")[0] for line in lines] == ["DIR/t0/model.safetensors", "DIR/t2/model.safetensors"]

    def test_an_output_that_the_recipe_reads(self, tmp_path: Path) -> None:
        folder = models.zoo(models.bert, tmp_path)
        (folder / "base" / "hf_tsv.json").write_text("{}")
        with pytest.raises(OutputError, match="which the recipe reads"):
            hf_tsv.merge(models.recipe(folder), folder / "base", options=hf_tsv.Options(overwrite=True))
        assert (folder / "base" / "model.safetensors").exists()

    def test_too_little_memory_allowed(self, tmp_path: Path) -> None:
        models.recipe(models.zoo(models.bert, tmp_path))
        assert "Allow more" in self.told(tmp_path, ResourceError, max_memory=1000)


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = models.zoo(models.bert, tmp_path)
    path = models.recipe(folder)
    hf_tsv.merge(path, tmp_path / "whole")
    stop_after(12, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        hf_tsv.merge(path, tmp_path / "out", options=hf_tsv.Options(workers=1))
    assert not (tmp_path / "out").exists()
    made = stop_after(10_000, monkeypatch)
    record = hf_tsv.merge(path, tmp_path / "out", options=hf_tsv.Options(workers=1))
    assert len(made) == len(record.tensors) - 12
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    assert all(re.fullmatch("[0-9a-f]{64}", entry.sha256) for entry in record.tensors.values())


def test_a_run_that_changed_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = models.zoo(models.bert, tmp_path)
    stop_after(5, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        hf_tsv.merge(models.recipe(folder), tmp_path / "out", options=hf_tsv.Options(workers=1))
    stop_after(10_000, monkeypatch)
    models.save(models.perturbed(models.bert(), 9), folder / "t1")
    path = models.recipe(folder, more="parameters: {scale: 2}\n")
    with pytest.raises(OutputError, match="an unfinished run with another recipe, another model 't1'. Pass"):
        hf_tsv.merge(path, tmp_path / "out")
    hf_tsv.merge(path, tmp_path / "out", options=hf_tsv.Options(restart=True))
    assert [p.name for p in tmp_path.glob(".out*")] == []


MERGE_STEP = run.merge_step


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make Ctrl-C come after so many tensors; the names of those that were begun."""
    begun: list[str] = []

    def merge_step(plan: Plan, step: Step, *more: Any) -> tuple[Tensor, dict[str, Any]]:
        if len(begun) == count:
            raise KeyboardInterrupt
        begun.append(step.name)
        return MERGE_STEP(plan, step, *more)

    monkeypatch.setattr(run, "merge_step", merge_step)
    return begun


class TestInMemory:
    def test_state_dicts(self) -> None:
        base = {"a.weight": torch.randn(20, 16), "a.bias": torch.randn(20)}
        tuned = {f"t{t}": {n: v + torch.randn_like(v) for n, v in base.items()} for t in range(3)}
        before = {n: v.clone() for n, v in base.items()}
        merged = hf_tsv.merge_state_dicts(base, tuned, scale=0.5)
        deltas = torch.stack([state["a.weight"] - base["a.weight"] for state in tuned.values()])
        assert error(merged["a.weight"] - base["a.weight"], 0.5 * oracles.tsv_m(deltas)) < CHANGE
        assert list(merged) == list(base)
        assert all(torch.equal(before[n], base[n]) for n in base)

    def test_weights_go_by_task(self) -> None:
        base = {"w": torch.zeros(3)}
        merged = hf_tsv.merge_state_dicts(
            base, {"a": {"w": torch.ones(3)}, "b": {"w": torch.full((3,), 5.0)}}, method="linear", weights={"b": 3.0}
        )
        assert merged["w"].tolist() == [4.0, 4.0, 4.0]

    @pytest.mark.parametrize("method", ["tsv_m", "ties", "knots"])
    def test_in_float64_a_task_that_changes_nothing_has_no_say(self, method: str) -> None:
        base = {"w": torch.randn(40, 30, dtype=torch.float64), "b": torch.randn(40, dtype=torch.float64)}
        tuned = {"a": {n: v + 0.01 * torch.randn_like(v) for n, v in base.items()}, "frozen": base}
        merged, want = (hf_tsv.merge_state_dicts(base, tuned, method=method, dtype=d) for d in ("float32", "float64"))
        assert all(error(merged[n] - base[n], want[n] - base[n]) < CHANGE for n in base)

    @pytest.mark.parametrize("method", ["tsv_m", "ties", "linear"])
    def test_a_mask_of_minus_infinity_that_all_models_have_stays(self, method: str) -> None:
        base = {"w": torch.randn(4, 4), "mask": torch.full((4, 4), float("-inf")).triu(1)}
        tuned = {t: base | {"w": torch.randn(4, 4)} for t in "ab"}
        assert torch.equal(hf_tsv.merge_state_dicts(base, tuned, method=method)["mask"], base["mask"])

    def test_modules(self) -> None:
        base, *tuned = (models.perturbed(models.gpt2(), seed) for seed in range(3))
        merged = hf_tsv.merge_modules(base, {"a": tuned[0], "b": tuned[1]}, method="task_arithmetic", scale=0.5)
        name = "transformer.h.0.attn.c_attn.weight"
        want = base.state_dict()[name] * 0 + sum(m.state_dict()[name] for m in tuned) / 2
        torch.testing.assert_close(merged.state_dict()[name], want, rtol=WEIGHTS, atol=WEIGHTS)
        assert merged.lm_head.weight is merged.transformer.wte.weight

    def test_a_weight_of_no_task_is_told(self) -> None:
        with pytest.raises(HfTsvError, match="^weights: no task 'b', expected 'a'$"):
            hf_tsv.merge_state_dicts({"w": torch.ones(2)}, {"a": {"w": torch.ones(2)}}, weights={"b": 2.0})

    def test_another_dtype_is_told(self) -> None:
        """In a recipe it would be mergekit's, for the output; here that has the base's."""
        with pytest.raises(HfTsvError, match="^dtype: expected float32 or float64 but got 'bfloat16'"):
            hf_tsv.merge_state_dicts({"w": torch.ones(2)}, {"a": {"w": torch.ones(2)}}, dtype="bfloat16")

    def test_an_unknown_parameter_is_told(self) -> None:
        with pytest.raises(HfTsvError, match="unknown parameter 'lamda' for tsv_m. Did you mean 'scale'?"):
            hf_tsv.merge_state_dicts({"w": torch.ones(2)}, {"a": {"w": torch.ones(2)}}, lamda=1)
