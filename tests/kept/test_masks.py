"""TALL-masks and EMR: one merged model, and a mask a task that makes its model of it."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import hf_tsv
from hf_tsv.checkpoints.folder import open_checkpoint
from hf_tsv.errors import PlanError
from hf_tsv.kept.masks import _Bits
from hf_tsv.linalg.masks import pack
from hf_tsv.merging import plan as planner
from tests.support import models
from tests.support.cli import run
from tests.support.tensors import deltas_of, read_all
from tests.support.tolerances import CHANGE, WEIGHTS


def paper_tall(deltas: Tensor, lam: float) -> Tensor:
    """m_t tau of every task (arXiv 2405.07813, equation 5, strictly), in float64."""
    total = deltas.sum(0)
    return torch.where(deltas.abs() > lam * (total - deltas).abs(), total, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("piece", [2**19, 50])
def test_a_task_is_restored_as_the_paper_says(piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "PIECE", piece)
    folder = models.zoo(models.bert, tmp_path)
    recipe = models.recipe(folder, "tall_mask", more="parameters: {mask_lambda: 0.5}\n")
    record = hf_tsv.merge(recipe, tmp_path / "out")
    base = read_all(folder / "base")
    own = total = 0
    for t in range(3):
        hf_tsv.restore(tmp_path / "out", f"t{t}", tmp_path / f"r{t}")
        restored = read_all(tmp_path / f"r{t}")
        for name in base:
            want = base[name].double() + paper_tall(deltas_of(folder, name), 0.5)[t]
            wrong = ~torch.isclose(restored[name].double(), want, rtol=WEIGHTS, atol=WEIGHTS)
            assert wrong.float().mean() < 1e-3, name  # a rounding may decide an entry on the edge
            own, total = own + int((restored[name] != base[name]).sum()), total + base[name].numel()
    assert record.masks is not None
    use = record.masks.weights
    assert sum(mask.own for mask in record.masks.tasks.values()) / 3 == pytest.approx(own / total, abs=1e-3)
    assert use.catastrophic + use.selfish + use.shared == pytest.approx(1)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| `t2` |" in card
    assert f"belong to no task, {use.selfish:.1%} to one task" in card
    bits = (tmp_path / "out" / "masks" / "t0.safetensors").stat().st_size
    assert total / 3 / 8 < bits < total / 3 / 8 + 10_000


def paper_largest(vector: Tensor, density: float) -> float:
    """The magnitude that an entry has to reach: `topk_values_mask` of the authors' code, with its kthvalue."""
    return float(vector.abs().kthvalue(len(vector) - int(len(vector) * density)).values)


@pytest.mark.parametrize("piece", [2**19, 700])
def test_a_task_is_restored_by_its_largest_entries(piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline `mag_masking` of the repository of arXiv 2405.07813: masks over the whole vector, on the sum."""
    monkeypatch.setattr(planner, "PIECE", piece)
    folder, densities = models.zoo(models.bert, tmp_path), (0.1, 0.02, 0.3)
    entries = "".join(
        f"  - {{model: {folder}/t{t}, parameters: {{density: {density}, weight: {t + 1}.1}}}}\n"
        for t, density in enumerate(densities)
    )
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"merge_method: magnitude_mask\nbase_model: {folder}/base\nmodels:\n{entries}")
    record = hf_tsv.merge(recipe, tmp_path / "out")
    base, merged = read_all(folder / "base"), read_all(tmp_path / "out")
    deltas = {name: deltas_of(folder, name) for name in base}
    for t, density in enumerate(densities):
        least = paper_largest(torch.cat([of_tasks[t].flatten() for of_tasks in deltas.values()]), density)
        hf_tsv.restore(tmp_path / "out", f"t{t}", tmp_path / f"r{t}")
        restored = read_all(tmp_path / f"r{t}")
        for name in base:
            own = deltas[name][t].abs()
            wrong = restored[name] != torch.where(own >= least, merged[name], base[name])
            assert torch.allclose(own[wrong], torch.tensor(least).to(own), rtol=CHANGE), name
        assert record.masks is not None
        assert record.masks.tasks[f"t{t}"].own == pytest.approx(density, abs=1e-3)
        assert record.masks.tasks[f"t{t}"].factor == 1
    assert type(hf_tsv.load_task(tmp_path / "out", "t1")).__name__ == "BertModel"


@given(pieces=st.lists(st.lists(st.booleans(), max_size=20), max_size=6))
def test_a_mask_that_comes_in_pieces_is_packed_as_one(pieces: list[list[bool]]) -> None:
    bits = _Bits()
    for piece in pieces:
        bits.add(torch.tensor(piece, dtype=torch.bool))
    whole = torch.tensor([bit for piece in pieces for bit in piece], dtype=torch.bool)
    assert torch.equal(bits.finish(), pack(whole))
    assert bits.ones == int(whole.sum())


def test_the_command_says_what_is_stored(tmp_path: Path) -> None:
    recipe = models.recipe(models.zoo(models.bert, tmp_path), "tall_mask")
    result = run("merge", recipe, tmp_path / "out")
    assert "With the masks of 3 tasks" in result.stderr


@pytest.mark.slow
def test_the_card_shows_the_pictures_of_inspect(tmp_path: Path) -> None:
    recipe = models.recipe(models.zoo(models.bert, tmp_path))
    hf_tsv.merge(recipe, tmp_path / "out")
    assert run("inspect", recipe, "--plots", tmp_path / "out" / "assets").exit_code == 0
    assert run("card", tmp_path / "out").exit_code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    shown = re.findall(r"!\[.+\]\((assets/.+\.png)\)", card)
    assert shown
    assert all((tmp_path / "out" / path).is_file() for path in shown)


def test_emr_rescales_over_the_whole_model(tmp_path: Path) -> None:
    folder = models.zoo(models.bert, tmp_path)
    hf_tsv.merge(models.recipe(folder, "emr"), tmp_path / "out")
    base = read_all(folder / "base")
    deltas = {name: deltas_of(folder, name) for name in base}
    unified = {}
    for name, of_tasks in deltas.items():
        sign = torch.where(of_tasks.sum(0) > 0, 1.0, -1.0).double()
        unified[name] = sign * (of_tasks * sign).clamp(min=0).amax(0)
    hf_tsv.restore(tmp_path / "out", "t1", tmp_path / "restored")
    restored = read_all(tmp_path / "restored")
    masked = {name: torch.where(deltas[name][1] * unified[name] > 0, unified[name], 0.0) for name in base}
    factor = sum(d[1].abs().sum() for d in deltas.values()) / sum(m.abs().sum() for m in masked.values())
    for name in base:
        torch.testing.assert_close(
            restored[name].double(), base[name] + factor * masked[name], rtol=WEIGHTS, atol=WEIGHTS
        )


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

    folder = models.zoo(models.bert, tmp_path)
    hf_tsv.compress(models.recipe(folder), tmp_path / "out", "energy=1.0")
    model, want = hf_tsv.load_task(tmp_path / "out", "t2"), open_checkpoint(folder / "t2")
    for name, weight in model.state_dict().items():
        if name in want.names():
            torch.testing.assert_close(weight, want.read(name), rtol=WEIGHTS, atol=WEIGHTS)


def test_a_task_is_kept_in_one_way(tmp_path: Path) -> None:
    more = "overrides:\n  - {filter: attention, merge_method: tsv_c}\n"
    recipe = models.recipe(models.zoo(models.bert, tmp_path), "tall_mask", more=more)
    with pytest.raises(PlanError, match="tall_mask and tsv_c both keep what is a task's own"):
        hf_tsv.merge(recipe, tmp_path / "out")
