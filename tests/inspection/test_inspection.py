"""`hf-tsv inspect`: every number against a plain evaluation of its definition."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hf_tsv
from hf_tsv.inspection import Summary, measure, render_page
from hf_tsv.inspection.summary import Group
from hf_tsv.linalg import (
    Factors,
    interference_by_chance,
    interference_left,
    pairwise_interference,
    singular_task_interference,
    truncated_svd,
)
from tests.support import models
from tests.support.cli import run

MATRIX = "encoder.layer.1.output.dense.weight"
DIGITS = 1e-3  # the summary has four of them, so that its numbers are off by up to 5e-4


def deltas_of(folder: Path, name: str, tasks: int) -> list[Tensor]:
    """Deltas in float64 of one tensor, or with name "" of all of them as vectors."""
    base = load_file(folder / "base" / "model.safetensors")
    finetuned = [load_file(folder / f"t{t}" / "model.safetensors") for t in range(tasks)]
    if name:
        return [own[name].double() - base[name].double() for own in finetuned]
    keys = [key for key in base if base[key].is_floating_point()]
    return [torch.cat([(own[k].double() - base[k].double()).flatten() for k in keys]) for own in finetuned]


def by_definition(deltas: list[Tensor]) -> float:
    """Equation 6 of the paper, with the truncated factors of an SVD in float64."""
    return by_definition_at(max(1, min(deltas[0].shape) // len(deltas)), deltas)


def by_definition_at(k: int, deltas: list[Tensor]) -> float:
    svds = [torch.linalg.svd(delta, full_matrices=False) for delta in deltas]
    u, s = torch.cat([u[:, :k] for u, _, _ in svds], dim=1), torch.cat([s[:k] for _, s, _ in svds])
    v = torch.cat([vh[:k] for _, _, vh in svds]).T
    unit = torch.eye(len(s), dtype=torch.float64)
    return float(((u.T @ u - unit) @ torch.diag(s) @ (v.T @ v - unit)).abs().sum())


def cell(summary: Summary, name: str) -> Group:
    return next(c for c in summary.cells if c.group.replace("*", str(c.layer)) == name)


def rewrite(folder: Path, task: str, change: object) -> None:
    """Replace a fine-tune's tensors: change(name, base) each."""
    base = load_file(folder / "base" / "model.safetensors")
    save_file(
        {name: change(name, value).contiguous() for name, value in base.items()},  # type: ignore[operator]
        folder / task / "model.safetensors",
        metadata={"format": "pt"},
    )


def test_interference_is_the_papers(tmp_path: Path) -> None:
    summary = hf_tsv.inspect(models.recipe(models.zoo(models.bert, tmp_path), "linear"))
    found = cell(summary, MATRIX)
    assert found.interference.before == pytest.approx(by_definition(deltas_of(tmp_path, MATRIX, 3)), rel=DIGITS)
    assert found.interference.left == 0
    assert found.rank == 32 // 3
    layers = sum(layer.interference.before for layer in summary.layers)
    assert layers == pytest.approx(summary.total.interference.before, rel=DIGITS)


def test_orthogonal_tasks_do_not_interfere(tmp_path: Path) -> None:
    models.zoo(models.bert, tmp_path, tasks=2)
    generator = torch.Generator().manual_seed(0)
    for t in range(2):

        def change(name: str, value: Tensor, t: int = t) -> Tensor:
            if name != MATRIX:
                return value
            own = torch.zeros(value.shape)
            own[16 * t : 16 * t + 16, 24 * t : 24 * t + 24] = torch.randn(16, 24, generator=generator)
            return value + own

        rewrite(tmp_path, f"t{t}", change)
    summary = hf_tsv.inspect(models.recipe(tmp_path, tasks=2))
    assert cell(summary, MATRIX).interference.before < 1e-3
    assert summary.total.cosines[0][1] == pytest.approx(0, abs=1e-6)
    assert "nothing to undo" in " ".join(summary.advice) or "little to undo" in " ".join(summary.advice)


def test_random_tasks_interfere_as_by_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = [truncated_svd(torch.randn(160, 96, generator=generator) * (1 + t), 24) for t in range(4)]
    chance, pairs = interference_by_chance(factors)
    # What four such tasks scatter about the mean of all, and a pair of them; other roundings don't show here.
    assert singular_task_interference(factors) == pytest.approx(chance, rel=0.03)
    off = ~torch.eye(4, dtype=torch.bool)
    torch.testing.assert_close(pairwise_interference(factors)[off], pairs[off], rtol=0.1, atol=0)
    assert not pairs.diagonal().any()


def test_what_orthogonalisation_leaves() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (truncated_svd(torch.randn(40, 30, generator=generator), 6) for _ in range(2))
    assert interference_left([a, b]) < 1e-4
    same = [a, a]  # both halves of the polar factor are u / sqrt(2): u^T u is 1/2 in every block
    half = -0.5 * torch.eye(6, dtype=torch.float64)
    defect = torch.cat([torch.cat([half, -half], 1), torch.cat([-half, half], 1)])
    expected = float(((defect * torch.cat([a.s, a.s])) @ defect).abs().sum())
    assert interference_left(same) == pytest.approx(expected, rel=1e-4)
    nothing = Factors(torch.zeros(40, 0), torch.zeros(0), torch.zeros(0, 30))
    assert interference_left([nothing, nothing]) == 0


def test_norms_cosines_and_signs_are_those_of_the_whole_task_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = models.recipe(models.zoo(models.bert, tmp_path))
    monkeypatch.setattr(measure, "PIECE", 200)  # tensors in many pieces
    total = hf_tsv.inspect(recipe).total
    vectors = deltas_of(tmp_path, "", 3)
    for i, a in enumerate(vectors):
        assert total.norms[i] == pytest.approx(float(a.norm()), rel=DIGITS)
        for j, b in enumerate(vectors):
            assert total.cosines[i][j] == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=DIGITS, abs=1e-4)
            share = float((a * b < 0).sum() / ((a != 0) & (b != 0)).sum())
            assert total.opposed[i][j] == pytest.approx(share, abs=1e-3)


def test_whose_the_changed_weights_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by the definition, and as consensus_ta counts them while it merges."""
    recipe = models.recipe(models.zoo(models.bert, tmp_path), "consensus_ta")
    monkeypatch.setattr(measure, "PIECE", 200)  # tensors in many pieces
    summary = hf_tsv.inspect(recipe)
    for found, deltas in (
        (summary.total, deltas_of(tmp_path, "", 3)),
        (cell(summary, MATRIX), deltas_of(tmp_path, MATRIX, 3)),
    ):
        used = sum((delta.abs() > 0.4 * (sum(deltas) - delta).abs()).int() for delta in deltas)
        changed = sum(delta != 0 for delta in deltas) > 0
        for whose, count in (("catastrophic", used == 0), ("selfish", used == 1), ("shared", used > 1)):
            assert getattr(found.weights, whose) == pytest.approx(float(count[changed].double().mean()), abs=1e-3)
    noted = [
        entry.notes["used_by"]
        for entry in hf_tsv.merge(recipe, tmp_path / "out").tensors.values()
        if "used_by" in entry.notes
    ]
    used_by = [sum(_flat(entry)[c] for entry in noted) for c in range(4)]
    for whose, count in (("catastrophic", used_by[0]), ("selfish", used_by[1]), ("shared", sum(used_by[2:]))):
        assert getattr(summary.total.weights, whose) == pytest.approx(count / sum(used_by), abs=1e-3)


def _flat(used_by: list) -> list[int]:
    """Of a tensor that was merged in pieces, their sum."""
    return [sum(piece[c] for piece in used_by) for c in range(4)] if isinstance(used_by[0], list) else used_by


@pytest.mark.parametrize(
    ("factors", "is_alone", "said"),
    [
        ((1, 1, 1), True, "tall_mask keeps it"),  # each changes weights of its own
        ((1, 1, 1), False, "has 0% of them to drop"),
        ((1, 1, 1, 1, 1), False, "consensus_ta would drop too much"),  # four others outweigh each
        ((1, 1, 1, 1, 1, 1, -1, -1), False, "k: 1 drops what no task uses"),
    ],
)
def test_whose_the_weights_are_is_told(tmp_path: Path, factors: tuple[int, ...], is_alone: bool, said: str) -> None:
    models.zoo(models.bert, tmp_path, tasks=len(factors))
    for t, factor in enumerate(factors):

        def change(name: str, value: Tensor, t: int = t, factor: int = factor) -> Tensor:
            delta = factor * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
            if is_alone:
                delta[torch.arange(len(value)) % 3 != t] = 0
            return value + delta

        rewrite(tmp_path, f"t{t}", change)
    told = hf_tsv.inspect(models.recipe(tmp_path, tasks=len(factors)))
    (sentence,) = [line for line in told.advice if "(selfish)" in line]
    assert said in sentence


def test_spectra_and_energy(tmp_path: Path) -> None:
    summary = hf_tsv.inspect(models.recipe(models.zoo(models.bert, tmp_path)))
    s = torch.linalg.svdvals(deltas_of(tmp_path, MATRIX, 3)[1])
    found = cell(summary, MATRIX)
    at = [rank - 1 for rank in found.spectra.ranks]
    assert found.spectra.values[1] == pytest.approx(s[at].tolist(), rel=DIGITS)
    kept = s.square().cumsum(0) / s.square().sum()
    assert found.spectra.kept[1] == pytest.approx(kept[at].tolist(), rel=DIGITS)
    assert found.energy[1] == pytest.approx(float(kept[found.rank - 1]), rel=DIGITS)


@pytest.mark.slow
def test_workers_and_memory_change_nothing(tmp_path: Path) -> None:
    recipe = models.recipe(models.zoo(models.mixtral, tmp_path))
    one = hf_tsv.inspect(recipe, limits=hf_tsv.Limits(workers=1))
    assert one == hf_tsv.inspect(recipe, limits=hf_tsv.Limits(workers=3, max_memory=10**9))
    assert any("experts" in group.group for group in one.groups if group.interference)


def test_duplicates_idle_low_rank_and_long_tasks_are_told(tmp_path: Path) -> None:
    models.zoo(models.bert, tmp_path, tasks=5)
    low = torch.randn(32, 2, generator=torch.Generator().manual_seed(1))
    fine = load_file(tmp_path / "t0" / "model.safetensors")
    rewrite(tmp_path, "t1", lambda name, value: value + 1.01 * (fine[name] - value))
    rewrite(tmp_path, "t2", lambda name, value: value)
    rewrite(tmp_path, "t3", lambda name, v: v + low @ low.T if v.shape == (32, 32) else v)
    told = "\n".join(hf_tsv.inspect(models.recipe(tmp_path, tasks=5)).advice)
    assert "'t0' and 't1' are nearly the same change (cosine 1.000)" in told
    assert "Task 't2' changes none" in told
    assert "Task 't3' is of low rank" in told
    assert "none more than 2." in told
    assert "Task 't3' dominates" in told


def test_a_bf16_checkpoints_rank_is_that_above_its_rounding(tmp_path: Path) -> None:
    models.zoo(models.bert, tmp_path, tasks=2, dtype=torch.bfloat16)
    low = 0.5 * torch.randn(32, 2, generator=torch.Generator().manual_seed(1))
    for task in ("t0", "t1"):
        rewrite(tmp_path, task, lambda name, v: (v + low @ low.T).bfloat16() if v.shape == (32, 32) else v)
    summary = hf_tsv.inspect(models.recipe(tmp_path, tasks=2))
    assert summary.per_task[0].rank <= 4 / 32  # in the median; every matrix has rank 32 as it is stored


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [1, 2, pytest.param(20, marks=pytest.mark.slow)])
def test_any_number_of_tasks(tmp_path: Path, tasks: int) -> None:
    recipe = models.recipe(models.zoo(models.bert, tmp_path, tasks=tasks), tasks=tasks)
    result = run("inspect", recipe, "--html", tmp_path / "page.html", "--plots", tmp_path / "plots", "-q")
    assert result.exit_code == 0, result.stderr
    assert "Advice" in result.stdout
    assert (tmp_path / "page.html").read_text().count("<tr><th>t") >= tasks
    for name in ("interference", "pairs", "spectra", "norms"):
        assert (tmp_path / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_the_summary(tmp_path: Path) -> None:
    recipe = models.recipe(models.zoo(models.bert, tmp_path))
    result = run("inspect", recipe, "--json", "-q")
    assert json.loads(result.stdout) == hf_tsv.inspect(recipe).plain()


def test_stacks_of_layers_go_by_what_tells_them_apart(tmp_path: Path) -> None:
    summary = hf_tsv.inspect(models.recipe(models.zoo(models.clip, tmp_path, tasks=2), tasks=2))
    labels = {group.label for group in summary.groups}
    assert {"text_model.mlp.fc1", "vision_model.mlp.fc1", "text_projection"} <= labels
    assert {(layer.stack, layer.layer) for layer in summary.layers} == {
        *(("text_model", 0), ("text_model", 1), ("vision_model", 0), ("vision_model", 1), ("", None))
    }


def test_layers_go_by_depth_not_by_name(tmp_path: Path) -> None:
    for seed, model in enumerate(("base", "t0")):
        (tmp_path / model).mkdir()
        draw = torch.Generator().manual_seed(seed)
        names = [f"{stack}.layers.{i}.w.weight" for stack in ("b", "a") for i in range(12)]
        tensors = {name: torch.randn(4, 4, generator=draw) for name in names} | {"z": torch.randn(3, generator=draw)}
        save_file(tensors, tmp_path / model / "model.safetensors", metadata={"format": "pt"})
    layers = hf_tsv.inspect(models.recipe(tmp_path, tasks=1)).layers
    assert [layer.layer for layer in layers] == [*range(12), *range(12), None]  # the file has a.layers.10 before .2


@pytest.mark.parametrize("tasks", [2, 4])
def test_a_long_task_is_measured_against_the_others(tmp_path: Path, tasks: int) -> None:
    models.zoo(models.bert, tmp_path, tasks=tasks)
    fine = load_file(tmp_path / "t0" / "model.safetensors")
    rewrite(tmp_path, "t1", lambda name, v: v + 20 * (fine[name] - v) if v.is_floating_point() else v)
    summary = hf_tsv.inspect(models.recipe(tmp_path, tasks=tasks))
    norms = [task.norm for task in summary.per_task]
    others = sorted(norms)[(tasks - 1) // 2]
    (told,) = (line for line in summary.advice if "dominates" in line)
    assert told.startswith("Task 't1' dominates")
    assert told.endswith(f"A weight of {others / norms[1]:.2g} evens that out.")


def test_opposite_tasks_are_told(tmp_path: Path) -> None:
    models.zoo(models.bert, tmp_path, tasks=2)
    fine = load_file(tmp_path / "t0" / "model.safetensors")
    rewrite(tmp_path, "t1", lambda name, value: 2 * value - fine[name])
    told = hf_tsv.inspect(models.recipe(tmp_path, tasks=2)).advice
    assert any(line.startswith("'t0' and 't1' undo each other (cosine -1.000)") for line in told)


def test_names_are_never_markup_or_script(tmp_path: Path) -> None:
    summary = hf_tsv.inspect(models.recipe(models.zoo(models.bert, tmp_path)))
    evil = "</script><img src=x onerror=alert(1)><!--"
    text = json.dumps(summary.plain()).replace('"t1"', json.dumps(evil)).replace("attention.self", f"a{evil}")
    spoiled = json.loads(text)
    spoiled["base"] = evil
    spoiled["advice"].append(f"'{evil}'")
    page = render_page(Summary.model_validate(spoiled))
    assert "<img" not in page
    assert page.count("</script>") == page.count("<script") == 2
    assert json.loads(page.split('type="application/json">')[1].split("</script>")[0])["base"] == evil


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    page = render_page(hf_tsv.inspect(models.recipe(models.zoo(models.bert, tmp_path))))
    assert "default-src 'none'" in page
    assert not any(word in page for word in ("src=", "href=", "@import", "url(", "fetch("))


def test_pictures_without_matplotlib_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    recipe = models.recipe(models.zoo(models.bert, tmp_path))
    result = run("inspect", recipe, "--plots", tmp_path / "plots", "-q")
    assert result.exit_code == 1
    assert "hf-tsv[plots]" in result.stderr


def test_nan_is_told_with_its_tensor_and_task(tmp_path: Path) -> None:
    models.zoo(models.bert, tmp_path)
    rewrite(tmp_path, "t1", lambda name, v: v * float("nan") if name == MATRIX else v)
    result = run("inspect", models.recipe(tmp_path), "-q")
    assert result.exit_code == 1
    assert MATRIX in result.stderr
    assert "'t1'" in result.stderr


def test_too_little_memory_is_told(tmp_path: Path) -> None:
    recipe = models.recipe(models.zoo(models.bert, tmp_path), "linear")
    assert run("inspect", recipe, "--max-memory", "1KB").exit_code == 4


def test_adapters_are_inspected_from_their_factors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")

    recipe = models.recipe(models.zoo(models.bert, tmp_path, tasks=2), tasks=2)
    hf_tsv.compress(recipe, tmp_path / "out", "rank=3")
    of_adapters = tmp_path / "adapters.yaml"
    entries = "".join(f"  - model: {tmp_path}/base+{tmp_path}/out/adapters/t{t}\n" for t in range(2))
    of_adapters.write_text(f"merge_method: tsv_m\nbase_model: {tmp_path}/base\nmodels:\n{entries}")
    monkeypatch.setattr(measure, "PIECE", 500)
    summary = hf_tsv.inspect(of_adapters)
    found = cell(summary, MATRIX)
    leading = [torch.linalg.svd(delta, full_matrices=False) for delta in deltas_of(tmp_path, MATRIX, 2)]
    kept = [(u[:, :3] * s[:3]) @ vh[:3] for u, s, vh in leading]
    assert found.norms == pytest.approx([float(delta.norm()) for delta in kept], rel=DIGITS)
    assert found.interference.before == pytest.approx(by_definition_at(3, kept), rel=1e-2)
    assert found.energy == [1, 1]
    assert summary.per_task[0].rank == 3 / 32
