"""A journal gives back what was noted, and a damaged or foreign one is told in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_tsv.checkpoints.protocol import Shard, TensorInfo
from hf_tsv.checkpoints.writer import CheckpointWriter
from hf_tsv.errors import OutputError
from hf_tsv.staging.folder import Staging
from hf_tsv.staging.journal import Journal, TensorLine, names_in

IDENTITY = {"recipe": "r"}
SHARDS = [Shard("model.safetensors", (TensorInfo("a", (3,), "F32"), TensorInfo("b", (2,), "F32")))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of one tensor."""
    with Staging(tmp_path / "out") as staging, CheckpointWriter(staging.out, SHARDS) as writer:
        with Journal(staging, writer, IDENTITY) as journal:
            notes = {"rank": (1, None), "error": 0.1 + 0.2, "tiny": 5e-324}
            journal.note("a", sha256=writer.write("a", torch.ones(3)), nbytes=12, seconds=0.25, notes=notes)
        return staging.root / "journal.jsonl"


def opened(path: Path) -> dict[str, TensorLine]:
    with Staging(path.parent.parent / "out") as staging, CheckpointWriter(staging.out, SHARDS) as writer:
        assert Journal.read_identity(staging) == IDENTITY
        with Journal(staging, writer, IDENTITY) as journal:
            return dict(journal.done)


def test_what_was_noted_is_read_back_bit_for_bit(path: Path) -> None:
    [line] = opened(path).values()
    assert line.notes == {"rank": [1, None], "error": 0.1 + 0.2, "tiny": 5e-324}
    assert (line.name, line.stage, line.seconds) == ("a", "merged", 0.25)
    assert list(line.facts()) == ["rank", "error", "tiny", "seconds", "sha256"]
    assert names_in(path) == {"a"}


@pytest.mark.parametrize(
    ("number", "change", "problem"),
    [
        (1, {"format": 2}, "format: Input should be 1"),
        (1, {"format": None}, "format: Input should be 1"),
        (1, {"identity": {"recipe": 3}}, "identity.recipe: Input should be a valid string"),
        (1, {"more": 1}, "more: Extra inputs are not permitted"),
        (2, {"sha256": 3}, "sha256: Input should be a valid string"),
        (2, {"name": None}, "name: Input should be a valid string"),
        (2, {"seconds": "1"}, "seconds: Input should be a valid number"),
        (2, {"notes": []}, "notes: Input should be a valid dictionary"),
        (2, {"rank": 3}, "rank: Extra inputs are not permitted"),
    ],
)
def test_a_foreign_line_is_told_by_its_field(number: int, change: dict[str, Any], problem: str, path: Path) -> None:
    lines = path.read_text().splitlines()
    lines[number - 1] = json.dumps(json.loads(lines[number - 1]) | change)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(OutputError) as caught:
        opened(path)
    assert str(caught.value) == (
        f"{path}:{number}: {problem}: the journal is damaged, or another version of hf-tsv wrote it."
        " Pass --restart to throw the unfinished run away"
    )


@pytest.mark.parametrize("line", ["", "null", "[]", "3", '{"recipe": "r"}', "[" * 100_000, "\x00", "{"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_damaged_line_is_told(number: int, line: str, path: Path) -> None:
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(OutputError, match=f"journal.jsonl:{number}: .* Pass --restart"):
        opened(path)


def test_half_a_line_at_the_end_is_cut_off(path: Path) -> None:
    before = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"name": "b", "sha2')
    assert names_in(path) == {"a"}, "another process may be about to finish the line"
    assert list(opened(path)) == ["a"]
    assert path.read_bytes() == before
