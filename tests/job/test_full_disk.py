"""A disk that is full or for reading only is told, nothing is lost, and the same command goes on once there is room."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import models

MOUNT = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]


def may_mount() -> bool:
    try:
        return subprocess.run(MOUNT, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="no file system may be mounted here, not even in a namespace of its own")
@pytest.mark.parametrize("verb", ["merge", "compress"])
def test_before_every_write(verb: str, tmp_path: Path) -> None:
    more = "residuals: {rank: 2}\n" if verb == "merge" else ""
    folder = models.zoo(models.bert, tmp_path, tasks=1)
    models.save(models.perturbed(models.bert_classifier(), 1), folder / "t0")  # a head of its own is a file more
    recipe = models.recipe(folder, tasks=1, more=more)
    results = tmp_path / "results.json"
    driver = ["unshare", "-rm", sys.executable, "-m", "tests.support.small_disk", verb, str(recipe), str(results)]
    subprocess.run(driver, check=True, cwd=Path(__file__).parents[2], env=os.environ | {"OMP_NUM_THREADS": "1"})
    found = json.loads(results.read_text())
    whole = found.pop("whole")
    assert "adapters/t0/adapter_model.safetensors" in whole
    assert len(found) >= 9
    for moment, happened in found.items():
        assert happened["codes"] == [4, 0], (moment, happened["told"])
        assert "the disk is full. Free some room and run the same command again" in happened["told"], moment
        assert not happened["there"], moment
        assert happened["files"] == whole, moment


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="no file system may be mounted here, not even in a namespace of its own")
def test_a_file_system_for_reading_only_is_told(tmp_path: Path) -> None:
    recipe = models.recipe(models.zoo(models.bert, tmp_path))
    command = f"mount -t tmpfs -o ro tmpfs /mnt && exec {sys.executable} -m hf_tsv merge {recipe} /mnt/out -q"
    stopped = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, check=False)
    assert stopped.returncode == 1
    assert stopped.stderr == "/mnt/.out.hf_tsv: can't be written: Read-only file system\n"


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_is_told(tmp_path: Path) -> None:
    recipe = models.recipe(models.zoo(models.bert, tmp_path))
    command = [sys.executable, "-m", "hf_tsv", "merge", str(recipe), str(tmp_path / "out"), "-q"]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))

    stopped = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True, check=False)
    assert stopped.returncode == 4, stopped.stderr
    assert "larger than its file system or a limit allows (ulimit -f)" in stopped.stderr
    assert not (tmp_path / "out").exists()
    assert subprocess.run(command, check=False).returncode == 0
