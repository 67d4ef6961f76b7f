"""The Hub's reading side, with the real client against a Hub on loopback."""

import errno
import json
import re
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
)
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from safetensors.torch import save
from torch import Tensor

from hf_tsv import __version__
from hf_tsv.checkpoints.model_files import side_files
from hf_tsv.errors import CheckpointError, HubError, ResourceError
from hf_tsv.hub import Hub, Pinned, _errors
from hf_tsv.hub._repository import weights_of
from tests.support.loopback_hub import LoopbackHub

REPO = "alice/model"
CARD = (
    b"---\nlicense: other\nlicense_name: my-licence\nlicense_link: https://x.y/z\ntags: [merge]\nlanguage: en\n---\nHi"
)
SIDE = {"config.json": b'{"a": 1}', "tokenizer.json": b'{"b": 2}', "1_Pooling/config.json": b'{"c": 3}'}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def reader(hub: LoopbackHub, cache: Path) -> Hub:
    """The Hub as bob sees it, who owns none of alice's repositories."""
    return Hub(token="hf_bob", cache_dir=cache)


def tensors() -> dict[str, Tensor]:
    """One tensor of many a dtype, one empty, one scalar, and one that alone exceeds the first read of a header."""
    torch.manual_seed(0)
    return {
        "big": torch.randn(300, 200),
        "half": torch.randn(7, 3).bfloat16(),
        "eighth": torch.randn(5).to(torch.float8_e4m3fn),
        "ids": torch.arange(9),
        "mask": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5, dtype=torch.float16),
    }


def single(weights: Mapping[str, Tensor] | None = None) -> dict[str, bytes]:
    return {**SIDE, "README.md": CARD, "model.safetensors": save(dict(weights or tensors()), {"format": "pt"})}


def sharded() -> dict[str, bytes]:
    """Two shards and their index; a third file that the index doesn't name."""
    parts = {"model-00001-of-00002.safetensors": ["big", "half"], "model-00002-of-00002.safetensors": ["ids", "scalar"]}
    all_of_them = tensors()
    files = {file: save({name: all_of_them[name] for name in names}) for file, names in parts.items()}
    weight_map = {name: file for file, names in parts.items() for name in names}
    index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return {**SIDE, **files, "model.safetensors.index.json": index, "old.safetensors": save({"x": torch.ones(9)})}


def handmade(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def told(hub: Hub, *sources: tuple[str, str | None]) -> str:
    with pytest.raises(HubError) as caught:
        hub.preflight(sources)
    assert caught.value.exit_code == 3
    return str(caught.value)


def paths(hub: LoopbackHub) -> list[str]:
    return [request.path for request in hub.log]


class TestPinning:
    def test_branch_tag_commit_and_default_branch(self, hub: LoopbackHub, reader: Hub) -> None:
        old, new = hub.publish(REPO, single()), hub.publish(REPO, {"config.json": b"{}"})
        side = hub.publish(REPO, {"config.json": b"[]"}, branch="side/way")
        hub.repos[REPO].refs["refs/tags/v1"] = old
        asked = {None: new, "main": new, "side/way": side, "v1": old, old: old}
        pins = reader.preflight([(REPO, revision) for revision in asked])
        assert [pin.sha for pin in pins] == list(asked.values())
        assert [pin.label for pin in pins] == [
            REPO, f"{REPO}@main", f"{REPO}@side/way", f"{REPO}@v1", f"{REPO}@{old[:7]}"
        ]  # fmt: skip

    def test_the_same_source_twice_is_asked_for_once(self, hub: LoopbackHub, reader: Hub) -> None:
        hub.publish(REPO, single())
        first, second = reader.preflight([(REPO, None), (REPO, None)])
        assert first == second
        assert len([path for path in paths(hub) if "auth-check" in path]) == 1

    def test_a_pin_stays_when_the_branch_moves(self, hub: LoopbackHub, reader: Hub) -> None:
        hub.publish(REPO, single({"w": torch.ones(4)}))
        [pin] = reader.preflight([(REPO, None)])
        hub.publish(REPO, single({"w": torch.zeros(4)}))
        assert reader.open(pin).read("w").tolist() == [1, 1, 1, 1]

    def test_offline_a_branch_stands_for_what_it_last_stood(self, hub: LoopbackHub, reader: Hub, cache: Path) -> None:
        sha = hub.publish(REPO, single())
        reader.download(reader.preflight([(REPO, None)])[0])
        hub.publish(REPO, {"config.json": b"{}"})
        hub.log.clear()
        assert Hub(cache_dir=cache, offline=True).preflight([(REPO, None)]) == [Pinned(REPO, None, sha)]
        assert not hub.log

    def test_requests_name_this_package(self, hub: LoopbackHub, reader: Hub) -> None:
        hub.publish(REPO, single())
        reader.open(reader.pin(REPO)).read("big")
        agents = [request.headers["User-Agent"] for request in hub.log if not request.cdn]
        assert len(agents) > 2
        assert all(agent.startswith(f"hf_tsv/{__version__};") for agent in agents)


class TestHeaders:
    @pytest.mark.parametrize("files", [single(), sharded()], ids=["single", "sharded"])
    def test_are_read_without_downloading_weights(self, hub: LoopbackHub, reader: Hub, files: dict[str, bytes]) -> None:
        hub.publish(REPO, files)
        headers = reader.headers(reader.pin(REPO))
        assert all(request.range for request in hub.log if request.path.endswith(".safetensors") or request.cdn)
        assert sum(request.sent for request in hub.log if request.cdn) < len(tensors()["big"].numpy().tobytes())
        for file, slices in headers.items():
            for name, found in slices.items():
                stored = tensors()[name]
                assert found.info.shape == tuple(stored.shape)
                assert files[file][found.begin : found.end] == stored.view(-1).view(torch.uint8).numpy().tobytes()
        assert set().union(*headers.values()) == (
            {"big", "half", "ids", "scalar"} if len(headers) > 1 else set(tensors())
        )

    def test_a_header_longer_than_the_first_read(self, hub: LoopbackHub, reader: Hub) -> None:
        weights = {f"layer.{i:05d}.{'x' * 40}": torch.tensor([i]) for i in range(1500)}
        hub.publish(REPO, single(weights))
        checkpoint = reader.open(reader.pin(REPO))
        assert set(checkpoint.names()) == set(weights)
        assert checkpoint.read(f"layer.01499.{'x' * 40}").tolist() == [1499]

    LIES = (
        ("no header", b"\xff" * 20, "not a safetensors file, or cut short (20 bytes). Use another revision"),
        ("too short", b"abc", "not a safetensors file, or cut short (3 bytes). Use another revision"),
        ("no JSON", handmade(b"{no"), "the safetensors header isn't JSON. Use another revision"),
        ("nested", handmade(b"[" * 100_000), "the safetensors header isn't JSON. Use another revision"),
        ("no mapping", handmade([1]), "the safetensors header isn't a mapping. Use another revision"),
        ("overlap", handmade({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)}, b"123456"),
         "tensors 'a' and 'b' overlap. Use another revision"),
        ("beyond the end", handmade({"a": entry("U8", [9], 0, 9)}, b"1234"),
         "expected 77 bytes by its header but got 72. Use another revision"),
        ("wrong size", handmade({"a": entry("F32", [3], 0, 4)}, b"1234"),
         "tensor 'a' has 4 bytes, expected 12 for F32 (3,)"),
    )  # fmt: skip

    @pytest.mark.parametrize(("content", "message"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
    def test_a_file_that_lies_is_told(self, hub: LoopbackHub, reader: Hub, content: bytes, message: str) -> None:
        hub.publish(REPO, {"model.safetensors": content})
        with pytest.raises(CheckpointError) as caught:
            reader.open(reader.pin(REPO))
        assert str(caught.value) == f"{REPO}/model.safetensors: {message}"

    @pytest.mark.parametrize("how", ["codes", "config"])
    @pytest.mark.parametrize("offline", [False, True])
    def test_quantized_weights_are_told_before_a_download(
        self, hub: LoopbackHub, reader: Hub, cache: Path, how: str, offline: bool
    ) -> None:
        codes = {"a.qweight": torch.ones(2, 3, dtype=torch.int32), "a.scales": torch.ones(2, 1, dtype=torch.float16)}
        files = single(codes) if how == "codes" else single()
        said = b'{"quantization_config": {"quant_method": "gptq"}}'
        hub.publish(REPO, files | ({"config.json": said} if how == "config" else {}))
        if offline:
            reader.download(reader.pin(REPO))
        hub.log.clear()
        seeing = Hub(cache_dir=cache, offline=True) if offline else reader
        with pytest.raises(CheckpointError, match=r"^alice/model: .*quantized.*expected floats. Name the model that"):
            seeing.open(seeing.pin(REPO))
        assert not offline or not hub.log
        assert all(request.range for request in hub.log if request.path.endswith(".safetensors") or request.cdn)

    INDEXES = (
        (b"[" * 100_000, "/model.safetensors.index.json: can't be read as an index with a 'weight_map'"),
        (b"{", "/model.safetensors.index.json: can't be read as an index with a 'weight_map'"),
        (b'{"weight_map": {"a": "../../b.safetensors"}}',
         "/model.safetensors.index.json: the repository doesn't contain ../../b.safetensors. Use another revision"),
        (b'{"weight_map": {"ids": "model-00002-of-00002.safetensors", "lost": "model-00002-of-00002.safetensors"}}',
         ": the index lists 1 tensors that its shards lack: lost"),
        (b'{"weight_map": {"x": "old.safetensors", "y": "same.safetensors"}}',
         ": 1 tensors are in two shards: x. One file is stale"),
    )  # fmt: skip

    @pytest.mark.parametrize(("index", "message"), INDEXES)
    def test_an_index_that_lies_is_told(self, hub: LoopbackHub, reader: Hub, index: bytes, message: str) -> None:
        same = sharded()["old.safetensors"]
        hub.publish(REPO, {**sharded(), "model.safetensors.index.json": index, "same.safetensors": same})
        with pytest.raises(CheckpointError) as caught:
            reader.open(reader.pin(REPO))
        assert str(caught.value) == REPO + message


class TestRemoteCheckpoint:
    @pytest.mark.parametrize("files", [single(), sharded()], ids=["single", "sharded"])
    def test_reads_the_same_bytes(self, hub: LoopbackHub, reader: Hub, files: dict[str, bytes]) -> None:
        hub.publish(REPO, files)
        checkpoint = reader.open(reader.pin(REPO))
        for name in checkpoint.names():
            read, stored = checkpoint.read(name), tensors()[name]
            assert (read.dtype, read.shape) == (stored.dtype, stored.shape)
            assert torch.equal(read.view(-1).view(torch.uint8), stored.view(-1).view(torch.uint8))

    def test_reads_rows(self, hub: LoopbackHub, reader: Hub) -> None:
        hub.publish(REPO, single())
        checkpoint = reader.open(reader.pin(REPO))
        assert torch.equal(checkpoint.read("big", (7, 11)), tensors()["big"][7:11])
        assert hub.log[-1].sent == 4 * 200 * 4

    def test_is_named_by_its_commit(self, hub: LoopbackHub, reader: Hub) -> None:
        sha = hub.publish(REPO, single())
        checkpoint = reader.open(reader.pin(REPO, "main"))
        assert checkpoint.label == f"{REPO}@main"
        assert checkpoint.fingerprint() == f"{REPO}@{sha}"

    def test_asks_the_hub_for_a_file_once_and_then_its_cdn(self, hub: LoopbackHub, reader: Hub) -> None:
        hub.publish(REPO, single())
        checkpoint = reader.open(reader.pin(REPO))
        for _ in range(3):
            checkpoint.read("big")
        assert len([path for path in paths(hub) if "/resolve/" in path and path.endswith(".safetensors")]) == 1

    def test_resolves_again_when_the_link_expires(self, hub: LoopbackHub, reader: Hub) -> None:
        hub.publish(REPO, single())
        checkpoint = reader.open(reader.pin(REPO))
        hub.expire_links()
        assert torch.equal(checkpoint.read("big"), tensors()["big"])
        assert [request.status for request in hub.log[-3:]] == [403, 302, 206]

    def test_goes_on_where_a_connection_was_cut(self, hub: LoopbackHub, reader: Hub) -> None:
        hub.publish(REPO, single())
        pin = reader.pin(REPO)
        checkpoint = reader.open(pin)
        hub.fault("/lfs/", drop_after=100_000, times=1)
        hub.fault("/lfs/", drop_after=50_000, times=1)
        assert torch.equal(checkpoint.read("big"), tensors()["big"])
        ranges = [str(request.range) for request in hub.log[-3:]]
        begin, last = map(int, ranges[0].removeprefix("bytes=").split("-"))
        assert last - begin + 1 > 240_000  # its small neighbours come along
        assert ranges[1:] == [f"bytes={begin + done}-{last}" for done in (100_000, 150_000)]

    def test_a_failing_server_is_asked_again(self, hub: LoopbackHub, reader: Hub) -> None:
        hub.publish(REPO, single())
        checkpoint = reader.open(reader.pin(REPO))
        hub.fault("/lfs/", status=503, times=2)
        assert torch.equal(checkpoint.read("half"), tensors()["half"])

    def test_waits_as_long_as_the_server_asks(
        self, hub: LoopbackHub, reader: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.publish(REPO, single())
        checkpoint = reader.open(reader.pin(REPO))
        waits: list[float] = []
        monkeypatch.setattr(_errors.time, "sleep", waits.append)
        hub.fault("/lfs/", status=429, headers={"Retry-After": "7"})
        hub.fault("/lfs/", status=429, headers={"RateLimit": '"resolvers";r=0;t=40'})
        checkpoint.read("half")
        assert [wait for wait in waits if wait] == [7, 41]

    def test_a_server_that_goes_on_failing_is_told(self, hub: LoopbackHub, reader: Hub) -> None:
        hub.publish(REPO, single())
        checkpoint = reader.open(reader.pin(REPO))
        hub.fault("/lfs/", status=503, message="Service Unavailable", times=9)
        with pytest.raises(HubError) as caught:
            checkpoint.read("half")
        assert str(caught.value) == (
            f"{hub.endpoint}: the Hub failed (503: Service Unavailable). Wait a little and run this again."
        )

    @pytest.mark.parametrize("status", [401, 403, 404])
    def test_a_refusal_is_not_asked_again(self, hub: LoopbackHub, reader: Hub, status: int) -> None:
        hub.publish(REPO, single())
        pin = reader.pin(REPO)
        reader.files(pin)
        hub.log.clear()
        hub.fault("/resolve/", status=status, times=9)
        with pytest.raises(HubError):
            reader.open(pin)
        assert len([path for path in paths(hub) if "/resolve/" in path]) == 1

    def test_a_server_without_ranges_is_told_before_the_file_comes(self, hub: LoopbackHub, reader: Hub) -> None:
        hub.publish(REPO, single())
        hub.knows_ranges = False
        with pytest.raises(HubError) as caught:
            reader.open(reader.pin(REPO))
        assert str(caught.value) == (
            f"{REPO}/model.safetensors: the server sent the whole file instead of the requested part."
            " It doesn't support reading in parts: download the model first."
        )

    def test_no_token_reaches_the_cdn(self, hub: LoopbackHub, reader: Hub) -> None:
        hub.publish(REPO, single())
        pin = reader.pin(REPO)
        reader.open(pin).read("big")
        reader.download(pin)
        assert {request.has_token for request in hub.log if request.cdn} == {False}
        assert {request.has_token for request in hub.log if not request.cdn} == {True}


class TestWhatARepositoryHolds:
    REFUSED = (
        (["pytorch_model.bin", "config.json"],
         "has only pickled weights (pytorch_model.bin), which can run code when they are read. Convert them: load the"
         " model with transformers and call save_pretrained, which writes safetensors; or ask"
         " https://huggingface.co/spaces/safetensors/convert for a pull request and name it as the revision"
         " (@refs/pr/1)"),
        (["model.Q4_K_M.gguf"],
         "has only GGUF weights (model.Q4_K_M.gguf), expected safetensors. Use the model they were quantised from"),
        (["unet/diffusion_pytorch_model.safetensors", "model_index.json"],
         "has weights only in folders (unet). Append one of them to the repository's name"),
        (["unet/diffusion_pytorch_model.bin", "model_index.json"],
         "a diffusers pipeline, not a single model. Save the component you want (its unet/ or transformer/) alone"),
        (["adapter_config.json", "adapter_model.bin"],
         "an adapter with adapter_model.bin, expected adapter_model.safetensors. Save it again with PEFT, which writes"
         " safetensors"),
        (["config.json"],
         "contains no weights (model.safetensors or model.safetensors.index.json). Check the id and the revision"),
    )  # fmt: skip

    @pytest.mark.parametrize(("files", "message"), REFUSED)
    def test_what_is_no_safetensors_model_is_told(self, files: list[str], message: str) -> None:
        with pytest.raises(CheckpointError) as caught:
            weights_of(files, "a/b@main")
        assert str(caught.value) == f"a/b@main: {message}"

    def test_weights_of_another_framework_are_told(self) -> None:
        with pytest.raises(
            CheckpointError, match=r"^a/b: has only weights of another framework \(tf_model.h5\), expected model"
        ):
            weights_of(["tf_model.h5"], "a/b")

    def test_one_file_goes_before_an_index(self) -> None:
        assert weights_of(["model.safetensors.index.json", "model.safetensors"], "").files == ("model.safetensors",)

    def test_one_file_of_any_name_is_taken(self) -> None:
        assert weights_of(["merged.safetensors", "sub/other.safetensors"], "").files == ("merged.safetensors",)

    def test_an_adapter_is_recognised_and_is_no_checkpoint(self, hub: LoopbackHub, reader: Hub) -> None:
        lora = save({"base_model.model.q.lora_A.weight": torch.ones(2, 3)})
        hub.publish(REPO, {"adapter_model.safetensors": lora, "adapter_config.json": b"{}"})
        pin = reader.pin(REPO)
        assert reader.weights(pin).kind == "adapter"
        assert list(reader.headers(pin)["adapter_model.safetensors"]) == ["base_model.model.q.lora_A.weight"]
        assert (reader.download(pin) / "adapter_config.json").is_file()
        with pytest.raises(CheckpointError, match=r"^alice/model: an adapter, expected a full checkpoint\."):
            reader.open(pin)

    def test_side_files(self) -> None:
        along = [
            *("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "vocab.txt"),
            *("preprocessor_config.json", "chat_template.jinja", "modules.json", "1_Pooling/config.json", "LICENSE"),
            *("2_Dense/model.safetensors", "additional_chat_templates/tool.jinja", "configuration_x.py"),
        ]
        left = [
            *("README.md", ".gitattributes", ".eval_results/x.yaml", "model.safetensors", "pytorch_model.bin"),
            *("model.safetensors.index.json", "onnx/config.json", "openvino/x.xml", "flax_model.msgpack", "x.gguf"),
            *("tf_model.h5", "checkpoint-50/config.json", "trainer_state.json", "eval_results.json", "plot.png"),
            *("sub/model.safetensors", "adapters/math/adapter_config.json", "hf_tsv.json", "original/params.json"),
        ]
        sizes = dict.fromkeys([*along, *left], 10) | {"huge.json": 200_000_000}
        assert set(side_files(sizes)) == set(along)

    def test_pages_of_a_long_listing_are_all_read(self, hub: LoopbackHub, reader: Hub) -> None:
        hub.publish(REPO, {f"part/{i}.txt": b"x" * (i % 7) for i in range(1005)})
        assert reader.files(reader.pin(REPO)) == {f"part/{i}.txt": i % 7 for i in range(1005)}

    def test_facts(self, hub: LoopbackHub, reader: Hub, cache: Path) -> None:
        hub.publish(REPO, single(), gated="auto", allowed={"bob"})
        [pin] = reader.preflight([(REPO, None)])
        hub.log.clear()
        facts = reader.facts(pin)
        assert (facts.license, facts.license_name, facts.license_link) == ("other", "my-licence", "https://x.y/z")
        assert (facts.gated, facts.private, facts.tags, facts.languages) == (True, False, ("merge",), ("en",))
        assert not hub.log  # the preflight has asked already
        reader.download(pin)
        offline = Hub(cache_dir=cache, offline=True).facts(pin)
        assert (offline.license, offline.gated, offline.private) == ("other", None, None)

    def test_facts_are_those_of_the_pinned_commit(self, hub: LoopbackHub, reader: Hub) -> None:
        hub.publish(REPO, single())
        pin = reader.pin(REPO)
        hub.publish(REPO, {"README.md": b"---\nlicense: mit\n---\n"})
        assert reader.facts(pin).license == "other"
        assert reader.facts(reader.pin(REPO)).license == "mit"

    def test_facts_of_a_repository_without_a_card(self, hub: LoopbackHub, reader: Hub, cache: Path) -> None:
        hub.publish(REPO, SIDE)
        pin = reader.pin(REPO)
        assert (reader.facts(pin).license, reader.facts(pin).tags) == (None, ())
        reader.download(pin, weights=False)
        assert Hub(cache_dir=cache, offline=True).facts(pin).license is None


class TestDownloading:
    @pytest.mark.parametrize("files", [single(), sharded()], ids=["single", "sharded"])
    def test_then_everything_works_without_a_hub(
        self, hub: LoopbackHub, reader: Hub, cache: Path, files: dict[str, bytes]
    ) -> None:
        hub.publish(REPO, files)
        pin = reader.pin(REPO)
        folder = reader.download(pin)
        hub.stop()
        offline = Hub(cache_dir=cache, offline=True)
        assert offline.preflight([(REPO, None)]) == [pin]
        assert offline.download(pin) == folder
        assert offline.bytes_to_download(pin) == 0
        checkpoint = offline.open(pin)
        assert checkpoint.label == REPO
        assert torch.equal(checkpoint.read("big"), tensors()["big"])

    def test_brings_what_is_needed_and_nothing_else(self, hub: LoopbackHub, reader: Hub) -> None:
        hub.publish(REPO, {**sharded(), "README.md": CARD, "model.gguf": b"x", "a.png": b"x", "[x]*.json": b"{}"})
        folder = reader.download(reader.pin(REPO))
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        weights = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
        assert found == {*SIDE, "[x]*.json", "README.md", "model.safetensors.index.json", *weights}

    def test_side_files_alone(self, hub: LoopbackHub, reader: Hub, cache: Path) -> None:
        hub.publish(REPO, single())
        pin = reader.pin(REPO)
        folder = reader.download(pin, weights=False)
        assert not (folder / "model.safetensors").exists()
        assert (folder / "1_Pooling/config.json").read_bytes() == SIDE["1_Pooling/config.json"]
        assert Hub(cache_dir=cache, offline=True).download(pin, weights=False) == folder

    def test_counts_bytes(self, hub: LoopbackHub, reader: Hub) -> None:
        hub.publish(REPO, single())
        pin = reader.pin(REPO)
        planned = reader.bytes_to_download(pin)
        assert planned == sum(map(len, single().values()))
        came: list[int] = []
        reader.download(pin, progress=came.append)
        assert sum(came) == planned
        assert reader.bytes_to_download(pin) == 0
        reader.download(pin, progress=came.append)
        assert sum(came) == planned

    @pytest.mark.slow
    def test_survives_a_cut_connection_and_a_failing_server(self, hub: LoopbackHub, reader: Hub) -> None:
        hub.publish(REPO, single())
        pin = reader.pin(REPO)
        hub.fault("/lfs/", drop_after=1000)
        hub.fault("/tree/", status=503, skip=1)
        assert (reader.download(pin) / "model.safetensors").read_bytes() == single()["model.safetensors"]

    def test_a_hub_that_fails_meanwhile_is_told(
        self, hub: LoopbackHub, reader: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.publish(REPO, single())
        pin = reader.pin(REPO)
        reader.files(pin)
        monkeypatch.setattr(time, "sleep", lambda _: None)  # the client's own retries wait as well
        hub.fault("/tree/", status=503, times=99)
        with pytest.raises(HubError) as caught:
            reader.download(pin)
        assert str(caught.value) == f"{hub.endpoint}: the Hub failed (503: injected). Wait a little and run this again."

    def test_a_network_that_goes_meanwhile_is_told(
        self, hub: LoopbackHub, reader: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(time, "sleep", lambda _: None)  # the client's own retries wait as well
        hub.publish(REPO, single())
        hf_hub_download(REPO, "config.json", cache_dir=cache, endpoint=hub.endpoint)
        pin = reader.pin(REPO)
        reader.files(pin)
        hub.stop()
        with pytest.raises(HubError) as caught:
            reader.download(pin)
        assert str(caught.value) == (
            f"{REPO}: the cache ({cache}) lacks 1_Pooling/config.json, tokenizer.json, README.md and 1 more."
            " Run this once with network access."
        )
        with pytest.raises(HubError) as caught:
            reader.pin("alice/other")
        assert str(caught.value) == (
            f"{hub.endpoint}: can't be reached (ConnectError). Check the network, or set HF_HUB_OFFLINE=1."
        )

    def test_a_full_disk_is_told(self, hub: LoopbackHub, reader: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.publish(REPO, single())
        pin = reader.pin(REPO)
        full = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(reader.api, "snapshot_download", lambda *_, **__: (_ for _ in ()).throw(full))
        with pytest.raises(ResourceError) as caught:
            reader.download(pin)
        assert str(caught.value) == (
            f"{reader.cache_dir}: the disk is full. Free space there, or set another --cache-dir"
        )


class TestOffline:
    def test_what_was_never_seen_is_told(self, hub: LoopbackHub, cache: Path) -> None:
        offline = Hub(cache_dir=cache, offline=True)
        assert told(offline, (REPO, None), (REPO, "0" * 40)).splitlines() == [
            f"{name}: neither a folder here nor in the cache ({cache}), and this run is offline. Run this once with"
            " network access."
            for name in (REPO, f"{REPO}@{'0' * 40}")
        ]

    def test_an_incomplete_snapshot_is_told(self, hub: LoopbackHub, reader: Hub, cache: Path) -> None:
        hub.publish(REPO, single())
        pin = reader.pin(REPO)
        reader.download(pin, weights=False)
        with pytest.raises(HubError) as caught:
            Hub(cache_dir=cache, offline=True).open(pin)
        assert str(caught.value) == (
            f"{REPO}: only partly in the cache ({cache}), and this run is offline. Run this once with network access."
        )

    def test_what_another_program_cached_counts(self, hub: LoopbackHub, reader: Hub, cache: Path) -> None:
        hub.publish(REPO, single())
        for file in ("config.json", "model.safetensors"):
            hf_hub_download(REPO, file, cache_dir=cache, endpoint=hub.endpoint)
        offline = Hub(cache_dir=cache, offline=True)
        [pin] = offline.preflight([(REPO, None)])
        assert torch.equal(offline.open(pin).read("big"), tensors()["big"])

    def test_a_shard_that_another_program_left_out_is_told(self, hub: LoopbackHub, cache: Path) -> None:
        hub.publish(REPO, sharded())
        for file in ("model.safetensors.index.json", "model-00001-of-00002.safetensors"):
            hf_hub_download(REPO, file, cache_dir=cache, endpoint=hub.endpoint)
        offline = Hub(cache_dir=cache, offline=True)
        [pin] = offline.preflight([(REPO, None)])
        with pytest.raises(HubError) as caught:
            offline.open(pin)
        assert str(caught.value) == (
            f"{REPO}: the cache ({cache}) lacks model-00002-of-00002.safetensors. Run this once with network access."
        )

    def test_weights_that_another_program_left_out_are_told(self, hub: LoopbackHub, cache: Path) -> None:
        hub.publish(REPO, single())
        hf_hub_download(REPO, "config.json", cache_dir=cache, endpoint=hub.endpoint)
        offline = Hub(cache_dir=cache, offline=True)
        [pin] = offline.preflight([(REPO, None)])
        assert (offline.download(pin, weights=False) / "config.json").is_file()
        with pytest.raises(HubError) as caught:
            offline.open(pin)
        assert str(caught.value) == f"{REPO}: the cache ({cache}) lacks its weights. Run this once with network access."

    def test_is_what_the_environment_says(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        assert not Hub(cache_dir=cache).offline
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert Hub(cache_dir=cache).offline


@pytest.mark.parametrize("hub", ["xet"], indirect=True)
class TestDownloadingOverXet:
    @pytest.fixture
    def pin(self, hub: LoopbackHub, reader: Hub) -> Pinned:
        """A model that was uploaded over Xet."""
        alice = HfApi(endpoint=hub.endpoint, token="hf_alice")
        alice.create_repo(REPO)
        files = [CommitOperationAdd(name, data) for name, data in single().items()]
        alice.create_commit(REPO, files, commit_message="push")
        assert hub.cas
        assert len(hub.cas.files) == 1
        hub.log.clear()
        return reader.pin(REPO)

    def test_same_bytes(self, hub: LoopbackHub, reader: Hub, pin: Pinned, capfd: pytest.CaptureFixture[str]) -> None:
        came: list[int] = []
        folder = reader.download(pin, progress=came.append)
        assert (folder / "model.safetensors").read_bytes() == single()["model.safetensors"]
        assert 0 <= sum(came) - sum(map(len, single().values())) < 100  # eight bytes come with each chunk
        assert any("/v1/reconstructions/" in path for path in paths(hub))
        assert capfd.readouterr() == ("", "")

    def test_a_part_is_read_by_range(self, hub: LoopbackHub, reader: Hub, pin: Pinned) -> None:
        assert torch.equal(reader.open(pin).read("big"), tensors()["big"])

    def test_no_token_of_the_hub_reaches_the_store(self, hub: LoopbackHub, reader: Hub, pin: Pinned) -> None:
        reader.download(pin)
        assert {request.headers["Authorization"] for request in hub.log if request.cdn} == {"Bearer xet-token", None}

    @pytest.mark.parametrize("where", ["xet-read-token", "/v1/reconstructions/", "/xorbs/"])
    @pytest.mark.parametrize("what", [{"status": 503}, {"status": 429}, {"drop_after": 3}, {"take_only": 0}])
    def test_a_failure_in_passing_does_not_show(
        self, hub: LoopbackHub, reader: Hub, pin: Pinned, where: str, what: dict[str, Any], monkeypatch: Any
    ) -> None:
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        hub.fault(where, times=2, **what)
        assert (reader.download(pin) / "model.safetensors").read_bytes() == single()["model.safetensors"]

    @pytest.mark.parametrize("where", ["/v1/reconstructions/", "/xorbs/"])
    @pytest.mark.parametrize(
        ("status", "told"), [(403, "403 Forbidden"), (404, "404 Not Found"), (500, "500 Internal Server Error")]
    )
    def test_a_store_that_refuses_is_told(
        self, hub: LoopbackHub, reader: Hub, pin: Pinned, where: str, status: int, told: str
    ) -> None:
        hub.fault(where, status=status, times=99)
        with pytest.raises(HubError) as caught:
            reader.download(pin)
        assert str(caught.value) == (
            f"{REPO}: the download failed ({told}). Run this again; if that goes on, set HF_HUB_DISABLE_XET=1."
        )


class TestPreflight:
    GATED = "user/private-model"

    def test_gated(self, hub: LoopbackHub, reader: Hub) -> None:
        hub.publish(self.GATED, single(), gated="manual")
        assert told(reader, (self.GATED, None)) == (
            "user/private-model: your token can't read it (gated). Ask for access on"
            f" {hub.endpoint}/user/private-model, then run this again; nothing was downloaded."
        )
        assert not any("/resolve/" in path for path in paths(hub))

    def test_gated_and_no_token(self, hub: LoopbackHub, cache: Path) -> None:
        hub.publish(self.GATED, single(), gated="auto")
        assert told(Hub(token=False, cache_dir=cache), (self.GATED, None)) == (
            "user/private-model: it is gated and no token was sent. Ask for access on"
            f" {hub.endpoint}/user/private-model, log in with `hf auth login` or set HF_TOKEN, then run this again;"
            " nothing was downloaded."
        )

    @pytest.mark.parametrize(
        ("said", "way_out"),
        [
            ("Your request to access model x is awaiting a review from the repo authors.",
             "Wait until its owner grants your request, then run this again; nothing was downloaded."),
            ("Please enable access to public gated repositories in your fine-grained token settings.",
             "In the token's settings allow it to read public gated repositories, then run this again;"
             " nothing was downloaded."),
        ],
    )  # fmt: skip
    def test_gated_for_a_reason(self, hub: LoopbackHub, reader: Hub, said: str, way_out: str) -> None:
        hub.publish(self.GATED, single())
        hub.fault("auth-check", status=403, message=said, headers={"X-Error-Code": "GatedRepo"})
        assert told(reader, (self.GATED, None)) == f"{self.GATED}: your token can't read it (gated). {way_out}"

    def test_gated_and_granted(self, hub: LoopbackHub, reader: Hub) -> None:
        sha = hub.publish(self.GATED, single(), gated="manual", allowed={"bob"})
        assert reader.preflight([(self.GATED, None)])[0].sha == sha

    @pytest.mark.parametrize("private", [True, False], ids=["private", "missing"])
    def test_private_or_missing(self, hub: LoopbackHub, reader: Hub, cache: Path, private: bool) -> None:
        if private:
            hub.publish("alice/secret", single(), private=True)
        assert told(reader, ("alice/secret", None)) == (
            "alice/secret: not found, or private and not visible to your token of 'bob'."
            " Check the spelling, or ask its owner for access, then run this again; nothing was downloaded."
        )
        assert told(Hub(token=False, cache_dir=cache), ("alice/secret", None)) == (
            "alice/secret: neither a folder here nor a repository, or it is private and no token was sent. Check the"
            " spelling, or log in with `hf auth login` or set HF_TOKEN, then run this again; nothing was downloaded."
        )

    def test_private_and_mine(self, hub: LoopbackHub, cache: Path) -> None:
        sha = hub.publish("alice/secret", single(), private=True)
        assert Hub(token="hf_alice", cache_dir=cache).preflight([("alice/secret", None)])[0].sha == sha

    def test_typo(self, hub: LoopbackHub, reader: Hub) -> None:
        hub.publish("alice/bert-base-sst2", single())
        assert told(reader, ("alice/bert-base-ssst2", None)) == (
            "alice/bert-base-ssst2: no such repository. Did you mean 'alice/bert-base-sst2'? If it is private,"
            " ask its owner for access."
        )

    def test_no_id(self, reader: Hub) -> None:
        assert told(reader, ("a/b c", None)) == (
            "a/b c: neither a folder nor a Hub id (user/name). Check the spelling."
        )

    def test_revision(self, hub: LoopbackHub, reader: Hub) -> None:
        sha = hub.publish(REPO, single())
        hub.repos[REPO].refs["refs/tags/v1"] = sha
        assert told(reader, (REPO, "v2"), (REPO, "f" * 40)).splitlines() == [
            f"{REPO}: no branch, tag or commit 'v2'; it has main, v1. Correct what follows the '@'.",
            f"{REPO}: no branch, tag or commit '{'f' * 40}'; it has main, v1. Correct what follows the '@'.",
        ]

    def test_a_bad_token_is_told_once_and_not_shown(self, hub: LoopbackHub, cache: Path) -> None:
        hub.publish(REPO, single())
        message = told(Hub(token="hf_stolen", cache_dir=cache), (REPO, None), ("bob/other", None))
        assert message == (
            f"{hub.endpoint}: your token is wrong, expired or revoked (401). Renew it: log in with `hf auth login`"
            " or set HF_TOKEN, then run this again; nothing was downloaded."
        )

    @pytest.mark.parametrize("token", ["hf_sec\nret", "hf_sec ret", "hf_secré"])
    def test_a_token_that_no_header_can_carry_is_told_and_not_shown(self, token: str) -> None:
        with pytest.raises(HubError) as caught:
            Hub(token=token)
        assert str(caught.value) == (
            "your token: contains a space, a line break or another invalid character. Copy it again."
        )

    def test_disabled(self, hub: LoopbackHub, reader: Hub) -> None:
        hub.publish(REPO, single(), disabled=True)
        assert told(reader, (REPO, None)) == f"{REPO}: the Hub has disabled this repository. Use another source."

    def test_unreachable(self, hub: LoopbackHub, reader: Hub, cache: Path) -> None:
        hub.stop()
        assert told(reader, (REPO, None), ("bob/other", "v1")) == (
            f"{hub.endpoint}: can't be reached (ConnectError). Check the network, or set HF_HUB_OFFLINE=1."
        )

    def test_too_slow(self, hub: LoopbackHub, reader: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.publish(REPO, single())
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
        hub.fault("/api/models", delay=0.5, times=3)
        assert told(reader, (REPO, None)) == (
            f"{hub.endpoint}: can't be reached (ReadTimeout). Check the network, or set HF_HUB_OFFLINE=1."
        )

    def test_no_hub_but_a_login_page(self, hub: LoopbackHub, reader: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.publish(REPO, single())
        hub.fault("/api/models", message="<html>Welcome to our hotel</html>", as_text=True)
        assert told(reader, (REPO, None)) == (
            f"{hub.endpoint}: the server there isn't the Hub. Check for a proxy or a firewall in between."
        )

    def test_too_many_requests(self, hub: LoopbackHub, cache: Path) -> None:
        hub.fault("/api/models", status=429, times=9)
        assert told(Hub(token=False, cache_dir=cache), (REPO, None)) == (
            f"{hub.endpoint}: too many requests (429). Wait five minutes and run this again. For a higher limit,"
            " log in with `hf auth login` or set HF_TOKEN."
        )

    def test_refused_for_another_reason(self, hub: LoopbackHub, reader: Hub) -> None:
        hub.publish(REPO, single())
        hub.fault("auth-check", status=403, message="Your IP is not allowed.")
        assert told(reader, (REPO, None)) == (
            f"{REPO}: the Hub refuses (403: Your IP is not allowed). Check your token's permissions, then run this"
            " again; nothing was downloaded."
        )

    def test_a_failure_in_passing_is_not_told(self, hub: LoopbackHub, reader: Hub) -> None:
        sha = hub.publish(REPO, single())
        hub.fault("/api/models/alice/model$", status=503, times=2)
        hub.fault("auth-check", drop_after=0)
        assert reader.preflight([(REPO, None)])[0].sha == sha

    def test_a_stale_cache_does_not_stand_in_for_a_failing_hub(self, hub: LoopbackHub, reader: Hub) -> None:
        hub.publish(REPO, single())
        reader.preflight([(REPO, None)])
        new = hub.publish(REPO, {"config.json": b"{}"})
        hub.fault("/api/models/alice/model$", status=503, skip=1, times=9)
        assert reader.preflight([(REPO, None)])[0].sha == new

    def test_all_problems_are_told_together_in_order(self, hub: LoopbackHub, reader: Hub) -> None:
        hub.publish(self.GATED, single(), gated="auto")
        hub.publish(REPO, single())
        message = told(reader, ("team/none", None), (REPO, None), (self.GATED, None), (REPO, "v9"))
        assert [re.split("[:@]", line)[0] for line in message.splitlines()] == ["team/none", self.GATED, REPO]


@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # the client's own, in its LFS upload
class TestLoopbackHub:
    """The client can push to the Hub of these tests as to the real one; what pushes in this package relies on it."""

    @pytest.fixture
    def alice(self, hub: LoopbackHub) -> HfApi:
        return HfApi(endpoint=hub.endpoint, token="hf_alice")

    def test_a_folder_is_uploaded_once(self, hub: LoopbackHub, alice: HfApi, tmp_path: Path) -> None:
        for file, data in single().items():
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_bytes(data)
        alice.create_repo(REPO, private=True)
        alice.create_repo(REPO, exist_ok=True)
        first = alice.upload_folder(repo_id=REPO, folder_path=tmp_path)
        again = alice.upload_folder(repo_id=REPO, folder_path=tmp_path)
        assert first.oid == again.oid == alice.model_info(REPO).sha
        assert alice.model_info(REPO).private
        assert {path: blob.data for path, blob in hub.repos[REPO].resolve("main").files.items()} == {
            ".gitattributes": b"*.safetensors filter=lfs\n", **single()
        }  # fmt: skip
        assert len([request for request in hub.log if request.method == "PUT"]) == 1

    def test_shards_go_up_ahead_and_are_committed_together(
        self, hub: LoopbackHub, alice: HfApi, tmp_path: Path
    ) -> None:
        head = hub.publish(REPO, {"model-00001-of-00009.safetensors": b"stale", "x/y.txt": b"y"})
        shard = tmp_path / "shard"
        shard.write_bytes(single()["model.safetensors"])
        operation = CommitOperationAdd("model.safetensors", str(shard))
        alice.preupload_lfs_files(REPO, [operation])
        shard.unlink()
        gone = [CommitOperationDelete("model-00001-of-00009.safetensors"), CommitOperationDelete("x/", is_folder=True)]
        card = CommitOperationAdd("README.md", CARD)
        made = alice.create_commit(REPO, [operation, card, *gone], commit_message="push", parent_commit=head)
        assert set(hub.repos[REPO].commits[made.oid].files) == {"model.safetensors", "README.md"}
        late = CommitOperationAdd("late.txt", b"x")
        with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
            alice.create_commit(REPO, [late], commit_message="late", parent_commit=head)

    def test_a_staging_branch_becomes_one_commit(self, hub: LoopbackHub, alice: HfApi) -> None:
        hub.publish(REPO, SIDE)
        alice.create_branch(REPO, branch="hf_tsv/run")
        for name in ("a.safetensors", "b.safetensors"):
            alice.upload_file(repo_id=REPO, path_or_fileobj=name.encode(), path_in_repo=name, revision="hf_tsv/run")
        staged = {entry.path for entry in alice.list_repo_tree(REPO, revision="hf_tsv/run") if hasattr(entry, "lfs")}
        assert {"a.safetensors", "b.safetensors"} < staged
        copies = [CommitOperationCopy(f, f, src_revision="hf_tsv/run") for f in ("a.safetensors", "b.safetensors")]
        alice.create_commit(REPO, copies, commit_message="publish")
        alice.delete_branch(REPO, branch="hf_tsv/run")
        alice.create_tag(REPO, tag="v1")
        refs = alice.list_repo_refs(REPO)
        assert [ref.name for ref in (*refs.branches, *refs.tags)] == ["main", "v1"]
        assert [commit.title for commit in alice.list_repo_commits(REPO)] == ["publish", "publish"]
        assert hub.repos[REPO].resolve("v1").files["b.safetensors"].data == b"b.safetensors"

    def test_a_pull_request(self, hub: LoopbackHub, alice: HfApi) -> None:
        hub.publish("bob/model", SIDE)
        card = CommitOperationAdd("README.md", CARD)
        made = alice.create_commit("bob/model", [card], commit_message="card", create_pr=True)
        assert made.pr_revision == "refs/pr/1"
        assert alice.get_discussion_details("bob/model", 1).status == "open"
        assert "README.md" not in hub.repos["bob/model"].resolve("main").files
        HfApi(endpoint=hub.endpoint, token="hf_bob").merge_pull_request("bob/model", 1)
        assert hub.repos["bob/model"].resolve("main").files["README.md"].data == CARD

    @pytest.mark.parametrize("token", ["hf_bob", "hf_reader"])
    def test_strangers_and_read_tokens_may_not_write(self, hub: LoopbackHub, token: str) -> None:
        hub.publish(REPO, SIDE)
        api = HfApi(endpoint=hub.endpoint, token=token)
        for call in (
            lambda: api.create_repo("alice/new"),
            lambda: api.auth_check(REPO, write=True),
            lambda: api.upload_file(repo_id=REPO, path_or_fileobj=b"x", path_in_repo="x.txt"),
        ):
            with pytest.raises(HfHubHTTPError) as caught:
                call()
            assert caught.value.response.status_code == 403

    def test_a_lost_reply_is_a_commit_all_the_same(self, hub: LoopbackHub, alice: HfApi) -> None:
        hub.publish(REPO, SIDE)
        hub.fault("/commit/", method="POST", lose_reply=True)
        with pytest.raises(HTTPError):
            alice.create_commit(REPO, [CommitOperationAdd("x.txt", b"x")], commit_message="push")
        assert hub.repos[REPO].resolve("main").title == "push"
