"""No module needs what only POSIX systems have in order to be imported."""

import pkgutil
import subprocess
import sys

import pytest

import hf_tsv

# What a Python on Windows or macOS doesn't have. The libraries may look for it before: they know how to do without.
HIDE = """
import importlib, os, sys
import accelerate, filelock, huggingface_hub, numpy, peft, psutil, scipy, torch, transformers

for name in ("fcntl", "resource", "pwd", "grp", "termios", "syslog"):
    sys.modules[name] = None
for name in ("posix_fadvise", "posix_fallocate", "sched_getaffinity", "sched_setaffinity"):
    if hasattr(os, name):
        delattr(os, name)
for name in sys.argv[1:]:
    importlib.import_module(name)
from hf_tsv.merging.resources import Resources
assert Resources.of(None, None).workers >= 1
"""


@pytest.mark.slow
def test_every_module_is_imported_without_posix() -> None:
    modules = [module.name for module in pkgutil.walk_packages(hf_tsv.__path__, "hf_tsv.")]
    ours = [name for name in modules if name != "hf_tsv.__main__"]  # which runs the command line
    assert len(ours) > 100
    done = subprocess.run([sys.executable, "-c", HIDE, *ours], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
