"""TALL-masks and EMR: one merged model, and a mask a task that makes its model of it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import hf_tsv
from hf_tsv import planner
from hf_tsv.errors import PlanError
from hf_tsv.loaders import open_checkpoint

from . import models
from .test_cli import run
from .test_merge import deltas_of
from .test_residuals import weights


def paper_tall(deltas: Tensor, lam: float) -> Tensor:
    """m_t tau of every task (arXiv 2405.07813, equation 5, strictly), in float64."""
    total = deltas.sum(0)
    return torch.where(deltas.abs() > lam * (total - deltas).abs(), total, 0.0)


@pytest.mark.parametrize("piece", [2**19, 50])
def test_a_task_is_restored_as_the_paper_says(piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "PIECE", piece)
    folder = models.zoo(models.bert, tmp_path)
    recipe = models.recipe(folder, "tall_mask", more="parameters: {mask_lambda: 0.5}\n")
    record = hf_tsv.merge(recipe, tmp_path / "out")
    base = weights(folder / "base")
    own = total = 0
    for t in range(3):
        hf_tsv.restore(tmp_path / "out", f"t{t}", tmp_path / f"r{t}")
        restored = weights(tmp_path / f"r{t}")
        for name in base:
            want = base[name].double() + paper_tall(deltas_of(folder, name), 0.5)[t]
            wrong = ~torch.isclose(restored[name].double(), want, rtol=1e-5, atol=1e-6)
            assert wrong.float().mean() < 1e-3, name  # a rounding may decide an entry on the edge
            own, total = own + int((restored[name] != base[name]).sum()), total + base[name].numel()
    assert sum(facts["own"] for facts in record["masks"]["tasks"].values()) / 3 == pytest.approx(own / total, abs=1e-3)
    assert sum(record["masks"]["weights"].values()) == pytest.approx(1)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| `t2` |" in card
    assert f"are no task's own, {record['masks']['weights']['selfish']:.1%} one task's" in card
    bits = (tmp_path / "out" / "masks" / "t0.safetensors").stat().st_size
    assert total / 3 / 8 < bits < total / 3 / 8 + 10_000


def test_emr_rescales_over_the_whole_model(tmp_path: Path) -> None:
    folder = models.zoo(models.bert, tmp_path)
    hf_tsv.merge(models.recipe(folder, "emr"), tmp_path / "out")
    base = weights(folder / "base")
    deltas = {name: deltas_of(folder, name) for name in base}
    unified = {}
    for name, of_tasks in deltas.items():
        sign = torch.where(of_tasks.sum(0) > 0, 1.0, -1.0).double()
        unified[name] = sign * (of_tasks * sign).clamp(min=0).amax(0)
    hf_tsv.restore(tmp_path / "out", "t1", tmp_path / "restored")
    restored = weights(tmp_path / "restored")
    masked = {name: torch.where(deltas[name][1] * unified[name] > 0, unified[name], 0.0) for name in base}
    factor = sum(d[1].abs().sum() for d in deltas.values()) / sum(m.abs().sum() for m in masked.values())
    for name in base:
        torch.testing.assert_close(restored[name].double(), base[name] + factor * masked[name], rtol=1e-4, atol=1e-6)


def test_a_task_with_a_head_of_its_own_is_loaded(tmp_path: Path) -> None:
    folder = models.zoo(models.bert, tmp_path, tasks=2)
    torch.manual_seed(0)
    tuned = models.bert_classifier(labels=4)
    tuned.bert.load_state_dict(type(models.bert()).from_pretrained(folder / "t1").state_dict())
    models.save(tuned, folder / "t1")
    hf_tsv.merge(models.recipe(folder, "tall_mask", tasks=2), tmp_path / "out")
    model = hf_tsv.load_task(tmp_path / "out", "t1")
    assert type(model) is type(tuned)
    assert torch.equal(model.classifier.weight, tuned.classifier.weight)
    assert run("restore", tmp_path / "out", tmp_path / "r", "--task", "t1", "-q").exit_code == 0
    again = type(tuned).from_pretrained(tmp_path / "r")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_an_adapter_is_loaded_as_a_model(tmp_path: Path) -> None:
    from hf_tsv.compressed import Compressing
    from hf_tsv.compression import Energy

    folder = models.zoo(models.bert, tmp_path)
    hf_tsv.compress(models.recipe(folder), tmp_path / "out", Compressing(Energy(1.0)))
    model, want = hf_tsv.load_task(tmp_path / "out", "t2"), open_checkpoint(folder / "t2")
    for name, weight in model.state_dict().items():
        if name in want.names():
            torch.testing.assert_close(weight, want.read(name), rtol=1e-5, atol=1e-6)


def test_a_task_is_kept_in_one_way(tmp_path: Path) -> None:
    more = "overrides:\n  - {filter: attention, merge_method: tsv_c}\n"
    recipe = models.recipe(models.zoo(models.bert, tmp_path), "tall_mask", more=more)
    with pytest.raises(PlanError, match="tall_mask and tsv_c both keep what is a task's own"):
        hf_tsv.merge(recipe, tmp_path / "out")
