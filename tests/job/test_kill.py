"""A run that is killed again and again ends in the same bytes as one that is not."""

import fcntl
import multiprocessing
import os
import random
import shutil
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.support import models

KILLS = int(os.environ.get("HF_TSV_KILLS", "2"))


def weights(folder: Path) -> dict[str, bytes]:
    """Every file that doesn't tell how long the run took."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: b"" if path.name in ("hf_tsv.json", "README.md") else path.read_bytes() for name, path in files.items()
    }


def command(*words: str) -> None:
    """What runs in a process of its own, forked from one that has imported everything."""
    from hf_tsv.cli import app

    app(list(words))


def await_work(lock: Path, process: BaseProcess) -> None:
    """Until the process has begun: it holds the lock then."""
    while process.is_alive():
        time.sleep(0.01)
        if not lock.exists():
            continue
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return


@pytest.mark.slow
@pytest.mark.timeout(300 + 60 * KILLS)
@pytest.mark.parametrize("verb", ["merge", "compress"])
def test_kills_at_random_moments_do_not_show_in_the_bytes(verb: str, tmp_path: Path) -> None:
    recipe = models.recipe(models.zoo(models.bert_wide, tmp_path, tasks=2), tasks=2)
    out, staging = tmp_path / "out", tmp_path / ".out.hf_tsv"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hf_tsv.verbs.merge", "hf_tsv.kept.adapters", "peft", "transformers"])

    def started() -> BaseProcess:
        process = context.Process(target=command, args=(verb, str(recipe), str(out), "--quiet", "--workers", "2"))
        process.start()
        await_work(staging / "lock", process)
        return process

    def finished() -> None:
        process = started()
        process.join()
        assert process.exitcode == 0

    started().join()  # the first has all to import
    shutil.rmtree(out)
    since = time.monotonic()
    finished()
    lasts, whole = time.monotonic() - since, weights(out)
    shutil.rmtree(out)
    moments, kept, complete = random.Random(0), [0], 0
    for _ in range(KILLS):
        process = started()
        time.sleep(moments.uniform(0, lasts))
        process.kill()
        process.join()
        if out.exists():
            assert weights(out) == whole
            shutil.rmtree(out)
            shutil.rmtree(staging, ignore_errors=True)
            kept, complete = [0], complete + 1
        elif (staging / "journal.jsonl").exists():
            kept.append((staging / "journal.jsonl").read_bytes().count(b"\n"))
            assert kept == sorted(kept), "work was lost"
    finished()
    assert weights(out) == whole
    print(f"{verb}: {KILLS} kills in {lasts:.1f} s of work, {complete} of them after the output was there")
