"""What goes wrong under a run, provoked: it is told, and nothing that is no good is left."""

import itertools
import json
import shutil
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import hf_tsv
from hf_tsv import linalg
from hf_tsv.cli import _told
from hf_tsv.errors import CheckpointError, MethodError, OutputError
from hf_tsv.kept import factors, spectra
from hf_tsv.linalg import _exact, _lapack
from hf_tsv.merging import engine
from hf_tsv.merging.plan import Plan, Step
from tests.support import models
from tests.support.cli import run
from tests.support.tolerances import polar_amplification, rounding

MERGE_STEP = engine.merge_step


def after(count: int, do: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have something happen to the world before tensor number `count`."""
    begun: list[str] = []

    def merge_step(plan: Plan, step: Step, *more: Any) -> Any:
        begun.append(step.name)
        if len(begun) == count:
            do()
        return MERGE_STEP(plan, step, *more)

    monkeypatch.setattr(engine, "merge_step", merge_step)


def shrink(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def rewrite(path: Path) -> None:
    save_file({n: t + 1 for n, t in load_file(path).items()}, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (shrink, "became shorter while it was read"),
        (rewrite, "model 't1': changed while it was read"),
        (Path.unlink, "can't be read: No such file"),
    ],
)
def test_a_source_that_changes_under_the_run_is_told(
    harm: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = models.zoo(models.bert, tmp_path)
    recipe, source = models.recipe(folder), folder / "t1" / "model.safetensors"
    shutil.copy(source, tmp_path / "kept")
    after(5, lambda: harm(source), monkeypatch)
    with pytest.raises(CheckpointError, match=said):
        hf_tsv.merge(recipe, tmp_path / "out", options=hf_tsv.Options(workers=1))
    assert not list(tmp_path.glob("*out*"))
    shutil.copy(tmp_path / "kept", source)
    monkeypatch.setattr(engine, "merge_step", MERGE_STEP)
    hf_tsv.merge(recipe, tmp_path / "out")
    assert hf_tsv.verify(tmp_path / "out", sample=None).exit_code == 0


@pytest.mark.parametrize(("room", "call"), [(spectra, "singular_values"), (factors, "truncated_svd")])
@pytest.mark.parametrize(
    ("harm", "said"),
    [(shrink, "became shorter while it was read"), (rewrite, "model 't1': changed while it was read")],
)
def test_a_source_that_changes_under_a_compression_is_told(
    room: ModuleType, call: str, harm: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = models.zoo(models.bert, tmp_path, tasks=2)
    recipe, calls, original = models.recipe(folder, tasks=2), itertools.count(), getattr(room, call)

    def harmed(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 5:
            harm(folder / "t1" / "model.safetensors")
        return original(*arguments, **options)

    monkeypatch.setattr(room, call, harmed)
    with pytest.raises(CheckpointError, match=said):
        hf_tsv.compress(recipe, tmp_path / "out", "rank=2", options=hf_tsv.Options(workers=1))
    assert not list(tmp_path.glob("*out*"))


def test_a_place_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    recipe = models.recipe(models.zoo(models.bert, tmp_path))
    (tmp_path / "file").write_text("")
    for out in (Path("/proc/self/out"), tmp_path / "file" / "out"):
        with pytest.raises(OutputError, match="can't be written"):
            hf_tsv.merge(recipe, out)


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("who", ["base", "t1"])
def test_what_is_no_number_is_told_with_its_tensor_and_task(who: str, number: float, tmp_path: Path) -> None:
    folder = models.zoo(models.bert, tmp_path)
    path = folder / who / "model.safetensors"
    state = load_file(path)
    state["pooler.dense.weight"][3, 3] = number
    save_file(state, path, metadata={"format": "pt"})
    at_fault = r"task 't1'" if who == "t1" else str(folder / "base")
    with pytest.raises(MethodError, match=rf"^pooler.dense.weight .*the weights of {at_fault} hold NaN or infinity"):
        hf_tsv.merge(models.recipe(folder), tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("method", ["tsv_m", "ties", "linear", "task_arithmetic", "iso_c"])
def test_denormal_changes_are_merged_as_others(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    changes = [torch.randn(24, 16, generator=generator) for _ in range(2)]
    merged = {
        size: hf_tsv.merge_state_dicts(
            {"w": torch.zeros(24, 16)}, {f"t{t}": {"w": size * c} for t, c in enumerate(changes)}, method=method
        )["w"]
        for size in (2.0**-135, 1.0)
    }
    assert merged[1.0].isfinite().all()
    assert merged[2.0**-135].isfinite().all()
    assert (merged[2.0**-135].double() * 2.0**135 - merged[1.0].double()).abs().max() < 0.02 * merged[1.0].abs().max()


HARD = torch.from_numpy(np.load(Path(__file__).parents[1] / "fixtures" / "svd_fail_f32.npy"))  # fails in MKL
GENERATOR = torch.Generator().manual_seed(0)
OTHER = torch.randn(128, 20, generator=GENERATOR) @ torch.randn(20, 128, generator=GENERATOR) * 1e-4
NAME = "h.0.mlp.weight"


def hard_zoo(folder: Path) -> Path:
    """A base of zeros, so that every change is exact, and two fine-tunes."""
    for name, change in (("base", torch.zeros(128, 128)), ("t0", HARD), ("t1", OTHER)):
        (folder / name).mkdir()
        save_file({NAME: change}, folder / name / "model.safetensors", metadata={"format": "pt"})
        (folder / name / "config.json").write_text("{}")
    return folder


def failing(*_: object, **__: object) -> None:
    raise torch.linalg.LinAlgError("did not converge")


LADDER = {
    "nothing": [],
    "the eigensolver": [(_lapack, "_lapack")],
    "divide and conquer as well": [(_lapack, "_lapack"), (_exact, "_divide_and_conquer")],
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("fails", LADDER)
def test_a_factorisation_that_does_not_converge_is_replaced(
    fails: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = models.recipe(hard_zoo(tmp_path), tasks=2, more=f"dtype: {dtype}\n")
    for owner, name in LADDER[fails]:
        monkeypatch.setattr(owner, name, failing)
    hf_tsv.merge(recipe, tmp_path / "out", options=hf_tsv.Options(workers=1))
    deltas = [HARD.double().numpy(), OTHER.double().numpy()]
    us, ss, vhs = zip(*map(np.linalg.svd, deltas), strict=True)
    kept = [min(64, int((s > 1e-6 * s[0]).sum())) for s in ss]
    u = np.concatenate([u[:, :k] for u, k in zip(us, kept, strict=True)], axis=1)
    vh = np.concatenate([vh[:k] for vh, k in zip(vhs, kept, strict=True)])
    polar = [p @ q for p, _, q in (np.linalg.svd(a, full_matrices=False) for a in (u, vh))]
    expected = (polar[0] * np.concatenate([s[:k] for s, k in zip(ss, kept, strict=True)])) @ polar[1]
    merged = load_file(tmp_path / "out" / "model.safetensors")[NAME].double().numpy()
    amplified = 4 + polar_amplification(torch.from_numpy(u)) + polar_amplification(torch.from_numpy(vh))
    # Triplets are kept down to 1e-6 of the largest: a Gram matrix in float64 holds the squares of these to 1e-4.
    tolerance = rounding(torch.float32, condition=amplified) + rounding(torch.float64, condition=1e12)
    assert np.linalg.norm(merged - expected) < tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("method", ["tsv_m", "iso_cts", "cart"])
def test_where_no_factorisation_converges_tensor_and_task_are_told(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = models.recipe(hard_zoo(tmp_path), method, tasks=2)
    common = method == "iso_cts"  # whose first factorisation is that of the sum
    original, calls = linalg.truncated_svd, itertools.count()

    def solve(*arguments: Any, **options: Any) -> Any:
        if common and not next(calls):
            return original(*arguments, **options)
        for owner, name in ((_lapack, "_lapack"), (_exact, "_divide_and_conquer"), (_exact, "_qr_iteration")):
            monkeypatch.setattr(owner, name, failing)
        return original(*arguments, **options)

    monkeypatch.setattr(f"hf_tsv.methods.{method}.truncated_svd", solve)
    with pytest.raises(MethodError) as caught:
        hf_tsv.merge(recipe, tmp_path / "out", options=hf_tsv.Options(workers=1))
    assert str(caught.value) == (
        f"{NAME} (128, 128), {method}: task 't0': no singular value decomposition converged, not even in float64."
        " Leave this tensor out"
    )
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(("room", "call"), [(spectra, "singular_values"), (factors, "truncated_svd")])
def test_a_compression_tells_tensor_and_task_too(
    room: ModuleType, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = models.recipe(models.zoo(models.bert, tmp_path, tasks=2), tasks=2)

    def fail(*_: object, **__: object) -> None:
        raise MethodError("no singular value decomposition converged")

    monkeypatch.setattr(room, call, fail)
    with pytest.raises(MethodError, match=r"^[a-z_.0-9]+weight \(\d+, \d+\), compress: task 't[01]': no singular"):
        hf_tsv.compress(recipe, tmp_path / "out", "rank=2")
    assert not list(tmp_path.glob("*out*"))


def test_a_clock_that_jumps_does_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = models.recipe(models.zoo(models.bert, tmp_path))
    hf_tsv.merge(recipe, tmp_path / "whole")
    times = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr(time, "time", lambda: float(next(times)))
    monkeypatch.setattr(time, "time_ns", lambda: next(times) * 10**9)

    def stop() -> None:
        raise KeyboardInterrupt

    after(7, stop, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        hf_tsv.merge(recipe, tmp_path / "out", options=hf_tsv.Options(workers=1))
    record = hf_tsv.merge(recipe, tmp_path / "out")
    assert 0 <= record.seconds < 1000
    one, other = (tmp_path / name / "model.safetensors" for name in ("whole", "out"))
    assert one.read_bytes() == other.read_bytes()


def test_time_left_is_told_by_a_clock_that_does_not_jump(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_told, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(_told, "err", Console(stderr=True, width=200))
    times = iter([1e9, 2e9, 0.0, 3e9])
    monkeypatch.setattr(time, "time", lambda: next(times, 5.0))
    with _told.WorkProgress("Merging", quiet=False) as progress:
        progress.begin(4.0)
        for name in "abc":
            progress.advance(1.0, name)
    left = [int(line.split("about ")[1].split(" s")[0]) for line in capsys.readouterr().err.splitlines()]
    assert len(left) == 3
    assert all(0 <= seconds < 10 for seconds in left)


@pytest.mark.parametrize("line", [0, 3])
def test_a_damaged_journal_is_told_and_restart_helps(
    line: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = models.recipe(models.zoo(models.bert, tmp_path))

    def stop() -> None:
        raise KeyboardInterrupt

    after(7, stop, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        hf_tsv.merge(recipe, tmp_path / "out", options=hf_tsv.Options(workers=1))
    journal = tmp_path / ".out.hf_tsv" / "journal.jsonl"
    lines = journal.read_bytes().split(b"\n")
    lines[line] = lines[line][:-3]
    journal.write_bytes(b"\n".join(lines))
    with pytest.raises(OutputError, match="is not JSON: the journal is damaged, .* Pass --restart"):
        hf_tsv.merge(recipe, tmp_path / "out")
    hf_tsv.merge(recipe, tmp_path / "out", options=hf_tsv.Options(restart=True))


@pytest.mark.parametrize("how", ["config", "codes"])
def test_a_quantized_model_is_told_at_plan_time_with_the_way_out(how: str, tmp_path: Path) -> None:
    folder = models.zoo(models.llama, tmp_path)
    config, weights = folder / "t1" / "config.json", folder / "t1" / "model.safetensors"
    if how == "config":
        said = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": said}))
    else:
        name = "model.layers.0.mlp.up_proj.weight"
        codes = {name: torch.ones(48, 32, dtype=torch.int8), f"{name}_scale": torch.ones(48)}
        save_file(load_file(weights) | codes, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"t1: .*quantized.*expected floats. .*dequantize\(\)"):
        hf_tsv.plan(models.recipe(folder))


@pytest.mark.parametrize("depth", [400, 100_000])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "README.md"])
def test_deeply_nested_files_of_a_source_are_told_or_carried(file: str, depth: int, tmp_path: Path) -> None:
    folder = models.zoo(models.llama, tmp_path, tasks=1)
    recipe = models.recipe(folder, "linear", tasks=1, more="out_dtype: bfloat16\nchat_template: auto\n")
    nested = "{%s}" % ('"a":{' * depth + "}" * depth)
    (folder / "base" / file).write_text(f"---\nx: {nested}\n---\n" if file == "README.md" else nested)
    for verb in (["merge", recipe, tmp_path / "out"], ["compress", recipe, tmp_path / "adapters", "--keep", "rank=2"]):
        result = run(*verb)
        assert result.exit_code in (0, 1), result.exception
        assert result.exit_code == 0 or file in result.stderr
        if file == "config.json" and (depth > 1000 or verb[0] == "compress"):
            assert result.exit_code == 1
