"""The command line: exit codes, stdout for results, stderr for talk."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import hf_tsv
from hf_tsv.cli import _told
from hf_tsv.errors import parse_bytes
from hf_tsv.merging.resources import operations_per_second
from hf_tsv.methods import METHODS
from tests.support import models
from tests.support.cli import run


def test_merge_prints_the_folder_and_talks_on_stderr(tmp_path: Path) -> None:
    recipe = models.recipe(models.zoo(models.bert, tmp_path))
    result = run("merge", recipe, tmp_path / "out")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path}/out\n")
    assert "Merged 3 models" in result.stderr


def test_merge_as_json(tmp_path: Path) -> None:
    recipe = models.recipe(models.zoo(models.bert, tmp_path))
    data = json.loads(run("merge", recipe, tmp_path / "out", "--json", "-q", "--svd", "sketch").stdout)
    assert data["out"] == str(tmp_path / "out")
    assert data["arithmetic"]["svd"] == "sketch"
    assert "svd: sketch" in (tmp_path / "out" / "recipe.lock.yaml").read_text()


def test_a_plan_estimates_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = models.recipe(models.zoo(models.bert, tmp_path))
    monkeypatch.setattr("hf_tsv.merging.resources.usable_cores", lambda: 2)
    seconds = []
    for rate, told in ((1e5, " min of merging"), (1e3, " h of merging")):
        monkeypatch.setattr("hf_tsv.merging.engine.operations_per_second", lambda rate=rate: rate)
        assert f"{told} on this machine's 2 cores" in " ".join(run("plan", path).stdout.split())
        seconds.append(json.loads(run("plan", path, "--json").stdout)["seconds"])
    assert seconds[1] == pytest.approx(100 * seconds[0], rel=0.01)


def test_a_core_does_some_operations() -> None:
    assert 1e7 < operations_per_second() < 1e13


def test_plan_writes_nothing(tmp_path: Path) -> None:
    recipe = models.recipe(models.zoo(models.bert, tmp_path))
    before = sorted(tmp_path.rglob("*"))
    result = run("plan", recipe)
    assert result.exit_code == 0
    assert "encoder.layer.*.output.dense.weight" in result.stdout
    assert "kept from the base" in result.stdout
    assert run("merge", recipe, tmp_path / "out", "--dry-run").stdout == result.stdout
    assert sorted(tmp_path.rglob("*")) == before
    assert len(json.loads(run("plan", recipe, "--json").stdout)["tensors"]) > 30


def test_all_mistakes_are_told_in_lines_and_nothing_is_written(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("merge_method: tsvm\nbase_modl: ./b\nmodels:\n  - model: ./a\n    wieght: 1\n")
    result = run("merge", recipe, tmp_path / "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) >= 3
    assert all(line.startswith(f"{recipe}:") for line in result.stderr.splitlines())
    assert not (tmp_path / "out").exists()


def test_a_missing_recipe_is_told(tmp_path: Path) -> None:
    result = run("plan", tmp_path / "none.yaml")
    assert result.exit_code == 1
    assert "none.yaml" in result.stderr


def test_usage_mistakes_have_their_own_code(tmp_path: Path) -> None:
    assert run("merge").exit_code == 2
    assert run("merge", "r.yaml", tmp_path / "o", "--max-memory", "lots").exit_code == 2
    assert run("merge", "r.yaml", tmp_path / "o", "--svd", "best").exit_code == 2


def test_too_little_memory_has_its_own_code(tmp_path: Path) -> None:
    recipe = models.recipe(models.zoo(models.bert, tmp_path))
    assert run("merge", recipe, tmp_path / "out", "--max-memory", "1KB").exit_code == 4


def test_methods_are_read_from_the_code() -> None:
    listed = run("methods").stdout
    assert all(name in listed for name in ("tsv_m", "ties", "task_arithmetic", "linear", "base"))
    told = run("methods", "ties").stdout
    assert "density: float = 0.2" in told
    assert "2306.01708" in told
    assert json.loads(run("methods", "--json").stdout)["ties"]["parameters"]["density"]["per_task"]
    assert "Known: " in run("methods", "nope").stderr


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_told_in_full(name: str) -> None:
    told = " ".join(run("methods", name).stdout.split())
    method = METHODS[name]
    assert " ".join(method.summary.split()) in told
    assert method.paper in told
    assert "Needs: " in told
    assert f"Cost: {method.cost}." in told
    data = json.loads(run("methods", name, "--json").stdout)[name]
    assert all(f"{p}: " in told and about["about"] in told for p, about in data["parameters"].items())


def test_the_range_of_a_parameter_is_told() -> None:
    told = run("methods", "della").stdout
    assert "density: float = 1.0, at least 0, at most 1, one for all tasks or one under each model." in told
    assert "scale: float = 1.0, or lambda." in told
    assert "exactly 1 fine-tuned model;" in run("methods", "slerp").stdout


def test_recipes_are_listed_and_printed() -> None:
    names = [line.split()[0] for line in run("recipes").stdout.splitlines()]
    assert names
    for name in names:
        assert "merge_method" in run("recipes", name).stdout
    assert run("recipes", "nope").exit_code == 1


@pytest.mark.parametrize(
    ("text", "nbytes"), [("4GB", 4 * 10**9), ("500M", 5 * 10**8), ("1.5kb", 1500), ("77", 77), ("1e9", 10**9)]
)
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


def test_help_needs_no_torch() -> None:
    code = "import sys; from hf_tsv.cli import app; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "number", "code", "file"),
    [
        ("merge", signal.SIGINT, 130, "model.safetensors"),
        ("merge", signal.SIGTERM, 143, "model.safetensors"),
        ("compress", signal.SIGINT, 130, "adapters/t0/adapter_model.safetensors"),
    ],
)
def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on(
    verb: str, number: int, code: int, file: str, tmp_path: Path
) -> None:
    recipe = models.recipe(models.zoo(models.bert_wide, tmp_path))
    command = [sys.executable, "-m", "hf_tsv", verb, str(recipe), str(tmp_path / "out"), "--workers", "1"]
    journal = tmp_path / ".out.hf_tsv" / "journal.jsonl"
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # tests in the background have it ignored
    )
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 1) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    kept = re.search(r"^Interrupted. (\d+) complete tensors are kept in .*the same command goes on", said, re.MULTILINE)
    assert kept, said
    assert int(kept[1]) == journal.read_bytes().count(b"\n") - 1
    assert not (tmp_path / "out").exists()
    assert subprocess.run(command, check=False).returncode == 0
    make = {"merge": hf_tsv.merge, "compress": hf_tsv.compress}[verb]
    make(recipe, tmp_path / "whole")
    assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize(("clock", "rate"), [(10.0, "12.0 steps/min"), (0.5, "4.0 steps/s")])
def test_progress_tells_rate_and_time_left(
    clock: float, rate: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(_told, "SECONDS_BETWEEN_LINES", clock / 2)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with _told.WorkProgress("Merging", quiet=False) as progress:
        progress.begin(40)
        for name in "ab":
            now[0] += clock / 2
            progress.advance(5, name)
    assert capsys.readouterr().err == f"Merging: 25%, {rate}, about {3 * clock:.0f} s left\n"


def test_progress_tells_how_fast_a_download_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with _told.WorkProgress("Merging", quiet=False) as progress:
        progress.begin(8e9)
        now[0] = 20.0
        progress.advance(2e9, "downloading")
    assert capsys.readouterr().err == "Merging: 25%, downloads 100 MB/s, about 60 s left\n"
