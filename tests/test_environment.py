"""A person's settings don't reach the tests, nor the processes that they start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.environment import NAMES, OWN_KNOBS, PREFIXES, SETTINGS, personal

SETTINGS_OF_A_PERSON = {
    "HF_HUB_OFFLINE": "1",
    "HF_TOKEN": "hf_x",
    "HF_ENDPOINT": "http://127.0.0.1:1",
    "HF_HOME": "/nowhere",
    "TRANSFORMERS_OFFLINE": "1",
    "ACCELERATE_USE_CPU": "1",
    "RANK": "3",
    "WORLD_SIZE": "8",
    "SLURM_PROCID": "3",
    "FORCE_COLOR": "1",
    "COLUMNS": "40",
    "HF_TSV_KILLS": "0",
}
PROBE = """
import tests.conftest, os
tests.conftest.pytest_configure()
from huggingface_hub import constants, get_token
from hf_tsv.job.processes import Process
from rich.console import Console
print(constants.HF_HUB_OFFLINE, constants.ENDPOINT, get_token(), constants.HF_HOME, sep="|")
print(Process.launched().count, Console().width, Console().is_terminal, sep="|")
print(*sorted(os.environ), sep="|")
"""


@pytest.mark.slow
def test_the_libraries_see_none_of_them() -> None:
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env=os.environ | SETTINGS_OF_A_PERSON,
        cwd=root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    hub, process, names = [line.split("|") for line in done.stdout.splitlines()]
    assert hub[:3] == ["False", SETTINGS["HF_ENDPOINT"], "None"]
    assert not hub[3].startswith((SETTINGS_OF_A_PERSON["HF_HOME"], str(Path.home())))
    assert process == ["1", "80", "False"]
    ours = {*SETTINGS, "HF_HOME", "HF_XET_CACHE", *OWN_KNOBS}
    assert not {name for name in names if name.startswith(PREFIXES) or name in NAMES} - ours


def test_what_the_tests_themselves_read_stays() -> None:
    assert personal({"HF_TSV_KILLS": "9", "HF_TSV_DEBUG": "1", "PATH": "/bin"}) == {"HF_TSV_DEBUG"}
