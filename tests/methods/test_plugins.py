"""Merge methods that other packages bring: the example of CONTRIBUTING.md, installed, and packages that don't work."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_tsv.methods import METHODS, Deltas, Inputs, Mask, TaskDelta, merge_method
from tests.support import models

ROOT = Path(__file__).parents[2]
RUN = """
import sys
import hf_tsv
recipe, out = sys.argv[1:]
hf_tsv.merge(recipe, out, hf_tsv.Options(workers=1))
for task in ("t0", "t1"):
    hf_tsv.restore(out, task, f"{out}-{task}")
"""


def example(language: str) -> str:
    """The block in that language of CONTRIBUTING's section on plug-ins."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.split("### In a package of your own", 1)[1].split("\n## ", 1)[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found
    return found[1]


def install(site: Path, package: str, source: str) -> None:
    """What pip makes of a package of one module with an entry point of its name."""
    module = package.replace("-", "_")
    about = site / f"{module}-1.0.dist-info"
    about.mkdir(parents=True)
    (site / f"{module}.py").write_text(source)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[hf_tsv.methods]\n{module} = {module}\n")


def python(site: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from hf_tsv.checkpoints.folder import open_checkpoint

    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.read(name) for name in checkpoint.names()}


def test_a_mask_method_from_another_package_merges_masks_and_restores(tmp_path: Path) -> None:
    """One file, and nothing of this package knows its name."""
    assert 'share_mask = "share_mask"' in example("toml")
    assert len(example("python").splitlines()) <= 30
    install(tmp_path / "site", "share-mask", example("python"))
    folder = models.zoo(models.bert, tmp_path, tasks=2)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"merge_method: share_mask\nbase_model: {folder}/base\nmodels:\n"
        f"  - {{model: {folder}/t0, parameters: {{share: 0.9, weight: 0.75}}}}\n  - {{model: {folder}/t1}}\n"
    )
    done = python(tmp_path / "site", "-c", RUN, recipe, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    base, merged = weights(folder / "base"), weights(tmp_path / "out")
    for task, share, weight in (("t0", 0.9, 0.75), ("t1", 0.5, 1.0)):
        tuned, restored = weights(folder / task), weights(tmp_path / f"out-{task}")
        kept = 0
        for name, theta in base.items():
            own, change = weight * (tuned[name] - theta), merged[name] - theta
            mask = own.abs() > share * change.abs()
            assert torch.equal(restored[name], torch.where(mask, merged[name], theta)), name
            kept += int(mask.sum())
        record = json.loads((tmp_path / "out" / "hf_tsv.json").read_text())
        share_of_all = kept / sum(theta.numel() for theta in base.values())
        assert record["masks"]["tasks"][task]["own"] == pytest.approx(share_of_all)
        assert 0.1 < share_of_all < 0.9


BROKEN = """
from hf_tsv.methods import METHODS, merge_method

@merge_method("half_done", paper="")
def half_done(deltas):
    return deltas.zeros()

import a_module_that_is_not_installed
"""
TWICE = """
from hf_tsv.methods import merge_method

@merge_method("ties", paper="")
def ties(deltas):
    return deltas.zeros()
"""


@pytest.mark.slow
def test_a_package_that_does_not_work_is_named_and_the_others_are_there(tmp_path: Path) -> None:
    install(tmp_path, "broken-methods", BROKEN)
    install(tmp_path, "share-mask", example("python"))
    install(tmp_path, "twice-methods", TWICE)
    listed = python(tmp_path, "-m", "hf_tsv", "methods", "--json")
    assert listed.returncode == 0, listed.stderr
    found = json.loads(listed.stdout)
    assert found.keys() == METHODS.keys() | {"share_mask"}
    assert found["ties"]["paper"] == METHODS["ties"].paper
    broken, twice = listed.stderr.splitlines()
    assert broken == (
        "plug-in broken-methods: its merge methods (broken_methods) are left out: ModuleNotFoundError: No module named"
        " 'a_module_that_is_not_installed'. Update or uninstall the package"
    )
    assert twice == (
        "plug-in twice-methods: its merge methods (twice_methods) are left out: ValueError: merge method 'ties' is"
        " registered twice. Update or uninstall the package"
    )


def test_a_mask_has_each_tasks_own_parameters() -> None:
    method = METHODS["tall_mask"]
    delta, merged = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 4.0])
    task = TaskDelta(1, delta, weight=2.0)
    assert method.mask_of(task, merged, {"mask_lambda": (0.0, 4.0)}).tolist() == [True, False]
    assert method.mask_of(task, merged, {"mask_lambda": 2.0}).tolist() == [True, True]
    assert method.mask_of(task, merged, {}).tolist() == [True, True]
    assert task.weighted.tolist() == [2.0, 6.0]
    assert delta.tolist() == [1.0, 3.0]
    with pytest.raises(TypeError, match="ties keeps no masks"):
        METHODS["ties"].mask_of(task, merged, {})


def test_a_mask_that_rescales_is_not_tuned() -> None:
    emr = METHODS["emr"].mask
    assert emr
    with pytest.raises(ValueError, match="a mask that rescales can't be tuned"):
        Mask(build=emr.build, rescaler=emr.rescaler, tuned="mask_lambda")


def test_what_a_method_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_tsv.methods._registry.METHODS", registry := type(METHODS)())
    registry._has_plugins = True

    @merge_method("mine", paper="", inputs=Inputs(min_tasks=2, base="model"), keeps="adapter")
    def mine(deltas: Deltas, *, scale: float = 1.0) -> torch.Tensor:
        return deltas.zeros()

    assert dict(registry) == {"mine": mine}
    assert (mine.keeps, mine.mask, mine.min_tasks, mine.max_tasks) == ("adapter", None, 2, None)
    assert (mine.copies_base, mine.is_surveyed, mine.aliases) == (False, False, {"lambda": "scale"})
    assert not mine.is_scaled  # without the mark `Scale` nobody knows what a `scale` does
    assert not mine.elementwise({})
    with pytest.raises(ValueError, match="'mine' is registered twice"):
        merge_method("mine", paper="")(mine.fn)


def test_the_methods_policies() -> None:
    """What decided by name, when names were compared, written down once more."""
    by_what = {what: {name for name, m in METHODS.items() if m.keeps == what} for what in ("adapter", "mask")}
    assert by_what == {"adapter": {"tsv_c"}, "mask": {"emr", "magnitude_mask", "tall_mask"}}
    assert {name for name, m in METHODS.items() if m.copies_base} == {"base"}
    assert {name for name, m in METHODS.items() if m.inputs.weights == "shares"} == {"linear", "karcher", "nuslerp"}
    assert {name for name, m in METHODS.items() if "scale" in m.parameters and not m.is_scaled} == {"cart"}
    assert {name for name, m in METHODS.items() if m.mask and m.mask.tuned} == {"tall_mask"}
    assert {name for name, m in METHODS.items() if m.matrices and m.matrices.divides_rank} == {"tsv_m"}
