"""A lock is held by one process at a time, and given back however that one ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_tsv.errors import OutputError
from hf_tsv.files import locks
from hf_tsv.files.locks import is_locked, lock

IMPORTS = "import sys; from pathlib import Path; from hf_tsv.files.locks import is_locked, lock\n"
HOLD = IMPORTS + "print(lock(Path(sys.argv[1]))); input()"
LOOK = IMPORTS + "while True: is_locked(Path(sys.argv[1]))"


def test_a_lock_is_held_once_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    assert not path.exists(), "a look creates nothing"
    first = lock(path)
    assert first is not None
    assert is_locked(path)
    assert lock(path) is None
    os.close(first)
    assert not is_locked(path)
    second = lock(path)
    assert second is not None
    os.close(second)


def test_a_killed_process_gives_its_lock_back(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline().strip().isdigit()
    assert is_locked(path)
    assert lock(path) is None
    holder.kill()
    holder.communicate()
    assert not is_locked(path)
    descriptor = lock(path)
    assert descriptor is not None
    os.close(descriptor)


@pytest.mark.parametrize("is_made_again", [False, True])
def test_a_lock_on_a_file_that_was_removed_in_between_is_none(
    is_made_again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the file was opened another run ends and removes its folder, and perhaps a third begins."""
    path = tmp_path / "lock"
    original = locks.lock_descriptor

    def replaced(descriptor: int, *, blocking: bool) -> bool:
        path.unlink()
        if is_made_again:
            path.touch()
        return original(descriptor, blocking=blocking)

    monkeypatch.setattr(locks, "lock_descriptor", replaced)
    assert lock(path) is None
    monkeypatch.undo()
    assert not is_locked(path)


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(descriptor: int, *, blocking: bool) -> bool:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks, "lock_descriptor", refused)
    with pytest.raises(OutputError, match="lock: its file system has no locks: No locks available. Choose another"):
        lock(tmp_path / "lock")


def test_a_moments_look_keeps_nobody_from_locking(tmp_path: Path) -> None:
    """Many look at a lock while it is taken and given back again and again."""
    path = tmp_path / "lock"
    watchers = [subprocess.Popen([sys.executable, "-c", LOOK, str(path)]) for _ in range(2)]
    try:
        for _ in range(100):
            descriptor = lock(path)
            assert descriptor is not None
            os.close(descriptor)
    finally:
        for watcher in watchers:
            watcher.kill()
            watcher.wait()
