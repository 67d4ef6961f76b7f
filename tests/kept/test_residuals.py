"""Recipes that merge some modules and leave the others to adapters."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

import hf_tsv
from hf_tsv.errors import MethodError, PlanError, RecipeError
from tests.support import models
from tests.support.tensors import deltas_of, error, read_all
from tests.support.tolerances import CHANGE, WEIGHTS

MIXED = """
overrides:
  - {filter: .mlp., merge_method: tsv_c, parameters: {rank: 4}}
"""

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT calls what transformers renamed


def adapted(out: Path, task: str) -> dict[str, Tensor]:
    """The merged model with a task's adapter on it, as PEFT makes it."""
    model: nn.Module = type(models.llama()).from_pretrained(out)
    merged = PeftModel.from_pretrained(model, out / "adapters" / task).merge_and_unload()
    return dict(merged.state_dict())


def test_some_modules_merged_and_some_left_to_adapters(tmp_path: Path) -> None:
    folder = models.zoo(models.llama, tmp_path)
    record = hf_tsv.merge(models.recipe(folder, more=MIXED), tmp_path / "out")
    plain = hf_tsv.merge(models.recipe(folder), tmp_path / "plain")
    assert plain.method == "tsv_m"
    base, out, all_merged = read_all(folder / "base"), read_all(tmp_path / "out"), read_all(tmp_path / "plain")
    for name in base:
        assert torch.equal(out[name], (base if ".mlp." in name else all_merged)[name]), name
    for t in range(3):
        got = adapted(tmp_path / "out", f"t{t}")
        held = {name for name in base if not torch.equal(got[name], out[name])}
        assert held == {name for name in base if ".mlp." in name}
        for name in held:
            u, s, vh = torch.linalg.svd(deltas_of(folder, name)[t].double(), full_matrices=False)
            best = (u[:, :4] * s[:4]) @ vh[:4]
            assert error(got[name].double() - base[name].double(), best) < CHANGE
    assert record.adapters.keys() == {"t0", "t1", "t2"}


def test_residuals_give_the_fine_tunes_back(tmp_path: Path) -> None:
    folder = models.zoo(models.llama, tmp_path)
    hf_tsv.merge(models.recipe(folder, more="residuals: {energy: 1.0}\n"), tmp_path / "out")
    for t in range(3):
        got, want = adapted(tmp_path / "out", f"t{t}"), read_all(folder / f"t{t}")
        for name in want:
            torch.testing.assert_close(got[name], want[name], rtol=WEIGHTS, atol=WEIGHTS)
        hf_tsv.restore(tmp_path / "out", f"t{t}", tmp_path / f"r{t}")
        restored = read_all(tmp_path / f"r{t}")
        for name in want:
            torch.testing.assert_close(restored[name], want[name], rtol=WEIGHTS, atol=WEIGHTS)


@pytest.mark.slow
def test_residuals_of_adapters_give_their_models_back(tmp_path: Path) -> None:
    """An adapter's change is known against the base; what is left of it, against the merged model."""
    folder = models.zoo(models.llama, tmp_path, tasks=2)
    hf_tsv.compress(models.recipe(folder, tasks=2), tmp_path / "small", "rank=3")
    listed = "".join(f"  - {{model: {folder}/base+{tmp_path}/small/adapters/t{t}, name: t{t}}}\n" for t in range(2))
    text = f"merge_method: tsv_m\nbase_model: {folder}/base\nmodels:\n{listed}residuals: {{energy: 1.0}}\n"
    (tmp_path / "adapters.yaml").write_text(text)
    hf_tsv.merge(tmp_path / "adapters.yaml", tmp_path / "out")
    for t in range(2):
        hf_tsv.restore(tmp_path / "small", f"t{t}", tmp_path / f"r{t}")
        got, want = adapted(tmp_path / "out", f"t{t}"), read_all(tmp_path / f"r{t}")
        for name in want:
            torch.testing.assert_close(got[name], want[name], rtol=WEIGHTS, atol=WEIGHTS)


@pytest.mark.slow
def test_a_stopped_run_finds_its_merge_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_tsv.kept import residuals

    recipe = models.recipe(models.zoo(models.llama, tmp_path), more=MIXED)
    hf_tsv.merge(recipe, tmp_path / "whole")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(residuals, "compress_tasks", stop)
        with pytest.raises(KeyboardInterrupt):
            hf_tsv.merge(recipe, tmp_path / "out")
    hf_tsv.merge(recipe, tmp_path / "out")
    for file in ("model.safetensors", "adapters/t1/adapter_model.safetensors"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_the_recipe_says_how_adapters_are_written(tmp_path: Path) -> None:
    more = MIXED + "adapters: {profiles: [serving], rank: 8, factor_dtype: bfloat16}\n"
    record = hf_tsv.merge(models.recipe(models.zoo(models.llama, tmp_path), more=more), tmp_path / "out")
    assert record.adapters["t0"].keys() == {"serving"}
    stored = load_file(tmp_path / "out" / "adapters-serving" / "t0" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("more", "kind", "told"),
    [
        ("residuals: {rank: 2, energy: 0.5}\n", RecipeError, "several rules for the ranks: rank, energy. Keep one"),
        ("residuals: {budget: lots}\n", RecipeError, "'lots' is not a budget. Write a size such as 10MB"),
        ("residuals: {ranks: 2}\n", RecipeError, "Did you mean 'rank'"),
        ("adapters: {rank: 7}\n", RecipeError, "expected 8, 16, 32, 64 or 128 but got 7"),
        (MIXED.replace("rank: 4", "rank: 4, budget: 5%"), PlanError, "several rules for the ranks: rank, budget"),
        (
            MIXED.replace("rank: 4", "budget: 5%") + "residuals: {budget: 9%}\n",
            PlanError,
            "an adapter has only one size",
        ),
    ],
)
def test_mistakes_are_told_before_weights_move(more: str, kind: type[Exception], told: str, tmp_path: Path) -> None:
    recipe = models.recipe(models.zoo(models.llama, tmp_path), more=more)
    with pytest.raises(kind, match=told):
        hf_tsv.merge(recipe, tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))


def test_state_dicts_hold_no_adapters() -> None:
    base = {"weight": torch.zeros(4, 4)}
    with pytest.raises(MethodError, match=r"Call hf_tsv\.merge"):
        hf_tsv.merge_state_dicts(base, {"a": {"weight": torch.ones(4, 4)}}, method="tsv_c")
