"""Runs commands on a file system of a few megabytes of its own, which gets full at chosen moments.

`unshare -rm python -m tests.support.small_disk VERB RECIPE RESULTS`: a tmpfs is mounted on /mnt, where only this
process and its children see it. What happened goes to RESULTS as JSON.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from hf_tsv.checkpoints import writer as writers
from hf_tsv.staging import journal
from tests.support.cli import run

DISK, SIZE = Path("/mnt"), 24 * 2**20
BALLAST = DISK / "ballast"
WRITES: dict[str, tuple[Any, str]] = {  # every way in which a run takes room
    "laying out a file": (writers, "_reserve"),
    "writing the journal": (journal.Journal, "_append"),
    "copying a file": (shutil, "copyfile"),
    "writing a small file": (Path, "write_text"),
}


def fill() -> None:
    """Leave no byte."""
    with BALLAST.open("ab", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while file.write(b"\0" * size) == size:
                    pass
            except OSError:
                continue


@contextmanager
def full_before(owner: Any, name: str, time: int) -> Iterator[list[int]]:
    """Fill the disk before a function is called for the so-and-so-many-th time; the calls."""
    original: Callable[..., Any] = getattr(owner, name)
    calls: list[int] = []

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == time:
            fill()
        return original(*arguments, **options)

    setattr(owner, name, call)
    try:
        yield calls
    finally:
        setattr(owner, name, original)


def files(out: Path) -> dict[str, str]:
    """Digest of every file that doesn't tell how long the run took."""
    found = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if path.is_file()}
    own_words = ("hf_tsv.json", "README.md")
    return {name: "" if p.name in own_words else sha256(p.read_bytes()).hexdigest() for name, p in found.items()}


def main(verb: str, recipe: str, results: str) -> None:
    """The command, with the disk full before each of its writes; each time the same command after room was made."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(DISK)], check=True)
    out = DISK / "out"
    command = [verb, recipe, out, "-q", "--workers", "1"]
    with ExitStack() as counting:
        counts = {what: counting.enter_context(full_before(*write, 0)) for what, write in WRITES.items()}
        run(*command)
    found: dict[str, Any] = {"whole": files(out)}
    for what, calls in counts.items():
        for time in sorted({1, 2, len(calls)} & set(range(1, len(calls) + 1))):
            shutil.rmtree(out)
            with full_before(*WRITES[what], time):
                first = run(*command)
            there = out.exists()
            BALLAST.unlink(missing_ok=True)
            again = run(*command)
            found[f"{what}, {time}"] = {
                "codes": [first.exit_code, again.exit_code],
                "told": f"{first.stderr}{first.exception!r} {again.stderr}{again.exception!r}",
                "there": there,
                "files": files(out),
            }
    Path(results).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
