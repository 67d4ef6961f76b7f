"""What is written is read back bit for bit, in the safetensors library's own layout, whole or not at all."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_tsv.checkpoints.folder import open_checkpoint
from hf_tsv.checkpoints.memory import MemoryCheckpoint
from hf_tsv.checkpoints.protocol import Shard
from hf_tsv.checkpoints.writer import CheckpointWriter
from hf_tsv.errors import OutputError, ResourceError
from hf_tsv.staging.folder import Staging, check_output
from hf_tsv.staging.journal import Journal
from tests.support.tensors import of_every_dtype

IDENTITY = {"recipe": "r"}


def shards_of(memory: MemoryCheckpoint, *groups: list[str]) -> list[Shard]:
    count = len(groups)
    names = (
        ["model.safetensors"] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    )
    return [Shard(file, tuple(map(memory.info, group))) for file, group in zip(names, groups, strict=True)]


def test_the_bytes_are_the_safetensors_librarys(tmp_path: Path) -> None:
    stored = of_every_dtype()
    memory = MemoryCheckpoint(stored, label="")
    with CheckpointWriter(tmp_path, shards_of(memory, list(stored))) as writer:
        for name in reversed(list(stored)):
            writer.write(name, memory.read(name))
    save_file(stored, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_shards_have_an_index_that_is_read_back(tmp_path: Path) -> None:
    stored = {"a": torch.ones(3), "b": torch.zeros(2, 2), "c": torch.arange(4)}
    memory = MemoryCheckpoint(stored, label="")
    with CheckpointWriter(tmp_path, shards_of(memory, ["a", "b"], ["c"])) as writer:
        for name in stored:
            writer.write(name, stored[name])
        writer.write_index()
    assert load_file(tmp_path / "model-00002-of-00002.safetensors").keys() == {"c"}
    checkpoint = open_checkpoint(tmp_path)
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in stored.items())
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"] == {"total_size": 60}


def test_a_file_laid_out_before_is_gone_on_with(tmp_path: Path) -> None:
    memory = MemoryCheckpoint({"a": torch.ones(3), "b": torch.ones(2)}, label="")
    with CheckpointWriter(tmp_path, shards_of(memory, ["a", "b"])) as first:
        assert first.made_anew == {"a", "b"}
        first.write("a", torch.full((3,), 7.0))
    with CheckpointWriter(tmp_path, shards_of(memory, ["a", "b"])) as second:
        assert not second.made_anew
        second.write("b", torch.full((2,), 5.0))
    assert load_file(tmp_path / "model.safetensors")["a"].tolist() == [7.0] * 3


def test_the_bytes_are_the_same_on_a_system_without_posix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four threads write at places of their own, by seeking."""
    for name in ("pwrite", "posix_fallocate"):
        monkeypatch.delattr(os, name)
    stored = of_every_dtype() | {f"more.{i}": torch.full((50_000,), float(i)) for i in range(20)}
    memory = MemoryCheckpoint(stored, label="")
    with CheckpointWriter(tmp_path, shards_of(memory, list(stored))) as writer, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: writer.write(name, memory.read(name)), stored))
    save_file(stored, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    memory = MemoryCheckpoint({"a": torch.ones(3)}, label="")
    with pytest.raises(ResourceError, match="the disk is full. Free some room and run the same command again"):
        CheckpointWriter(tmp_path, shards_of(memory, ["a"]))


def test_the_journal_remembers_what_is_complete(tmp_path: Path) -> None:
    memory = MemoryCheckpoint({"a": torch.ones(3), "b": torch.ones(2)}, label="")
    shards = shards_of(memory, ["a", "b"])
    with Staging(tmp_path / "out") as staging, CheckpointWriter(staging.out, shards) as writer:
        with Journal(staging, writer, IDENTITY) as journal:
            journal.note("a", sha256=writer.write("a", torch.ones(3)), nbytes=12)
        with (staging.root / "journal.jsonl").open("a") as file:
            file.write('{"name": "b", "sha2')  # a line torn by a crash
    with Staging(tmp_path / "out") as staging, CheckpointWriter(staging.out, shards) as writer:
        assert Journal.read_identity(staging) == IDENTITY
        with Journal(staging, writer, IDENTITY) as journal:
            assert list(journal.done) == ["a"]
            journal.note("b", sha256="", nbytes=8)
        with Journal(staging, writer, IDENTITY) as journal:
            assert list(journal.done) == ["a", "b"]


def test_a_tensor_is_noted_only_once_it_is_on_the_disk(tmp_path: Path) -> None:
    memory = MemoryCheckpoint({"a": torch.ones(3)}, label="")
    with (
        Staging(tmp_path / "out") as staging,
        CheckpointWriter(staging.out, shards_of(memory, ["a"])) as writer,
        Journal(staging, writer, IDENTITY) as journal,
    ):
        journal.note("a", sha256="", nbytes=12)
        assert b'"a"' not in (staging.root / "journal.jsonl").read_bytes()
        journal.sync()
        assert b'"a"' in (staging.root / "journal.jsonl").read_bytes()


def test_a_lost_file_takes_its_lines_in_the_journal_with_it(tmp_path: Path) -> None:
    memory = MemoryCheckpoint({"a": torch.ones(3)}, label="")
    shards = shards_of(memory, ["a"])
    with Staging(tmp_path / "out") as staging:
        with CheckpointWriter(staging.out, shards) as writer, Journal(staging, writer, IDENTITY) as journal:
            journal.note("a", sha256="", nbytes=12)
        (staging.out / "model.safetensors").unlink()
        with CheckpointWriter(staging.out, shards) as writer, Journal(staging, writer, IDENTITY) as journal:
            assert not journal.done


def test_two_runs_on_one_output_are_refused(tmp_path: Path) -> None:
    with Staging(tmp_path / "out"), pytest.raises(OutputError, match="another run is writing it"):
        Staging(tmp_path / "out").__enter__()


def test_the_output_appears_when_it_is_published(tmp_path: Path) -> None:
    with Staging(tmp_path / "out") as staging:
        (staging.out / "x").write_text("new")
        assert not (tmp_path / "out").exists()
        staging.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "x").read_text() == "new"


def test_what_stood_there_is_replaced_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model-00001-of-00002.safetensors").write_text("stale")
    with Staging(tmp_path / "out") as staging:
        (staging.out / "model.safetensors").write_text("new")
        staging.publish()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    check_output(out, overwrite=False)
    out.mkdir()
    check_output(out, overwrite=False)
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists and is not empty. Pass --overwrite, or choose another folder"):
        check_output(out, overwrite=False)
    with pytest.raises(OutputError, match="was not made by hf-tsv and is not overwritten"):
        check_output(out, overwrite=True)
    (out / "hf_tsv.json").write_text("{}")
    check_output(out, overwrite=True)
