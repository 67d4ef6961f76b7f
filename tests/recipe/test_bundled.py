"""Every bundled recipe parses and plans, against headers made from its models' configurations."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from benchmarks.papers import copy_suite, suite_of
from hf_tsv.evaluation import load_suite
from hf_tsv.files.bundled import bundled
from hf_tsv.recipe import load_recipe
from tests.support.bundled import RECIPES, plan_of


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_bundled_recipe_plans(path: Path) -> None:
    planned = plan_of(path)
    assert len(planned.merged) > len(planned.steps) / 3
    assert not planned.parts
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", [path for path in RECIPES if "demo" not in path.stem], ids=lambda path: path.stem)
def test_a_bundled_recipe_has_its_suite(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert suite_of(path.stem, recipe).is_file()
    suite = load_suite(copy_suite(path.stem, recipe, tmp_path))
    scored, tasks = [task.name for task in suite.file.tasks], [model.name for model in recipe.models]
    not_scored = {"stsb", "coding"} & set(tasks)  # for want of a metric, as the suites say
    assert sorted(scored) == sorted(set(tasks) - not_scored)


def test_the_tasks_that_a_suite_includes_come_along(tmp_path: Path) -> None:
    name = "flan-t5-base-glue-tsv-m"
    suite = load_suite(copy_suite(name, load_recipe(bundled("recipes") / f"{name}.yaml"), tmp_path))
    for task in suite.file.tasks:
        written = YAML(typ="safe", pure=True).load((tmp_path / task.include / f"{task.name}.yaml").read_text("utf-8"))
        assert written["task"] == task.task
        assert written["dataset_name"] == task.name
