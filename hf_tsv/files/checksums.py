"""SHA-256 of files."""

import hashlib
from collections.abc import Collection
from pathlib import Path

from hf_tsv.files.names import CARD_FILE, RECORD_FILE

_CHUNK = 2**22


def checksums(folder: Path, known: Collection[str]) -> dict[str, str]:
    """SHA-256 of every file by its path in the folder.

    Left out are cards, the record itself, and `known` files, whose tensors have checksums of their own.
    """
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    own_words = (RECORD_FILE, CARD_FILE)
    return {file: sha256_of(path) for file, path in found.items() if file not in known and path.name not in own_words}


def sha256_of(path: Path, start: int = 0, nbytes: int | None = None) -> str:
    """SHA-256 of a file's bytes from `start`, all that follow or so many.

    Raises:
        OSError: the file can't be read.
    """
    digest, left = hashlib.sha256(), path.stat().st_size - start if nbytes is None else nbytes
    with path.open("rb") as file:
        file.seek(start)
        while left and (chunk := file.read(min(left, _CHUNK))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()
