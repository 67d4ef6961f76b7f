"""`hf-tsv tune`: what is found is what merging the tuned recipe gives."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
import yaml

from hf_tsv import api, tuning
from hf_tsv.errors import PlanError
from hf_tsv.methods import METHODS

from . import models
from .test_evaluation import examples, run, suite, text_task, tokenizer

GRID = (0.5, 1.0, 2.0)


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    tf.utils.logging.disable_progress_bar()
    for name, seed in (("base", 9), ("t0", 1), ("t1", 2)):
        torch.manual_seed(0)
        models.save(models.perturbed(models.bert_classifier(), seed, 0.3), tmp_path / name)
    tokenizer(tmp_path / "base")
    examples(tmp_path, 3)
    suite(tmp_path, text_task("t0"), text_task("t1"))
    return tmp_path


def relative(folder: Path, recipe: Path) -> float:
    """The score of a recipe's merge, as `merge` and `eval` give it."""
    api.merge(recipe, folder / "out", overwrite=True)
    return float(api.evaluate(folder / "out", folder / "suite.yaml")["mean"]["relative"]["merged"])


def tuned(folder: Path, method: str, **options: Any) -> tuple[tuning.Tuned, Path]:
    recipe = models.recipe(folder, method, tasks=2)
    found = api.tune(recipe, folder / "suite.yaml", grid=GRID, results=folder / "scores.jsonl", **options)
    path = folder / "tuned.yaml"
    path.write_text(found.text)
    return found, path


@pytest.mark.parametrize("method", tuning.SCALED)
@pytest.mark.parametrize("shape", [(12, 20), (30,)])
def test_a_scale_is_a_factor_on_all_that_is_merged(method: str, shape: tuple[int, ...]) -> None:
    merge, deltas = METHODS[method], torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    rest = {"rest_scale": 2.0} if "rest_scale" in merge.parameters else {}
    torch.testing.assert_close(merge(deltas, scale=2.0, **rest), 2 * merge(deltas))


def test_a_spectral_method_is_tuned(zoo: Path) -> None:
    found, path = tuned(zoo, "iso_c", by="all")
    assert relative(zoo, path) == pytest.approx(found.relative)
    assert tuning.REST in found.scales


@pytest.mark.parametrize("by", ["all", "kind", "type"])
@pytest.mark.parametrize("method", ["tsv_m", "task_arithmetic", "ties"])
def test_the_tuned_recipe_merges_to_the_score_that_was_found(zoo: Path, method: str, by: Any) -> None:
    found, path = tuned(zoo, method, by=by)
    assert relative(zoo, path) == pytest.approx(found.relative)
    assert found.relative >= found.untuned == pytest.approx(relative(zoo, models.recipe(zoo, method, tasks=2)))
    assert set(found.scales.values()) <= set(GRID)
    assert (tuning.REST in found.scales) == (method == "tsv_m")


def test_one_scale_is_the_best_of_the_grid(zoo: Path) -> None:
    found, _ = tuned(zoo, "task_arithmetic", by="all")
    scores = [
        relative(zoo, models.recipe(zoo, "task_arithmetic", tasks=2, more=f"parameters: {{scale: {scale}}}\n"))
        for scale in GRID
    ]
    assert found.relative == pytest.approx(max(scores))


def test_matrices_are_decomposed_once(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    real = tuning.run
    monkeypatch.setattr(tuning, "run", lambda *given: (runs.append(1), real(*given)))
    found, _ = tuned(zoo, "tsv_m", by="kind")
    assert len(runs) == 1
    assert found.tried > len(GRID)


def test_a_search_that_was_stopped_goes_on(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = tuned(zoo, "tsv_m", by="kind")
    monkeypatch.setattr("hf_tsv.evaluation.run.load_model", None)  # every score is known
    assert tuned(zoo, "tsv_m", by="kind")[0] == first


def test_filters_of_longer_names_come_first(zoo: Path) -> None:
    recipe = api._loaded(models.recipe(zoo, "tsv_m", tasks=2))
    groups = ("bert.encoder.layer.*.output.dense.weight", "bert.encoder.layer.*.attention.output.dense.weight")
    for values in product(GRID, GRID):
        text = tuning._tuned_text(recipe, dict(zip(groups, values, strict=True)))
        (zoo / "r.yaml").write_text(text)
        steps = {step.name: step.parameters["scale"] for step in api.plan(zoo / "r.yaml").merged}
        found = (
            steps["bert.encoder.layer.1.output.dense.weight"],
            steps["bert.encoder.layer.1.attention.output.dense.weight"],
        )
        assert found == values


def test_what_cannot_be_tuned_is_told(zoo: Path) -> None:
    with pytest.raises(PlanError, match="linear has no scale to tune, expected one of "):
        tuned(zoo, "linear")
    overridden = models.recipe(zoo, more="overrides:\n  - {filter: dense, merge_method: linear}\n", tasks=2)
    with pytest.raises(PlanError, match="overrides can't be tuned"):
        api.tune(overridden, zoo / "suite.yaml")
    with pytest.raises(PlanError, match="no fine-tuned model to compare with, expected one for other"):
        api.tune(models.recipe(zoo, tasks=2), suite(zoo, text_task("other")), results=zoo / "scores.jsonl")


def test_the_command_writes_a_recipe(zoo: Path) -> None:
    recipe = models.recipe(zoo, "task_arithmetic", tasks=2)
    result = run("tune", recipe, zoo / "t.yaml", "--suite", zoo / "suite.yaml", "--by", "all", "--scales", "1,2", "-q")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.endswith(f"{zoo}/t.yaml\n")
    assert yaml.safe_load((zoo / "t.yaml").read_text())["parameters"]["scale"] in (1, 2)
    again = run("tune", recipe, zoo / "t.yaml", "--suite", zoo / "suite.yaml", "--by", "all", "--json", "-q")
    assert json.loads(again.stdout)["tried"] == 7
    assert run("tune", recipe, zoo / "t.yaml", "--suite", zoo / "suite.yaml", "--scales", "one").exit_code == 2
