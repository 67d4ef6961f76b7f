"""How the C library keeps memory is set for the command line's own process, never for one that calls a function."""

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes
import sys

import torch

import hf_tsv
from hf_tsv import cli

calls = []


class Watched(ctypes.CDLL):
    def __getattr__(self, name):
        calls.append(name)
        return super().__getattr__(name)


ctypes.CDLL = Watched
base, tuned = {"a.weight": torch.zeros(8, 8)}, {"a.weight": torch.ones(8, 8)}
hf_tsv.merge_state_dicts(base, {"x": tuned})
print("mallopt" in calls)
sys.argv = ["hf-tsv", "--version"]
try:
    cli.main()
except SystemExit:
    print("mallopt" in calls)
"""


@pytest.mark.slow
def test_only_the_command_line_sets_it() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    first, *_, last = done.stdout.split()
    assert (first, last) == ("False", "True")
