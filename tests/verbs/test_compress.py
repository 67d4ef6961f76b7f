"""Whole compressions: adapters that PEFT loads, and that are inputs again."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

import hf_tsv
from hf_tsv.checkpoints.folder import open_checkpoint
from hf_tsv.checkpoints.safetensors import read_header
from hf_tsv.errors import MethodError, OutputError
from hf_tsv.kept import adapters as written
from hf_tsv.kept import factors, spectra
from tests.support import models
from tests.support.cli import run
from tests.support.tensors import error
from tests.support.tolerances import CHANGE, OUTPUTS, WEIGHTS


def only_matrices(folder: Path) -> Path:
    """A recipe that leaves what is no linear weight as the base has it."""
    kinds = ("embedding", "norm", "head")
    overrides = "".join(f"  - {{filter: {{kind: {kind}}}, merge_method: base}}\n" for kind in kinds)
    return models.recipe(folder, more=f"overrides:\n{overrides}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT calls what transformers renamed
def test_peft_loads_every_adapter_and_its_model_is_nearly_the_fine_tune(tmp_path: Path) -> None:
    folder = models.zoo(models.llama, tmp_path)
    record = hf_tsv.compress(
        models.recipe(folder), tmp_path / "out", "energy=1.0", adapters=hf_tsv.AdapterOptions(verify="forward")
    )
    for task, profiles in record.adapters.items():
        assert profiles["faithful"].energy == pytest.approx(1)
        verified = profiles["faithful"].verified
        assert verified is not None
        assert verified.logits_error is not None
        assert verified.logits_error < OUTPUTS
        base = type(models.llama()).from_pretrained(folder / "base")
        tuned = type(models.llama()).from_pretrained(folder / task)
        adapted = PeftModel.from_pretrained(base, tmp_path / "out" / "adapters" / task)
        with torch.no_grad():
            got, want = adapted(models.TOKENS).logits, tuned(models.TOKENS).logits
        torch.testing.assert_close(got, want, rtol=OUTPUTS, atol=OUTPUTS)


@pytest.mark.slow
def test_merging_the_adapters_is_merging_the_checkpoints(tmp_path: Path) -> None:
    """TSV-C at rank min(m, n) / T holds all that TSV-M over T tasks reads."""
    folder = models.zoo(models.llama, tmp_path)
    recipe = only_matrices(folder)
    hf_tsv.merge(recipe, tmp_path / "direct")
    hf_tsv.compress(
        recipe, tmp_path / "out", f"fraction={1 / 3}", adapters=hf_tsv.AdapterOptions(factor_dtype="float32")
    )
    text = recipe.read_text()
    for t in range(3):
        text = text.replace(f"{folder}/t{t}\n", f"{folder}/base+{tmp_path}/out/adapters/t{t}\n    name: t{t}\n")
    (tmp_path / "again.yaml").write_text(text)
    hf_tsv.merge(tmp_path / "again.yaml", tmp_path / "again")
    base, direct, again = (open_checkpoint(tmp_path / name) for name in ("base", "direct", "again"))
    for name in base.names():
        change = direct.read(name) - base.read(name)
        if change.any():
            assert error(again.read(name) - base.read(name), change) < CHANGE, name


@pytest.mark.slow
def test_a_budget_is_kept_and_spent(tmp_path: Path) -> None:
    folder = models.zoo(models.bert_wide, tmp_path, tasks=2)
    path = models.recipe(folder, tasks=2)
    checkpoint = sum(f.stat().st_size for f in (folder / "t0").glob("*.safetensors"))
    record = hf_tsv.compress(path, tmp_path / "out", f"{checkpoint // 10}B")
    for task in ("t0", "t1"):
        taken = sum(f.stat().st_size for f in (tmp_path / "out" / "adapters" / task).iterdir() if f.is_file())
        assert 0.9 * checkpoint / 10 < taken <= checkpoint / 10 + 20_000  # the configuration lies beside the budget
        assert record.adapters[task]["faithful"].bytes <= taken


@pytest.mark.slow
def test_tasks_share_their_budgets_where_asked(tmp_path: Path) -> None:
    """A task that changed the model more gets more of the bytes, and less of all the change is lost."""
    folder = models.zoo(models.bert_wide, tmp_path, tasks=1)
    torch.manual_seed(0)
    models.save(models.perturbed(models.bert_wide(), 9, 0.06), folder / "t1")
    path, budget = models.recipe(folder, tasks=2), 600_000
    total = []
    for together in (False, True):
        out = tmp_path / f"out{together}"
        record = hf_tsv.compress(path, out, f"{budget}B", adapters=hf_tsv.AdapterOptions(together=together))
        sizes = [record.adapters[task]["faithful"].bytes for task in ("t0", "t1")]
        assert sum(sizes) <= 2 * budget
        total.append(sizes)
    assert total[0][0] == pytest.approx(total[0][1], rel=0.05)
    assert total[1][1] > 1.3 * total[1][0]


def test_a_budget_below_what_is_stored_whole_is_told(tmp_path: Path) -> None:
    path = models.recipe(models.zoo(models.bert, tmp_path))
    with pytest.raises(MethodError, match="Raise it"):
        hf_tsv.compress(path, tmp_path / "out", "100B")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.slow
def test_a_serving_adapter_has_one_rank_everywhere(tmp_path: Path) -> None:
    path = models.recipe(models.zoo(models.llama, tmp_path))
    record = hf_tsv.compress(
        path, tmp_path / "out", "rank=4", adapters=hf_tsv.AdapterOptions(profile="faithful,serving", serving_rank=8)
    )
    config = json.loads((tmp_path / "out" / "adapters-serving" / "t0" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (8, 8, {})
    assert 0 < record.adapters["t0"]["serving"].left_out_share < 1
    assert record.adapters["t0"]["serving"].left_out


def test_experts_share_a_rank_of_which_nothing_is_lost(tmp_path: Path) -> None:
    """PEFT gives the experts of a layer one rank: a budget spent on each by itself buys zeros for the others."""
    folder = models.zoo(models.mixtral, tmp_path, tasks=1)
    weights = load_file(folder / "t0" / "model.safetensors")
    base = load_file(folder / "base" / "model.safetensors")
    for name in weights:  # one expert changed more than the others
        if "experts.2." in name:
            weights[name] = base[name] + 5 * (weights[name] - base[name])
    save_file(weights, folder / "t0" / "model.safetensors", {"format": "pt"})
    budget = sum(tensor.nbytes for tensor in base.values()) // 4
    record = hf_tsv.compress(models.recipe(folder, tasks=1), tmp_path / "out", f"{budget}B")
    facts = record.adapters["t0"]["faithful"]
    assert budget * 0.97 < facts.bytes <= budget
    tensors = load_file(tmp_path / "out/adapters/t0/adapter_model.safetensors")
    experts = [tensor for name, tensor in tensors.items() if "experts" in name and "lora_A" in name]
    assert experts
    for tensor in experts:
        assert bool(tensor.any(dim=1).all())


@pytest.mark.slow
def test_each_adapter_is_reported_for_itself(tmp_path: Path) -> None:
    path = models.recipe(models.zoo(models.llama, tmp_path))
    record = hf_tsv.compress(
        path, tmp_path / "out", "rank=4", adapters=hf_tsv.AdapterOptions(profile="faithful,serving")
    )
    faithful, serving = record.adapters["t0"].values()
    base, task = (load_file(tmp_path / folder / "model.safetensors") for folder in ("base", "t0"))
    name = "model.layers.0.mlp.up_proj.weight"
    values = torch.linalg.svdvals((task[name] - base[name]).double())
    assert json.loads((tmp_path / "out/adapters-serving/t0/adapter_config.json").read_text())["r"] == 8
    for facts, rank in ((faithful, 4), (serving, 8)):
        assert facts.ranks[name] == rank
        assert facts.errors[name] == pytest.approx(float(values[rank:].norm() / values.norm()), rel=1e-4)
    assert "model.embed_tokens.weight" not in serving.errors
    assert serving.energy == pytest.approx(1 - serving.left_out_share, abs=0.01)


def test_a_lora_merged_into_a_bf16_checkpoint_comes_back_at_its_rank(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = models.bert_wide().bfloat16()
    name = "encoder.layer.1.intermediate.dense.weight"
    models.save(base, tmp_path / "base", dtype=torch.bfloat16)
    weight = base.get_parameter(name)
    with torch.no_grad():
        delta = torch.randn(weight.shape[0], 8) @ torch.randn(8, weight.shape[1]) * 0.002
        weight.copy_((weight.float() + delta).bfloat16())
    models.save(base, tmp_path / "t0", dtype=torch.bfloat16)
    record = hf_tsv.compress(models.recipe(tmp_path, tasks=1), tmp_path / "out", "energy=1.0")
    assert record.adapters["t0"]["faithful"].ranks == {name: 8}


def test_experts_that_are_stored_whole_need_no_bias(tmp_path: Path) -> None:
    folder = models.zoo(models.mixtral, tmp_path, tasks=1)
    record = hf_tsv.compress(models.recipe(folder, tasks=1), tmp_path / "out", "energy=1.0")
    assert record.adapters["t0"]["faithful"].left_out == {}
    hf_tsv.restore(tmp_path / "out", "t0", tmp_path / "restored")
    got, want = open_checkpoint(tmp_path / "restored"), open_checkpoint(folder / "t0")
    for name in want.names():
        torch.testing.assert_close(got.read(name), want.read(name), rtol=WEIGHTS, atol=WEIGHTS)


@pytest.mark.slow
def test_a_matrix_without_a_triplet_counts_as_left_out(tmp_path: Path) -> None:
    folder = models.zoo(models.bert_wide, tmp_path, tasks=1)
    smallest = sum(p.numel() for p in models.bert_wide().parameters() if p.ndim == 1) * 4
    record = hf_tsv.compress(
        models.recipe(folder, tasks=1),
        tmp_path / "out",
        f"{smallest + 60_000}B",
        adapters=hf_tsv.AdapterOptions(profile="faithful"),
    )
    facts = record.adapters["t0"]["faithful"]
    ranks = facts.ranks.values()
    assert any(error == 1.0 for error in facts.errors.values()), "some matrix gets no triplet"
    assert ranks
    assert facts.left_out_share == pytest.approx(1 - facts.energy, abs=0.02)


@pytest.mark.parametrize("make", [lambda: models.llama(tied=True), models.t5], ids=["llama", "t5"])
def test_copies_of_tied_weights_are_no_tensors_of_their_own(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """PEFT needs an embedding under each of its names. The checkpoint holds it once, and so does what is made of it."""
    folder = models.zoo(make, tmp_path, tasks=1)
    hf_tsv.compress(models.recipe(folder, tasks=1), tmp_path / "out", "energy=1.0")
    hf_tsv.restore(tmp_path / "out", "t0", tmp_path / "restored")
    assert set(open_checkpoint(tmp_path / "restored").names()) == set(open_checkpoint(folder / "base").names())
    (folder / "t0").rename(folder / "full")
    (tmp_path / "out/adapters/t0").rename(folder / "t0")
    assert not hf_tsv.merge(models.recipe(folder, tasks=1), tmp_path / "merged").task_parts


def test_a_head_that_was_trained_apart_from_a_tied_embedding_stays(tmp_path: Path) -> None:
    folder = models.zoo(lambda: models.llama(tied=True), tmp_path, tasks=1)
    hf_tsv.compress(models.recipe(folder, tasks=1), tmp_path / "out", "energy=1.0")
    file = tmp_path / "out/adapters/t0/adapter_model.safetensors"
    stored = load_file(file)
    stored["base_model.model.lm_head.weight"] += 1
    save_file(stored, file, metadata={"format": "pt"})
    hf_tsv.restore(tmp_path / "out", "t0", tmp_path / "restored")
    assert "lm_head.weight" in open_checkpoint(tmp_path / "restored").names()


def test_outputs_that_are_equal_but_for_roundings_are_equal(tmp_path: Path) -> None:
    """Jamba's own forward pass in PEFT's wrapping, adapter off, differs from the bare model's in the last digits."""
    sizes = models.SMALL | {"mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False, "num_experts": 4}
    period = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
    config = tf.JambaConfig(vocab_size=64, num_key_value_heads=2, pad_token_id=0, **sizes, **period)
    folder = models.zoo(lambda: models.perturbed(tf.JambaForCausalLM(config), 99, 0.05), tmp_path, tasks=1)
    record = hf_tsv.compress(
        models.recipe(folder, tasks=1), tmp_path / "out", "rank=4", adapters=hf_tsv.AdapterOptions(verify="forward")
    )
    verified = record.adapters["t0"]["faithful"].verified
    assert verified is not None
    assert verified.logits_error is not None
    assert verified.logits_error < OUTPUTS


def test_a_dry_run_tells_of_adapters(tmp_path: Path) -> None:
    recipe = models.recipe(models.zoo(models.llama, tmp_path, tasks=2), "ties", tasks=2)
    result = run("compress", recipe, tmp_path / "out", "--keep", "rank=3", "--dry-run")
    assert "tsv_c(rank=3)" in result.stdout
    assert "21 tensors: 21 by tsv_c" in result.stdout
    assert "writes 2 adapters of at most" in result.stdout
    assert "tsv_c, in place of ties" in " ".join((result.stdout + result.stderr).split())
    assert not (tmp_path / "out").exists()


def test_the_command_prints_a_table(tmp_path: Path) -> None:
    path = models.recipe(models.zoo(models.bert, tmp_path))
    result = run("compress", path, tmp_path / "out", "--keep", "rank=4", "-q")
    assert result.exit_code == 0, result.stderr
    assert "energy kept" in result.stdout
    assert result.stdout.rstrip().endswith("/out")
    assert run("compress", path, tmp_path / "x", "--keep", "rank=4,energy=0.9").exit_code == 2
    assert run("compress", path, tmp_path / "x", "--keep", "energy=1.5").exit_code == 2


# Where each call is made.
ROOMS = {"singular_values": spectra, "truncated_svd": factors, "verify_adapter": written}


def stop_at(count: int, name: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have Ctrl-C come at the call of that number; the calls that were made."""
    made: list[int] = []
    original = getattr(ROOMS[name], name)

    def call(*arguments: Any, **options: Any) -> Any:
        if len(made) == count:
            raise KeyboardInterrupt
        made.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(ROOMS[name], name, call)
    return made


def adapters(out: Path) -> dict[str, bytes]:
    return {str(f.relative_to(out)): f.read_bytes() for f in out.rglob("*.safetensors")}


def _compress(recipe: Path, out: Path) -> None:
    hf_tsv.compress(
        recipe,
        out,
        "60000B",
        adapters=hf_tsv.AdapterOptions(profile="faithful,serving", serving_rank=8),
        options=hf_tsv.Options(workers=1),
    )


def _merge_as_adapter(recipe: Path, out: Path) -> None:
    hf_tsv.merge_as_adapter(recipe, out, "rank=4", options=hf_tsv.Options(workers=1))


def _merge(recipe: Path, out: Path) -> None:
    hf_tsv.merge(recipe, out, options=hf_tsv.Options(workers=1))


class TestResume:
    """A run that was stopped goes on where it was, to the same bytes."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("make", "more"),
        [(_compress, ""), (_merge_as_adapter, ""), (_merge, "residuals: {rank: 2}\n")],
        ids=["compress", "merge --as adapter", "residuals"],
    )
    @pytest.mark.parametrize("stage", ["singular_values", "truncated_svd", "verify_adapter"])
    def test_nothing_is_computed_again(
        self, make: Callable[[Path, Path], None], more: str, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = models.recipe(models.zoo(models.llama, tmp_path, tasks=2), tasks=2, more=more)
        with monkeypatch.context() as patched:
            calls = {name: stop_at(-1, name, patched) for name in ("singular_values", "truncated_svd")}
            make(recipe, tmp_path / "whole")
            needed = {name: len(made) for name, made in calls.items()}
        before, after = [], []
        for made, stop in ((before, 7 if stage != "verify_adapter" else 0), (after, -1)):
            with monkeypatch.context() as patched:
                calls = {n: stop_at(stop if n == stage else -1, n, patched) for n in (*needed, "verify_adapter")}
                if stop < 0:
                    make(recipe, tmp_path / "out")
                else:
                    with pytest.raises(KeyboardInterrupt):
                        make(recipe, tmp_path / "out")
                    assert not (tmp_path / "out").exists()
                made += [len(calls[name]) for name in needed]
        assert [a + b for a, b in zip(before, after, strict=True)] == list(needed.values())
        assert adapters(tmp_path / "out") == adapters(tmp_path / "whole")
        assert not list(tmp_path.glob(".out*"))

    def stopped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        recipe = models.recipe(models.zoo(models.llama, tmp_path))
        with monkeypatch.context() as patched:
            stop_at(5, "truncated_svd", patched)
            with pytest.raises(KeyboardInterrupt):
                hf_tsv.compress(recipe, tmp_path / "out", "rank=3", options=hf_tsv.Options(workers=1))
        return recipe

    @pytest.mark.slow
    def test_with_other_options_or_another_recipe_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = self.stopped(tmp_path, monkeypatch)
        with pytest.raises(OutputError, match="an unfinished run with another recipe. Pass --restart"):
            hf_tsv.compress(recipe, tmp_path / "out", "rank=4")
        with pytest.raises(OutputError, match="with another recipe, another layout of files. Pass --restart"):
            hf_tsv.merge(recipe, tmp_path / "out")
        models.save(models.perturbed(models.llama(), 9), tmp_path / "t1")
        recipe = models.recipe(tmp_path, more="dtype: float64\n")
        result = run("compress", recipe, tmp_path / "out", "--keep", "rank=3", "-q")
        assert result.exit_code == 1
        assert "an unfinished run with another recipe, another model 't1'." in result.stderr
        assert run("compress", recipe, tmp_path / "out", "--keep", "rank=3", "-q", "--restart").exit_code == 0

    def test_damaged_findings_are_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        recipe = self.stopped(tmp_path, monkeypatch)
        found = tmp_path / ".out.hf_tsv" / "scratch" / "spectra.safetensors"
        with found.open("r+b") as file:
            file.seek(-8, 2)
            file.write(b"\x40")
        with pytest.raises(OutputError, match="was damaged. Pass --restart"):
            hf_tsv.compress(recipe, tmp_path / "out", "rank=3")

    @pytest.mark.slow
    def test_lost_findings_are_made_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        recipe = self.stopped(tmp_path, monkeypatch)
        (tmp_path / ".out.hf_tsv" / "scratch" / "factors.safetensors").unlink()
        hf_tsv.compress(recipe, tmp_path / "whole", "rank=3")
        hf_tsv.compress(recipe, tmp_path / "out", "rank=3")
        assert adapters(tmp_path / "out") == adapters(tmp_path / "whole")


@pytest.mark.slow
def test_who_is_done_first_does_not_decide_a_tie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers with the same weights and changes, and room for one triplet more of one of them."""
    for name, seed in (("base", None), ("t0", 1)):
        torch.manual_seed(0)
        model = models.llama()
        if seed is not None:
            models.perturbed(model, seed)
        model.model.layers[1].load_state_dict(model.model.layers[0].state_dict())
        models.save(model, tmp_path / name)
    recipe = models.recipe(tmp_path, tasks=1)
    values, calls, outs = spectra.singular_values, iter(range(1000)), []
    for workers in (1, 2):
        monkeypatch.setattr(spectra, "singular_values", lambda a: (time.sleep(0.05 * (next(calls) % 2)), values(a))[1])
        hf_tsv.compress(recipe, tmp_path / f"out{workers}", "60000B", options=hf_tsv.Options(workers=workers))
        outs.append(adapters(tmp_path / f"out{workers}"))
    assert outs[0] == outs[1]


def test_a_profile_tells_of_itself_alone(tmp_path: Path) -> None:
    """The serving adapter has more triplets of the layers than the faithful one, and nothing of the embeddings."""
    recipe = models.recipe(models.zoo(models.llama, tmp_path, tasks=1), tasks=1)
    facts = hf_tsv.compress(
        recipe, tmp_path / "out", "rank=4", adapters=hf_tsv.AdapterOptions(profile="faithful,serving", serving_rank=64)
    ).adapters["t0"]
    embedding, layer, norm = (f"model.{n}.weight" for n in ("embed_tokens", "layers.0.mlp.up_proj", "norm"))
    ranks = {name: [facts[profile].ranks.get(name) for profile in facts] for name in (embedding, layer, norm)}
    assert ranks == {embedding: [4, None], layer: [4, 32], norm: ["dense", None]}
    assert facts["serving"].errors[layer] < 1e-6
    assert embedding not in facts["serving"].errors
    assert facts["serving"].energy > 0.7 > facts["faithful"].energy
    card = (tmp_path / "out/adapters-serving/t0/README.md").read_text()
    assert "mlp.up_proj.weight` | 2 | 32 |" in card
    assert "embed_tokens" not in card
    assert "For the faithful adapters." in (tmp_path / "out/README.md").read_text()


def test_what_is_stored_whole_is_exact(tmp_path: Path) -> None:
    """Factors of that rank would be larger than the matrix."""
    folder = models.zoo(lambda: models.llama(tied=True), tmp_path, tasks=1)
    record = hf_tsv.compress(models.recipe(folder, tasks=1), tmp_path / "out", "rank=24")
    name = "model.embed_tokens.weight"
    stored = load_file(tmp_path / "out/adapters/t0/adapter_model.safetensors")
    assert torch.equal(stored[f"base_model.model.{name}"], load_file(folder / "t0/model.safetensors")[name])
    facts = record.adapters["t0"]["faithful"]
    assert (facts.ranks[name], facts.errors[name]) == ("dense", 0.0)


def test_factors_that_peft_can_not_hold_lie_beside(tmp_path: Path) -> None:
    """PEFT holds no factors of tied embeddings, which as a whole would take ten times the bytes."""
    folder = models.zoo(lambda: models.llama(tied=True), tmp_path, tasks=1)
    record = hf_tsv.compress(models.recipe(folder, tasks=1), tmp_path / "out", "rank=4")
    name = "model.embed_tokens.weight"
    facts = record.adapters["t0"]["faithful"]
    assert facts.in_sidecar == (name,)
    assert facts.ranks[name] == 4
    stored = load_file(tmp_path / "out/adapters/t0/rest.safetensors")
    assert {key: tuple(tensor.shape) for key, tensor in stored.items()} == {
        f"{name}/left": (64, 4),
        f"{name}/right": (4, 32),
    }


class TestRestore:
    def test_gives_the_fine_tune_back(self, tmp_path: Path) -> None:
        folder = models.zoo(models.bert, tmp_path)
        hf_tsv.compress(models.recipe(folder), tmp_path / "out", "energy=1.0")
        hf_tsv.restore(tmp_path / "out", "t1", tmp_path / "restored")
        got, want = open_checkpoint(tmp_path / "restored"), open_checkpoint(folder / "t1")
        assert list(got.names()) == list(want.names())
        for name in want.names():
            torch.testing.assert_close(got.read(name), want.read(name), rtol=WEIGHTS, atol=WEIGHTS)
        assert (tmp_path / "restored" / "config.json").read_bytes() == (folder / "base" / "config.json").read_bytes()

    @pytest.mark.slow
    def test_holds_what_peft_does_not_load(self, tmp_path: Path) -> None:
        """Under a budget, norms and biases lie in the sidecar: the restored model has them, and so has a merge."""
        folder = models.zoo(models.bert_wide, tmp_path, tasks=2)
        checkpoint = sum(f.stat().st_size for f in (folder / "t0").glob("*.safetensors"))
        record = hf_tsv.compress(models.recipe(folder, tasks=2), tmp_path / "out", f"{checkpoint // 10}B")
        beside = record.adapters["t0"]["faithful"].in_sidecar
        assert beside
        hf_tsv.restore(tmp_path / "out", "t0", tmp_path / "restored")
        adapter = f"{folder}/base+{tmp_path}/out/adapters/t0"
        text = f"merge_method: linear\nbase_model: {folder}/base\nmodels:\n  - model: {adapter}\n    name: t0\n"
        (tmp_path / "one.yaml").write_text(text)
        hf_tsv.merge(tmp_path / "one.yaml", tmp_path / "merged")
        got, merged, want, base = (open_checkpoint(tmp_path / p) for p in ("restored", "merged", "t0", "base"))
        for name in beside:
            torch.testing.assert_close(got.read(name), merged.read(name), rtol=1e-6, atol=1e-7)
            lost, change = ((of.read(name) - want.read(name)).norm() for of in (got, base))
            assert lost < change

    def test_a_task_with_a_head_of_its_own(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        folder = models.zoo(models.bert, tmp_path, tasks=2)
        tuned = models.bert_classifier(labels=4)
        tuned.bert.load_state_dict(type(models.bert()).from_pretrained(folder / "t1").state_dict())
        models.save(tuned, folder / "t1")
        hf_tsv.compress(models.recipe(folder, tasks=2), tmp_path / "out", "energy=1.0")
        assert run("restore", tmp_path / "out", tmp_path / "restored", "--task", "t1", "-q").exit_code == 0
        want = type(tuned).from_pretrained(folder / "t1")
        got = type(tuned).from_pretrained(tmp_path / "restored")
        assert got.config.num_labels == 4
        with torch.no_grad():
            torch.testing.assert_close(
                got(models.TOKENS).logits, want(models.TOKENS).logits, rtol=OUTPUTS, atol=OUTPUTS
            )

    @pytest.mark.slow
    def test_an_unknown_task_is_told(self, tmp_path: Path) -> None:
        folder = models.zoo(models.bert, tmp_path)
        hf_tsv.compress(models.recipe(folder), tmp_path / "out", "rank=2")
        result = run("restore", tmp_path / "out", tmp_path / "x", "--task", "t9")
        assert result.exit_code == 1
        assert "Its tasks: t0, t1, t2" in result.stderr


@pytest.mark.parametrize("how", ["weights", "forward"])
def test_a_model_that_changed_nothing_gets_an_empty_adapter(tmp_path: Path, how: str) -> None:
    models.zoo(models.bert, tmp_path, tasks=1)
    shutil.copytree(tmp_path / "base", tmp_path / "t0", dirs_exist_ok=True)
    run("compress", models.recipe(tmp_path, "linear", tasks=1), tmp_path / "out", "--verify", how)
    assert not read_header(tmp_path / "out" / "adapters" / "t0" / "adapter_model.safetensors")
