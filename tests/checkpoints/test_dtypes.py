"""The table of dtypes says what the safetensors library says."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import _TYPES, save_file

from hf_tsv.checkpoints.dtypes import BY_TORCH, BY_WORD, DTYPES, FILE_ORDER


@pytest.mark.parametrize("name", DTYPES)
def test_names_are_the_librarys(name: str, tmp_path: Path) -> None:
    dtype = DTYPES[name]
    assert _TYPES[name] == dtype.torch
    save_file({"a": torch.zeros(3, dtype=dtype.torch)}, tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    entry = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["a"]
    assert entry == {"dtype": name, "shape": [3], "data_offsets": [0, 3 * dtype.nbytes]}
    assert BY_TORCH[dtype.torch] is BY_WORD[dtype.word] is dtype
    assert getattr(torch, dtype.word) == dtype.torch


def test_the_order_is_the_librarys(tmp_path: Path) -> None:
    save_file({f"{i:02}": torch.zeros(1, dtype=d.torch) for i, d in enumerate(DTYPES.values())}, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    entries = sorted(header.values(), key=lambda entry: entry["data_offsets"])
    assert [entry["dtype"] for entry in entries] == list(DTYPES)
    assert sorted(FILE_ORDER, key=FILE_ORDER.__getitem__) == list(DTYPES)


def test_what_is_merged() -> None:
    assert {name for name, dtype in DTYPES.items() if dtype.is_float} == {"F64", "F32", "F16", "BF16"}
    assert {name for name, dtype in DTYPES.items() if dtype.is_half} == {"F16", "BF16"}
