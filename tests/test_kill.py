"""A merge that is killed again and again ends in the same bytes as one that is not."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from . import models

KILLS = int(os.environ.get("HF_TSV_KILLS", "5"))


def test_kills_at_random_moments_do_not_show_in_the_bytes(tmp_path: Path) -> None:
    recipe = models.recipe(models.zoo(models.bert_wide, tmp_path))
    out, journal = tmp_path / "out", tmp_path / ".out.hf_tsv" / "journal.jsonl"
    command = [sys.executable, "-m", "hf_tsv", "merge", str(recipe), str(out), "--quiet", "--workers", "2"]
    moments, kept = random.Random(0), []
    for _ in range(KILLS):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not journal.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 1.0))
        process.kill()
        process.wait()
        if out.exists():
            break
        kept.append(journal.read_bytes().count(b"\n"))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*command[:5], str(tmp_path / "whole"), "--quiet"], check=True, stdout=subprocess.DEVNULL)
    assert kept == sorted(kept), "work was lost"
    files = [path.name for path in (tmp_path / "whole").iterdir()]
    assert sorted(path.name for path in out.iterdir()) == sorted(files)
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
