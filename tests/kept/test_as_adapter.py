"""Merges as adapters."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel

import hf_tsv
from hf_tsv.errors import RecipeError
from tests.support import models
from tests.support.adapters import recipe as recipe_of
from tests.support.adapters import zoo as adapters_of
from tests.support.cli import run
from tests.support.tensors import error, read_all
from tests.support.tolerances import CHANGE

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT calls what transformers renamed


def peft_weights(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    model = type(models.llama()).from_pretrained(base, dtype=torch.float32)
    return dict(PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict())


@pytest.mark.parametrize("method", ["tsv_m", "task_arithmetic", "ties"])
def test_adapters_merge_into_an_adapter(method: str, tmp_path: Path) -> None:
    folder = adapters_of(tmp_path, models.llama, target_modules=["q_proj", "up_proj"], r=3)
    path = recipe_of(folder, ["DIR/a1", "DIR/a2"], method=method)
    hf_tsv.merge(path, tmp_path / "whole")
    hf_tsv.merge_as_adapter(path, tmp_path / "out")
    got, want, base = (
        peft_weights(folder / "base", tmp_path / "out"),
        read_all(tmp_path / "whole"),
        read_all(folder / "base"),
    )
    changed = [name for name in base if not torch.equal(want[name], base[name])]
    assert changed
    for name in changed:
        assert error(got[name] - base[name], want[name] - base[name]) < CHANGE, name
    if method != "ties":  # which trims entries, so that the rank is full
        assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] <= 6


def test_a_rank_is_kept_and_optimal(tmp_path: Path) -> None:
    folder = models.zoo(models.llama, tmp_path, dtype=torch.bfloat16)
    path = models.recipe(folder)
    hf_tsv.merge(models.recipe(folder, more="out_dtype: float32\n"), tmp_path / "whole")
    path = models.recipe(folder)
    assert run("merge", path, tmp_path / "out", "--as", "adapter", "--keep", "rank=4", "-q").exit_code == 0
    got, want, base = (
        peft_weights(folder / "base", tmp_path / "out"),
        read_all(tmp_path / "whole"),
        read_all(folder / "base"),
    )
    name = "model.layers.0.mlp.up_proj.weight"
    change = want[name].double() - base[name].double()
    s = torch.linalg.svdvals(change)
    missing = (got[name].double() - base[name].double() - change).norm()
    torch.testing.assert_close(missing, s[4:].norm(), rtol=2e-2, atol=0)  # the factors are stored in bf16


def test_an_adapter_holds_no_adapters(tmp_path: Path) -> None:
    path = models.recipe(models.zoo(models.llama, tmp_path), more="residuals: {rank: 2}\n")
    with pytest.raises(RecipeError, match="one adapter can't hold what single tasks keep by residuals"):
        hf_tsv.merge_as_adapter(path, tmp_path / "out")
    assert run("merge", path, tmp_path / "out", "--keep", "rank=4").exit_code == 2
