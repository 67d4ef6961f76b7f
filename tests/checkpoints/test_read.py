"""Checkpoints read back what was stored, and refuse, by name, what they can't."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hf_tsv.checkpoints.aligned import aligned
from hf_tsv.checkpoints.folder import open_checkpoint
from hf_tsv.checkpoints.memory import MemoryCheckpoint
from hf_tsv.checkpoints.protocol import TensorInfo
from hf_tsv.errors import CheckpointError
from tests.support.tensors import of_every_dtype


def save_shards(folder: Path, shards: list[dict[str, Tensor]]) -> None:
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    write_index(folder, weight_map)


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def message(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder, label="the model")
    return str(caught.value).replace(str(folder), "DIR")


def test_reads_every_dtype_bit_for_bit(tmp_path: Path) -> None:
    stored = of_every_dtype()
    save_file(stored, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.names()) == set(stored)
    for name, tensor in stored.items():
        read = checkpoint.read(name)
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert read.view(-1).view(torch.uint8).tolist() == tensor.view(-1).view(torch.uint8).tolist()


def test_reads_some_rows_alone(tmp_path: Path) -> None:
    save_file({"experts": torch.arange(60).reshape(5, 3, 4), "other": torch.ones(7)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert torch.equal(checkpoint.read("experts", (1, 3)), torch.arange(12, 36).reshape(2, 3, 4))


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    save_shards(tmp_path, [{"a": torch.ones(2)}, {"b": torch.zeros(3, dtype=torch.bfloat16)}])
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.info("b") == TensorInfo("b", (3,), "BF16")
    assert torch.equal(checkpoint.read("a"), torch.ones(2))


def test_headers_are_enough_to_open(tmp_path: Path) -> None:
    """What a plan needs is read without a byte of the tensors."""
    save_file({"a": torch.ones(1000)}, tmp_path / "model.safetensors")
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-4000])
    with path.open("r+b") as file:
        file.truncate(len(data))  # a hole where the tensor was
    assert open_checkpoint(tmp_path).info("a").shape == (1000,)


def test_fingerprint_changes_with_the_file(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    before = open_checkpoint(tmp_path).fingerprint()
    assert open_checkpoint(tmp_path).fingerprint() == before
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).fingerprint() != before


def test_no_folder(tmp_path: Path) -> None:
    assert message(tmp_path / "x") == "the model: no such folder. Give a folder, or a Hub id such as org/name"


def test_shards_without_an_index(tmp_path: Path) -> None:
    for i in (1, 2):
        (tmp_path / f"model-0000{i}-of-00002.safetensors").touch()
    assert message(tmp_path) == (
        "the model: 2 safetensors files (model-00001-of-00002.safetensors, ...) without an index. Download"
        " model.safetensors.index.json from where they come from, and put it beside them"
    )


def test_no_weights(tmp_path: Path) -> None:
    assert message(tmp_path) == (
        "the model: no safetensors weights in it, expected model.safetensors or model.safetensors.index.json"
    )


def test_a_pickle_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert message(tmp_path) == (
        "the model: only pickled weights (pytorch_model.bin), which can run code when they are read. Convert them:"
        " load the model with transformers and call save_pretrained, which writes safetensors"
    )


def test_an_index_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    write_index(tmp_path, {"a": "../secret.safetensors"})
    assert message(tmp_path) == (
        "DIR/model.safetensors.index.json: '../secret.safetensors' leaves its folder."
        " Weights are read from beside the index only"
    )


def test_every_truncated_shard_is_told(tmp_path: Path) -> None:
    save_shards(tmp_path, [{"a": torch.ones(20)}, {"b": torch.ones(20)}, {"c": torch.ones(20)}])
    for i in (1, 3):
        path = tmp_path / f"model-{i:05d}-of-00003.safetensors"
        path.write_bytes(path.read_bytes()[:-10])
    lines = message(tmp_path).splitlines()
    size = (tmp_path / "model-00002-of-00003.safetensors").stat().st_size
    assert lines == [
        f"DIR/model-0000{i}-of-00003.safetensors: expected {size} bytes by its header but got {size - 10}."
        " Download the file again"
        for i in (1, 3)
    ]


def test_a_missing_shard_is_told(tmp_path: Path) -> None:
    save_shards(tmp_path, [{"a": torch.ones(2)}, {"b": torch.ones(2)}])
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert message(tmp_path) == "DIR/model-00002-of-00002.safetensors: can't be read: No such file or directory"


def test_an_index_that_promises_more_than_its_shards_hold(tmp_path: Path) -> None:
    save_shards(tmp_path, [{"a": torch.ones(2)}, {"b": torch.ones(2)}])
    one, two = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    write_index(tmp_path, {"a": one, "b": two, "c": two})
    assert message(tmp_path) == "the model: the index lists 1 tensors that its shards don't hold: c"


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"[]", "the safetensors header is not a mapping. Download the file again"),
        (b"{nonsense", "the safetensors header is not JSON. Download the file again"),
        (b'{"a": 3}', "tensor 'a' has no dtype, shape and data_offsets"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', "tensor 'a' has 4 bytes, expected 8 for F32 (2,)"),
        (
            b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
            "tensor 'a' has a shape or offsets that are not natural numbers",
        ),
        (
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
            "tensors 'a' and 'b' overlap. Download the file again",
        ),
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, header: bytes, said: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    assert message(tmp_path) == f"DIR/model.safetensors: {said}"


def test_an_enormous_header_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    assert (
        message(tmp_path) == "DIR/model.safetensors: not a safetensors file, or cut short (10 bytes). Download it again"
    )


def test_a_file_that_shrinks_while_it_is_read_is_told(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1000)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        checkpoint.read("a")


def test_a_head_puts_the_encoder_under_a_prefix() -> None:
    base = MemoryCheckpoint({"layer.0.w": torch.ones(2), "layer.1.w": torch.ones(2)}, label="base")
    tuned = {"bert.layer.0.w": torch.zeros(2), "bert.layer.1.w": torch.zeros(2), "classifier.w": torch.ones(3)}
    seen = aligned(MemoryCheckpoint(tuned, label="tuned"), base)
    assert set(seen.names()) == {"layer.0.w", "layer.1.w", "classifier.w"}
    assert seen.info("layer.0.w").name == "layer.0.w"
    assert torch.equal(seen.read("layer.1.w"), torch.zeros(2))


def test_a_base_with_a_head_takes_a_bare_encoder() -> None:
    base = MemoryCheckpoint({"bert.a": torch.ones(2), "bert.b": torch.ones(2), "cls.c": torch.ones(2)}, label="base")
    seen = aligned(MemoryCheckpoint({"a": torch.zeros(2), "b": torch.zeros(2)}, label="tuned"), base)
    assert set(seen.names()) == {"bert.a", "bert.b"}


def test_names_that_meet_stay_as_they_are() -> None:
    base = MemoryCheckpoint({"a.x": torch.ones(2)}, label="base")
    tuned = MemoryCheckpoint({"a.x": torch.ones(2), "b.a.x": torch.ones(2)}, label="tuned")
    assert aligned(tuned, base) is tuned
