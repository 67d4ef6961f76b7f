"""Hostile input of every kind ends in a told error or is read: no traceback, no path outside, no long wait."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import hf_tsv
from hf_tsv.checkpoints.folder import open_checkpoint
from hf_tsv.errors import CheckpointError, HfTsvError, RecipeError
from hf_tsv.lora.read.adapter import open_adapter
from hf_tsv.recipe import edited, parse_recipe, put_key
from tests.support import models

FUZZ = settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    print_blob=True,
)
DEEP = "[" * 100_000
WORDS = st.sampled_from([
    *("tsv_m", "ties", "linear", "tsv_c", "base", "./a", "../..", "/", "~", "org/x", "org/x@main+./y", "hf://a/b"),
    *("re:(", "*"),
    *("\0", "\ud800", "1e999", ".nan", "-1", "0", "*.x", "embedding", "union", "é", "a" * 5000, "\x1b[31m"),
])  # fmt: skip
NUMBERS = st.one_of(st.integers(), st.floats(), st.integers(2**62, 2**80))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.text(max_size=20))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=8), inner, max_size=4)
)
RECIPE_KEYS = st.sampled_from([
    *("merge_method", "base_model", "models", "parameters", "overrides", "dtype", "out_dtype", "tokenizer_source"),
    *("chat_template", "svd", "residuals", "adapters", "slices", "model", "name", "weight", "filter", "kind", "scale"),
    *("density", "rank", "budget", "revision", "path", "value", "<<"),
])  # fmt: skip
SOUND = {
    "merge_method": "tsv_m",
    "base_model": "org/base",
    "models": [{"model": "org/a", "name": "a", "parameters": {"weight": 1}}, {"model": "org/b"}],
    "parameters": {"scale": [0.5, 1.0]},
    "overrides": [
        {"filter": "*.mlp.*", "merge_method": "linear"},
        {"filter": {"kind": "head"}, "merge_method": "base"},
    ],
}


@contextmanager
def promptly(seconds: float = 2.0) -> Iterator[None]:
    """No long wait, by this process's own clock: a busy machine is no fault of the code."""
    started = time.process_time()
    try:
        yield
    finally:
        assert time.process_time() - started < seconds


def damaged(draw: st.DrawFn, data: Any, keys: st.SearchStrategy[str]) -> Any:
    """Plain data with one place in it replaced by something else."""
    if isinstance(data, dict) and data and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(data)))
        return {**data, key: damaged(draw, data[key], keys)}
    if isinstance(data, dict) and draw(st.booleans()):
        return {**data, draw(keys): draw(VALUES)}
    if isinstance(data, list) and data and draw(st.booleans()):
        i = draw(st.integers(0, len(data) - 1))
        return [*data[:i], damaged(draw, data[i], keys), *data[i + 1 :]]
    return draw(VALUES)


@st.composite
def damage(draw: st.DrawFn, data: Any, keys: st.SearchStrategy[str]) -> Any:
    for _ in range(draw(st.integers(1, 3))):
        data = damaged(draw, data, keys)
    return data


@pytest.mark.slow
@FUZZ
@given(damage(SOUND, RECIPE_KEYS))
def test_a_recipe_is_read_or_told(data: Any) -> None:
    try:
        with promptly():
            recipe = parse_recipe(json.dumps(data))
    except RecipeError as error:
        str(error).encode()
    else:
        again = edited(recipe, lambda document: put_key(document, "dtype", "float64"))
        assert again.dtype == "float64"
        assert [model.ref for model in again.models] == [model.ref for model in recipe.models]


@pytest.mark.slow
@FUZZ  # ruamel.yaml looks ahead from every bracket, but not without end
@given(st.text() | st.text(alphabet="-:{}[]&*!|>'\"%@`#,? \n\tab1.<"))
@example(DEEP)
@example("a: &a [" + "*a, " * 9 + "]")
@example("a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n" + "c: [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n" * 50)
@example("merge_method: " + "9" * 5000)
def test_text_is_no_recipe_and_is_told(text: str) -> None:
    with pytest.raises(RecipeError), promptly(20):  # YAML's reader looks ahead from every bracket, but not without end
        parse_recipe(text)


TENSOR = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
HEADER = {"__metadata__": {"format": "pt"}, "a": TENSOR, "b": {**TENSOR, "data_offsets": [16, 32]}}


@pytest.mark.slow
@FUZZ
@given(damage(HEADER, st.sampled_from(["dtype", "shape", "data_offsets", "a", "c"])), st.integers(0, 64))
@example({"a": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}, 0)
@example({"a": {"dtype": "F32", "shape": [1] * 999, "data_offsets": [0, 4]}}, 4)
@example({"a\ud800": TENSOR}, 16)
@example({"a\x1b[2J": TENSOR}, 16)
@example({"a": {**TENSOR, "dtype": ["F32"]}}, 16)
def test_a_header_is_read_or_told(tmp_path: Path, header: Any, size: int) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * size)
    try:
        with promptly():
            checkpoint = open_checkpoint(tmp_path)
    except CheckpointError as error:
        str(error).encode()
    else:
        for name in checkpoint.names():
            assert checkpoint.read(name).shape == checkpoint.info(name).shape


@FUZZ
@given(st.binary(max_size=64))
@example((100_000).to_bytes(8, "little") + DEEP.encode())
@example((10**8).to_bytes(8, "little"))
@example((2**64 - 1).to_bytes(8, "little") + b"{}")
def test_bytes_are_no_checkpoint_and_are_told(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError), promptly():
        open_checkpoint(tmp_path)


INDEX = {"metadata": {"total_size": 8}, "weight_map": {"a": "model-1.safetensors"}}
FILES = st.sampled_from(["a", "weight_map", "metadata"])


@pytest.mark.slow
@FUZZ
@given(damage(INDEX, FILES).map(json.dumps) | st.text())
@example(DEEP)
@example('{"weight_map": {"a": "../outside/model.safetensors"}}')
@example('{"weight_map": {"a": "/etc/x.safetensors"}}')
@example('{"weight_map": {"a": "\\u0000.safetensors"}}')
@example('{"weight_map": {"a": "\\ud800.safetensors"}}')
@example('{"weight_map": {"a": "' + "x" * 300 + '.safetensors"}}')
def test_an_index_is_read_or_told_and_never_leaves_its_folder(tmp_path: Path, text: str) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "model"
    for place in (outside, folder):
        place.mkdir(exist_ok=True)
    save_file({"a": torch.ones(2)}, outside / "model.safetensors")
    save_file({"a": torch.zeros(2)}, folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        with promptly():
            checkpoint = open_checkpoint(folder)
    except CheckpointError as error:
        str(error).encode()
    else:
        assert all(not checkpoint.read(name).any() for name in checkpoint.names())


ADAPTER = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"q": 2}, "alpha_pattern": {"q": 4.0},
    "target_modules": ["q"], "base_model_name_or_path": "org/base",
}  # fmt: skip
ADAPTER_KEYS = st.sampled_from([
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias", "use_dora"),
    *("target_parameters", "trainable_token_indices", "init_lora_weights", "modules_to_save", "layer_replication"),
    *("(?i)q", "a{99999999999}", "(a*)*", "q)|(.*", "\\1"),
])  # fmt: skip


@pytest.mark.slow
@FUZZ
@given(damage(ADAPTER, ADAPTER_KEYS).map(json.dumps) | st.text())
@example(DEEP)
@example(json.dumps({**ADAPTER, "rank_pattern": {"(?i)q": 2}}))
@example(json.dumps({**ADAPTER, "rank_pattern": {"a{99999999999}": 2}}))
@example(json.dumps({**ADAPTER, "r": 2**70, "lora_alpha": 1e308}))
@example(json.dumps({**ADAPTER, "r": 10**400, "rank_pattern": {}, "use_rslora": True}))
@example(json.dumps({**ADAPTER, "lora_alpha": 10**400}))
def test_an_adapter_config_is_read_or_told(tmp_path: Path, text: str) -> None:
    factors = {"lora_A.weight": torch.ones(2, 4), "lora_B.weight": torch.ones(3, 2)}
    save_file({f"base_model.model.q.{key}": t for key, t in factors.items()}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    base = Path(tmp_path / "base")
    base.mkdir(exist_ok=True)
    save_file({"q.weight": torch.zeros(3, 4)}, base / "model.safetensors")
    try:
        with promptly():
            adapter = open_adapter(tmp_path, label="the adapter")
            model = adapter.applied_to(open_checkpoint(base), places=dict)
    except HfTsvError as error:
        str(error).encode()
    else:
        assert model.read("q.weight").shape == (3, 4)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = models.zoo(models.bert, tmp_path_factory.mktemp("zoo"), tasks=2)
    hf_tsv.merge(models.recipe(folder, "linear", tasks=2), folder / "out")
    return folder / "out", json.loads((folder / "out" / "hf_tsv.json").read_text())


@settings(FUZZ, max_examples=60)
@given(st.data())
def test_a_record_is_compared_or_told(merged: tuple[Path, dict[str, Any]], data: st.DataObject) -> None:
    out, record = merged
    keys = st.sampled_from(["files", "tensors", "checksums", "sources", "versions", "task", "shape", "sha256", "dtype"])
    (out / "hf_tsv.json").write_text(json.dumps(data.draw(damage(record, keys))), errors="surrogatepass")
    try:
        with promptly():
            found = hf_tsv.verify(out, sample=1, limits=hf_tsv.Limits(workers=1))
    except HfTsvError as error:
        str(error).encode()
    else:
        assert found.exit_code in (0, 1)
