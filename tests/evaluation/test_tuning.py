"""`hf-tsv tune`: what is found is what merging the tuned recipe gives."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from ruamel.yaml import YAML

import hf_tsv
from hf_tsv.errors import PlanError
from hf_tsv.evaluation import tunable, tuning
from hf_tsv.evaluation.options import Search
from hf_tsv.methods import METHODS
from tests.support import models
from tests.support.cli import run
from tests.support.suites import examples, suite, text_task, tokenizer

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
    hf_tsv.merge(recipe, folder / "out", options=hf_tsv.Options(overwrite=True))
    return float(hf_tsv.evaluate(folder / "out", folder / "suite.yaml").mean.relative["merged"])


def tuned(folder: Path, method: str, more: str = "", **options: Any) -> tuple[tuning.Tuned, Path]:
    recipe = models.recipe(folder, method, 2, more)
    found = hf_tsv.tune(recipe, folder / "suite.yaml", Search(scales=GRID, **options), results=folder / "scores.jsonl")
    path = folder / "tuned.yaml"
    path.write_text(found.text)
    return found, path


@pytest.mark.parametrize("method", tunable.scaled_methods())
@pytest.mark.parametrize("shape", [(12, 20), (30,)])
def test_a_scale_is_a_factor_on_all_that_is_merged(method: str, shape: tuple[int, ...]) -> None:
    merge, deltas = METHODS[method], torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    rest = {"rest_scale": 2.0} if "rest_scale" in merge.parameters else {}
    torch.testing.assert_close(merge(deltas, scale=2.0, **rest), 2 * merge(deltas))


def test_a_spectral_method_is_tuned(zoo: Path) -> None:
    found, path = tuned(zoo, "iso_c", by="all")
    assert relative(zoo, path) == pytest.approx(found.relative)
    assert tunable.REST in found.scales


@pytest.mark.slow
@pytest.mark.parametrize("by", ["all", *(pytest.param(by, marks=pytest.mark.slow) for by in ("kind", "type"))])
@pytest.mark.parametrize("method", ["tsv_m", "task_arithmetic", "ties"])
def test_the_tuned_recipe_merges_to_the_score_that_was_found(zoo: Path, method: str, by: Any) -> None:
    found, path = tuned(zoo, method, by=by)
    assert relative(zoo, path) == pytest.approx(found.relative)
    assert found.relative >= found.untuned == pytest.approx(relative(zoo, models.recipe(zoo, method, tasks=2)))
    assert set(found.scales.values()) <= set(GRID)
    assert (tunable.REST in found.scales) == (method == "tsv_m")


@pytest.mark.slow
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


OVERRIDES = """parameters: {lambda: 0.7, rest_scale: 0.9}
overrides:
  - {filter: LayerNorm, merge_method: base}
  - {filter: attention, merge_method: ties, parameters: {lambda: 0.3, density: 0.5}}
  - {filter: intermediate, merge_method: cart}
  - {filter: {kind: embedding}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("by", ["all", pytest.param("type", marks=pytest.mark.slow)])
def test_a_recipe_with_overrides_is_tuned(zoo: Path, by: Any) -> None:
    found, path = tuned(zoo, "tsv_m", by=by, more=OVERRIDES)
    steps = {step.name: step for step in hf_tsv.plan(path).merged}
    layer = "bert.encoder.layer.0"
    query, middle = f"{layer}.attention.self.query.weight", f"{layer}.intermediate.dense.weight"
    own = {"all": "attention: all", "type": f"attention: {query.replace('.0.', '.*.')}"}
    assert steps[query].parameters == {"scale": found.scales[own[by]], "density": (0.5, 0.5)}
    assert steps[middle].parameters == {"scale": 0.7, "rest_scale": 0.9}  # the whole recipe's, as it was
    assert steps["bert.embeddings.word_embeddings.weight"].method == "tsv_m"
    assert any(group.startswith("kind: embedding: ") for group in found.scales)
    assert {"rest", "kind: embedding: rest"} & set(found.scales) == {"rest"}
    assert relative(zoo, path) == pytest.approx(found.relative)


def restored(folder: Path, recipe: Path) -> dict[str, float]:
    """The scores of each task's own model, as `merge` and `eval` give them."""
    hf_tsv.merge(recipe, folder / "out", options=hf_tsv.Options(overwrite=True))
    tasks = hf_tsv.evaluate(folder / "out", folder / "suite.yaml", results=folder / "e.jsonl").tasks
    return {task: told.relative["restored"] for task, told in tasks.items()}


@pytest.mark.slow
@pytest.mark.parametrize("out_dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_every_masks_lambda_is_its_tasks_best(zoo: Path, out_dtype: str) -> None:
    grid, more = (0.1, 1.0, 4.0), f"out_dtype: {out_dtype}\n"
    found, path = tuned(zoo, "tall_mask", more=more, lambdas=grid)
    by_hand = {
        lam: restored(zoo, models.recipe(zoo, "tall_mask", 2, f"{more}parameters: {{mask_lambda: {lam}}}\n"))
        for lam in grid
    }
    assert found.scales == {}
    assert found.lambdas == {task: max(grid, key=lambda lam: by_hand[lam][task]) for task in ("t0", "t1")}
    assert restored(zoo, path) == {task: by_hand[lam][task] for task, lam in found.lambdas.items()}
    assert found.relative == sum(by_hand[lam][task] for task, lam in found.lambdas.items()) / 2
    assert len({tuple(scores.values()) for scores in by_hand.values()}) > 1  # or any choice would do


@pytest.mark.slow
def test_lambdas_are_chosen_beside_scales(zoo: Path) -> None:
    """Where a part of the model has masks, the scales of the others are chosen for the tasks' own models."""
    more = "parameters: {mask_lambda: 0.5}\noverrides:\n  - {filter: attention, merge_method: task_arithmetic}\n"
    found, path = tuned(zoo, "tall_mask", more=more, by="all", lambdas=(0.2, 3.0))
    assert set(found.scales) == {"attention: all"}
    assert found.relative == pytest.approx(sum(restored(zoo, path).values()) / 2)
    untuned = models.recipe(zoo, "tall_mask", 2, more)
    assert found.untuned == pytest.approx(sum(restored(zoo, untuned).values()) / 2)


def test_filters_of_longer_names_come_first(zoo: Path) -> None:
    recipe = hf_tsv.load_recipe(models.recipe(zoo, "tsv_m", tasks=2))
    groups = [tunable.Group(f"bert.encoder.layer.*.{name}.dense.weight") for name in ("output", "attention.output")]
    for values in product(GRID, GRID):
        text = tunable.chosen_text(recipe, tunable.Choice(dict(zip(groups, values, strict=True))))
        (zoo / "r.yaml").write_text(text)
        steps = {step.name: step.parameters["scale"] for step in hf_tsv.plan(zoo / "r.yaml").merged}
        found = (
            steps["bert.encoder.layer.1.output.dense.weight"],
            steps["bert.encoder.layer.1.attention.output.dense.weight"],
        )
        assert found == values


def test_what_cannot_be_tuned_is_told(zoo: Path) -> None:
    with pytest.raises(PlanError, match=r"linear: nothing to tune\. Methods that can be tuned: .*, tall_mask\."):
        tuned(zoo, "linear")
    for method, said in (("emr", "the masks of emr"), ("consensus_ta", "consensus_ta also takes the mask_lambda")):
        mixed = models.recipe(zoo, "tall_mask", 2, f"overrides:\n  - {{filter: dense, merge_method: {method}}}\n")
        with pytest.raises(PlanError, match=said):
            hf_tsv.tune(mixed, zoo / "suite.yaml")
    with pytest.raises(PlanError, match="no data to choose a mask's lambda on for t0. Add a task for each"):
        hf_tsv.tune(models.recipe(zoo, "tall_mask", tasks=2), suite(zoo, text_task("t1")))
    with pytest.raises(PlanError, match="tasks without a fine-tuned model to compare with: other"):
        hf_tsv.tune(models.recipe(zoo, tasks=2), suite(zoo, text_task("other")), results=zoo / "scores.jsonl")


@pytest.mark.slow
def test_the_command_writes_a_recipe(zoo: Path) -> None:
    recipe = models.recipe(zoo, "task_arithmetic", tasks=2)
    result = run("tune", recipe, zoo / "t.yaml", "--suite", zoo / "suite.yaml", "--by", "all", "--scales", "1,2", "-q")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.endswith(f"{zoo}/t.yaml\n")
    assert YAML(typ="safe", pure=True).load((zoo / "t.yaml").read_text())["parameters"]["scale"] in (1, 2)
    again = run("tune", recipe, zoo / "t.yaml", "--suite", zoo / "suite.yaml", "--by", "all", "--json", "-q")
    assert json.loads(again.stdout)["tried"] == 7
    for option in ("--scales", "--lambdas"):
        assert run("tune", recipe, zoo / "t.yaml", "--suite", zoo / "suite.yaml", option, "one").exit_code == 2
    recipe = models.recipe(zoo, "tall_mask", tasks=2)
    told = run("tune", recipe, zoo / "t.yaml", "--suite", zoo / "suite.yaml", "--lambdas", "0.3", "-q").stdout
    assert "lambda of t0  0.3\nlambda of t1  0.3\n" in told
    assert all(step.parameters["mask_lambda"] == (0.3, 0.3) for step in hf_tsv.plan(zoo / "t.yaml").merged)
