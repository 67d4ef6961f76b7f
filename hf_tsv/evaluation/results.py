"""Scores that are kept, so that none is computed twice: one line each, under a hash of all that it depends on."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from hf_tsv.errors import OutputError
from hf_tsv.evaluation.scoring import Score
from hf_tsv.record import ScoreLine


class Results:
    """A file of scores, to which each new one is appended as soon as it is known."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _read(path)

    def get(self, key: str) -> Score | None:
        return self._known.get(key)

    def put(self, scored: ScoreLine) -> None:
        """Keep a score.

        Raises:
            OutputError: the file can't be written.
        """
        self._known[scored.key] = Score(scored.score, scored.examples)
        line = json.dumps(scored.model_dump()) + "\n"
        try:
            with self._path.open("ab+") as file:
                if file.tell() and not _ends_a_line(file):
                    line = "\n" + line  # what an interruption cut short stays a line of its own
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self._path}: can't be written: {error.strerror}.") from error


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def key_of(depends_on: Mapping[str, Any]) -> str:
    """The hash of what a score depends on."""
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, Score]:
    """The scores in a file, without lines that an interruption cut short."""
    known: dict[str, Score] = {}
    try:
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{path}: can't be read, expected scores that an earlier evaluation kept: {error}") from error
    for line in lines:
        try:
            scored = ScoreLine.model_validate_json(line)
        except ValidationError:
            continue
        known[scored.key] = Score(scored.score, scored.examples)
    return known
