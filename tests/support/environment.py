"""Make the environment the same on every machine, before anything reads it.

`huggingface_hub`, `transformers` and `accelerate` read their variables when they are first imported, and a run of
hf_tsv looks for a launcher's. So `tests/conftest.py` calls `isolate` before it imports anything else; subprocesses
inherit what it leaves.
"""

import atexit
import os
import shutil
from collections.abc import Mapping
from tempfile import mkdtemp

# Settings of the libraries, launchers and proxies. A test that needs one sets it itself.
PREFIXES = (
    *("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_", "PYTORCH_TRANSFORMERS_", "PEFT_", "DATASETS_"),
    *("ACCELERATE_", "FSDP_", "MASTER_", "LOCAL_", "TORCHELASTIC_", "SLURM_", "OMPI_", "PMI_", "PMIX_", "MV2_"),
)
NAMES = frozenset({
    *("RANK", "WORLD_SIZE", "GROUP_RANK", "NODE_RANK"),
    *("DISABLE_TELEMETRY", "DO_NOT_TRACK"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
})  # fmt: skip
OWN_KNOBS = frozenset({"HF_TSV_FUZZ", "HF_TSV_KILLS"})  # of the tests themselves
# Rich and Typer colour and wrap what the command line prints by these.
TERMINAL = frozenset({
    *("NO_COLOR", "FORCE_COLOR", "PY_COLORS", "COLORTERM", "COLUMNS", "LINES", "TERMINAL_WIDTH"),
    *("TTY_COMPATIBLE", "TTY_INTERACTIVE", "GITHUB_ACTIONS"),
})  # fmt: skip

# Port 9 refuses, so a request that was not pointed at the loopback Hub fails instead of leaving this machine.
SETTINGS = {
    "HF_ENDPOINT": "http://127.0.0.1:9",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_XET_CLIENT_RETRY_BASE_DELAY": "20ms",
    "HF_XET_XORB_COMPRESSION_POLICY": "none",  # what the loopback Hub's store reads
}


def personal(environment: Mapping[str, str]) -> set[str]:
    """The names of the variables that would change what the libraries do."""
    return {name for name in environment if (name.startswith(PREFIXES) or name in NAMES) and name not in OWN_KNOBS}


def isolate() -> None:
    """Drop a person's settings and give this process, and those it starts, a home of their own."""
    for name in personal(os.environ):
        del os.environ[name]
    home = mkdtemp(prefix="hf_tsv-tests-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ.update(SETTINGS, HF_HOME=f"{home}/huggingface", HF_XET_CACHE=f"{home}/xet")


def plain_terminal() -> None:
    """Let the command line print as it does into a file: 80 columns, no colours."""
    for name in TERMINAL & os.environ.keys():
        del os.environ[name]
