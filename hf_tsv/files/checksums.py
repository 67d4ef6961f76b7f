"""SHA-256 of files."""

import hashlib
from collections.abc import Collection
from pathlib import Path

from hf_tsv.files.names import CARD_FILE, RECORD_FILE

_CHUNK = 2**22  # bytes read at a time


def checksums(folder: Path, known: Collection[str]) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder and its subfolders, by relative path.

    Cards and the record are left out, because they are written later. So are the files whose relative paths are in
    `known`: their tensors have checksums of their own.
    """
    digests: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in known and path.name not in (RECORD_FILE, CARD_FILE):
            digests[name] = sha256_of(path)
    return digests


def sha256_of(path: Path, start: int = 0, nbytes: int | None = None) -> str:
    """Return the SHA-256 of a file's bytes from `start`: `nbytes` of them, or all the rest.

    Raises:
        OSError: the file can't be read.
    """
    digest = hashlib.sha256()
    left = path.stat().st_size - start if nbytes is None else nbytes
    with path.open("rb") as file:
        file.seek(start)
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                break  # the file has fewer bytes than that
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()
