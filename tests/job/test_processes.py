"""Several processes on a shared folder give the bytes of one, and end with a message when one of them ends."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import hf_tsv
from hf_tsv.errors import OutputError
from hf_tsv.job import processes
from hf_tsv.job.processes import Process, Team, deal_out
from hf_tsv.merging.cost import step_work, total_work
from hf_tsv.merging.planner import make_plan
from hf_tsv.recipe import parse_recipe
from hf_tsv.staging.journal import names_in
from tests.support import models
from tests.support.headers import Headers


def llama3_8b() -> Headers:
    """meta-llama/Meta-Llama-3-8B."""
    layer = {
        "self_attn.q_proj": (4096, 4096), "self_attn.k_proj": (1024, 4096), "self_attn.v_proj": (1024, 4096),
        "self_attn.o_proj": (4096, 4096), "mlp.gate_proj": (14336, 4096), "mlp.up_proj": (14336, 4096),
        "mlp.down_proj": (4096, 14336), "input_layernorm": (4096,), "post_attention_layernorm": (4096,),
    }  # fmt: skip
    layers = {f"model.layers.{i}.{n}.weight": shape for i in range(32) for n, shape in layer.items()}
    ends = {"model.embed_tokens.weight": (128256, 4096), "lm_head.weight": (128256, 4096), "model.norm.weight": (4096,)}
    return Headers({name: (shape, "BF16") for name, shape in (layers | ends).items()})


@pytest.mark.parametrize("method", ["tsv_m", "ties"])
@pytest.mark.parametrize("count", [2, 4, 8])
def test_the_work_of_a_real_model_is_deal_out_evenly(count: int, method: str) -> None:
    text = f"merge_method: {method}\nbase_model: ./b\nmodels: [{{model: ./x}}, {{model: ./y}}, {{model: ./z}}]\n"
    plan = make_plan(parse_recipe(text), llama3_8b(), [llama3_8b() for _ in range(3)])
    shares = deal_out(plan.steps, partial(step_work, plan), count)
    loads = [total_work(plan, share) for share in shares]
    assert sorted(step.name for share in shares for step in share) == sorted(step.name for step in plan.steps)
    assert max(loads) / (sum(loads) / count) < 1.1


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo, and what one process makes of it."""
    folder = models.zoo(models.bert_wide, tmp_path_factory.mktemp("zoo"))
    hf_tsv.merge(models.recipe(folder), folder / "whole", options=hf_tsv.Options(max_shard_size="10MB"))
    return folder


def start(recipe: Path, out: Path, rank: int, count: int, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hf_tsv", "merge", str(recipe), str(out), "--max-shard-size", "10MB", *more]
    said = {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=os.environ | said, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ends(running: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each, in a time that shows that none hangs."""
    said = [process.communicate(timeout=120) for process in running]
    return [(process.returncode, *texts) for process, texts in zip(running, said, strict=True)]


def same_weights(one: Path, other: Path) -> bool:
    files = sorted(path.name for path in one.glob("model*"))
    return files == sorted(path.name for path in other.glob("model*")) and all(
        (one / file).read_bytes() == (other / file).read_bytes() for file in files
    )


def await_lines(journal: Path, running: list[subprocess.Popen[str]]) -> None:
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 1):
        assert all(process.poll() is None for process in running)
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2])
def test_several_processes_give_the_bytes_of_one(count: int, zoo: Path, tmp_path: Path) -> None:
    running = [start(zoo / "recipe.yaml", tmp_path / "out", rank, count) for rank in range(count)]
    ended = ends(running)
    assert [code for code, _, _ in ended] == [0] * count, ended
    assert [out for _, out, _ in ended] == [f"{tmp_path}/out\n", *[""] * (count - 1)]
    assert same_weights(tmp_path / "out", zoo / "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    one, several = (json.loads((f / "hf_tsv.json").read_text())["tensors"] for f in (zoo / "whole", tmp_path / "out"))
    assert {n: entry["sha256"] for n, entry in one.items()} == {n: entry["sha256"] for n, entry in several.items()}
    assert hf_tsv.verify(tmp_path / "out", sample=2).exit_code == 0


@pytest.mark.slow
def test_several_processes_compress_to_the_bytes_of_one(tmp_path: Path) -> None:
    recipe = models.recipe(models.zoo(models.bert, tmp_path), "tsv_c")
    hf_tsv.compress(recipe, tmp_path / "whole")
    ended = ends([start(recipe, tmp_path / "out", rank, 2) for rank in range(2)])
    assert [code for code, _, _ in ended] == [0, 0], ended
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.safetensors"))
    assert files
    for file in files:
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_run_and_the_same_command_goes_on(victim: int, zoo: Path, tmp_path: Path) -> None:
    recipe, out, staging = zoo / "recipe.yaml", tmp_path / "out", tmp_path / ".out.hf_tsv"
    running = [start(recipe, out, rank, 2, "--workers", "1") for rank in range(2)]
    await_lines(staging / "journal-1.jsonl", running)
    running[victim].kill()
    code, _, said = ends(running)[1 - victim]
    assert code == 1
    assert f"process {victim}" in said
    assert "has ended before its work was done. What is complete is kept" in said
    assert not out.exists()
    kept = sum(path.read_bytes().count(b"\n") - 1 for path in staging.glob("journal*.jsonl"))
    assert kept > 0
    ended = ends([start(recipe, out, rank, 2) for rank in range(2)])
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert same_weights(out, zoo / "whole")


@pytest.mark.slow
def test_one_process_goes_on_where_two_were_stopped(zoo: Path, tmp_path: Path) -> None:
    recipe, out, staging = zoo / "recipe.yaml", tmp_path / "out", tmp_path / ".out.hf_tsv"
    running = [start(recipe, out, rank, 2, "--workers", "1") for rank in range(2)]
    await_lines(staging / "journal-1.jsonl", running)
    for process in running:
        process.kill()
    ends(running)
    theirs = names_in(staging / "journal-1.jsonl")
    [(code, _, said)] = ends([start(recipe, out, 0, 1)])
    assert (code, bool(theirs)) == (0, True), said
    assert same_weights(out, zoo / "whole")


@pytest.mark.slow
def test_a_process_with_other_models_says_so_and_the_first_repeats_it(tmp_path: Path) -> None:
    folder = models.zoo(models.bert, tmp_path)
    one = models.recipe(folder)
    other = tmp_path / "other.yaml"
    other.write_text(one.read_text() + "parameters: {scale: 2}\n")
    ended = ends([start(one, tmp_path / "out", 0, 2), start(other, tmp_path / "out", 1, 2)])
    assert [code for code, _, _ in ended] == [1, 1]
    assert all("sees another recipe" in said for _, _, said in ended)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_one_process_finds_wrong_is_told_by_the_first(tmp_path: Path) -> None:
    """Every tensor of a task is NaN, so whoever comes first meets one; the other repeats it or knows who ended."""
    folder = models.zoo(models.bert, tmp_path)
    path = folder / "t1" / "model.safetensors"
    save_file({n: t * float("nan") for n, t in load_file(path).items()}, path, metadata={"format": "pt"})
    ended = ends([start(models.recipe(folder), tmp_path / "out", rank, 2) for rank in range(2)])
    assert [code for code, _, _ in ended] == [1, 1], ended
    assert "hold NaN or infinity" in ended[0][2]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_second_run_on_the_same_output_refuses(zoo: Path, tmp_path: Path) -> None:
    running = [start(zoo / "recipe.yaml", tmp_path / "out", rank, 2) for rank in range(2)]
    await_lines(tmp_path / ".out.hf_tsv" / "journal-1.jsonl", running)
    for process in running:  # a stopped process is alive, and keeps its lock
        process.send_signal(signal.SIGSTOP)
    second = ends([start(zoo / "recipe.yaml", tmp_path / "out", rank, 2) for rank in range(2)])
    for process in running:
        process.send_signal(signal.SIGCONT)
    assert [code for code, _, _ in second] == [1, 1]
    assert all("another run is writing" in said for _, _, said in second)
    assert [code for code, _, _ in ends(running)] == [0, 0]
    assert same_weights(tmp_path / "out", zoo / "whole")


@pytest.mark.parametrize("rank", [0, 1])
def test_who_does_not_come_is_named(rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MEETING_SECONDS", 0.2)
    with (
        pytest.raises(OutputError, match=f"process {1 - rank} of 2 has not come there"),
        Team(tmp_path, Process(rank, 2)),
    ):
        pass


@pytest.mark.parametrize("rank", ["2", "-1", "", "one"])
def test_a_contradicting_environment_is_told(rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(
        OutputError,
        match="RANK must be a number from 0 to WORLD_SIZE - 1, and .* Unset them to run a single process",
    ):
        Process.launched()


def test_what_one_process_makes_refuses_a_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(OutputError, match="Run it without a launcher"):
        hf_tsv.restore(tmp_path / "out", "t0", tmp_path / "restored")


@pytest.mark.slow
def test_accelerate_launches_it(tmp_path: Path) -> None:
    recipe = models.recipe(models.zoo(models.bert, tmp_path))
    hf_tsv.merge(recipe, tmp_path / "whole")
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2"]
    options = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [*launch, *options, "-m", "hf_tsv", "merge", str(recipe), str(tmp_path / "out"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["out"] == str(tmp_path / "out")
    assert same_weights(tmp_path / "out", tmp_path / "whole")
