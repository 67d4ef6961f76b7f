"""`verify` sees every byte that changed, wherever it lies, and says what it could not see."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import hf_tsv
from hf_tsv.errors import OutputError
from tests.support import models
from tests.support.cli import run

NO_RECOMPUTING = 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo and its merge in several shards, with residual adapters on it."""
    folder = models.zoo(models.llama, tmp_path_factory.mktemp("zoo"))
    recipe = models.recipe(folder, more="residuals: {rank: 2}\n")
    hf_tsv.merge(recipe, folder / "out", options=hf_tsv.Options(max_shard_size="60KB"))
    return folder


@pytest.fixture
def zoo(made: Path, tmp_path: Path) -> Path:
    """A copy to do harm to; its lock still names the sources in `made`."""
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
def test_what_was_written_is_as_recorded(zoo: Path) -> None:
    found = hf_tsv.verify(zoo / "out", sample=None)
    assert (found.differs, found.not_checked, found.notes, found.exit_code) == ([], [], [], 0)
    assert found.tensors == len(found.recomputed) == len(json.loads((zoo / "out/hf_tsv.json").read_text())["tensors"])
    assert found.files > 8


def test_any_flipped_bit_of_any_file_is_seen(zoo: Path) -> None:
    """At a random place of every file, headers included, but for cards and the record itself."""
    draw = random.Random(0)
    files = [p for p in (zoo / "out").rglob("*") if p.is_file() and p.name not in ("README.md", "hf_tsv.json")]
    assert len(files) > 10
    for path in files:
        for at in {
            draw.randrange(path.stat().st_size),
            *(draw.sample(range(200), 2) if "model-0" in path.name else ()),
        }:
            flip(path, at)
            found = hf_tsv.verify(zoo / "out", sample=NO_RECOMPUTING)
            assert found.exit_code == 1, (path, at)
            assert str(path) in "\n".join(found.differs)
            flip(path, at)
    assert hf_tsv.verify(zoo / "out", sample=NO_RECOMPUTING).exit_code == 0


def test_a_truncated_and_a_missing_shard_are_told_by_name(zoo: Path) -> None:
    first, second = sorted((zoo / "out").glob("model-*.safetensors"))[:2]
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    found = hf_tsv.verify(zoo / "out", sample=NO_RECOMPUTING)
    assert found.exit_code == 1
    assert [line.split(":")[0] for line in found.differs] == [str(first), str(second)]


def test_tensors_that_moved_are_seen(zoo: Path) -> None:
    """The same bytes under other names are another model."""
    path = max((zoo / "out").glob("model-*.safetensors"), key=lambda p: len(load_file(p)))
    state = load_file(path)
    layers = [name for name in state if "layernorm" in name][:2]
    state[layers[0]], state[layers[1]] = state[layers[1]], state[layers[0]]
    save_file(state, path, metadata={"format": "pt"})
    found = hf_tsv.verify(zoo / "out", sample=NO_RECOMPUTING)
    assert all(name in "\n".join(found.differs) for name in layers)


def test_a_record_that_was_changed_with_the_weights_does_not_help(zoo: Path) -> None:
    """Recomputing sees what checksums can't."""
    name = "model.norm.weight"
    path = next(p for p in (zoo / "out").glob("model-*.safetensors") if name in load_file(p))
    save_file(load_file(path) | {name: torch.ones(32) * 3}, path, metadata={"format": "pt"})
    record = json.loads((zoo / "out/hf_tsv.json").read_text())
    import hashlib

    record["tensors"][name]["sha256"] = hashlib.sha256((torch.ones(32) * 3).numpy().tobytes()).hexdigest()
    (zoo / "out/hf_tsv.json").write_text(json.dumps(record))
    assert hf_tsv.verify(zoo / "out", sample=NO_RECOMPUTING).exit_code == 0
    found = hf_tsv.verify(zoo / "out", sample=None)
    assert (found.exit_code, found.differs) == (
        1,
        [f"{name}: tsv_m of the sources gives other bits than were recorded"],
    )


def test_a_changed_source_is_told(tmp_path: Path) -> None:
    folder = models.zoo(models.bert, tmp_path)
    hf_tsv.merge(models.recipe(folder), tmp_path / "out")
    path = folder / "t1" / "model.safetensors"
    state = load_file(path)
    state["pooler.dense.weight"] *= 1.5
    save_file(state, path, metadata={"format": "pt"})
    found = hf_tsv.verify(tmp_path / "out", sample=None)
    assert found.differs == ["pooler.dense.weight: tsv_m of the sources gives other bits than were recorded"]
    assert found.notes == [
        f"{folder}/t1: its files have another size, time of change or header than when they were merged"
    ]


def test_sources_that_moved_are_asked_for(tmp_path: Path) -> None:
    folder = models.zoo(models.bert, tmp_path / "old")
    hf_tsv.merge(models.recipe(folder), tmp_path / "out")
    folder.rename(tmp_path / "new")
    found = hf_tsv.verify(tmp_path / "out")
    assert (found.exit_code, found.differs, found.recomputed) == (1, [], [])
    assert found.not_checked[-1].startswith("where sources have moved, pass a copy of")
    lock = tmp_path / "lock.yaml"
    lock.write_text((tmp_path / "out" / "recipe.lock.yaml").read_text().replace(str(folder), str(tmp_path / "new")))
    found = hf_tsv.verify(tmp_path / "out", recipe=lock)
    assert (found.exit_code, len(found.recomputed), found.notes) == (0, 8, [])


def test_the_seed_chooses_the_sample(zoo: Path) -> None:
    samples = [hf_tsv.verify(zoo / "out", sample=3, seed=seed).recomputed for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2]
    assert len(samples[0]) == 3


@pytest.mark.slow
def test_adapters_and_restored_checkpoints_are_compared_by_file(made: Path, tmp_path: Path) -> None:

    hf_tsv.compress(made / "recipe.yaml", tmp_path / "small", "rank=2")
    hf_tsv.restore(tmp_path / "small", "t0", tmp_path / "t0")
    for out in (tmp_path / "small", tmp_path / "t0"):
        found = hf_tsv.verify(out)
        assert (found.exit_code, found.differs, found.not_checked) == (0, [], [])
        path = max(out.rglob("*.safetensors"), key=lambda p: p.stat().st_size)
        flip(path, path.stat().st_size - 1)
        assert hf_tsv.verify(out).exit_code == 1


def test_a_file_without_a_checksum_is_told(zoo: Path) -> None:
    (zoo / "out" / "pytorch_model.bin").write_text("?")
    found = hf_tsv.verify(zoo / "out", sample=NO_RECOMPUTING)
    assert found.not_checked == [f"{zoo}/out: the record has no checksum of 1 files: pytorch_model.bin"]


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{}", '{"sources": [], "versions": {}, "files": ["../x"]}', "[" * 9999]
)
def test_a_folder_without_a_record_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "hf_tsv.json").write_text(text)
    with pytest.raises(OutputError, match="hf_tsv.json"):
        hf_tsv.verify(tmp_path)


def test_the_command_says_what_differs_and_exits_with_1(zoo: Path) -> None:
    result = run("verify", zoo / "out", "-q")
    assert (result.exit_code, result.stdout.strip().split(": ")[-1]) == (0, "all as recorded")
    assert "8 tensors merged again" in result.stdout
    path = next((zoo / "out").glob("model-*.safetensors"))
    flip(path, path.stat().st_size - 1)
    result = run("verify", zoo / "out", "--sample", "0", "-q")
    assert result.exit_code == 1
    assert "1 differ" in result.stdout
    assert "has other bytes than were written" in result.stderr
    result = run("verify", zoo / "out", "--all", "--json", "-q")
    assert len(json.loads(result.stdout)["differs"]) == 1
