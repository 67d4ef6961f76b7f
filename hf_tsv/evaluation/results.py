"""A file of known scores, so that none is computed twice: one line each, keyed by a hash of all it depends on."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hf_tsv.errors import OutputError
from hf_tsv.evaluation.scoring import Score
from hf_tsv.recipe import wrong_value
from hf_tsv.record import ScoreLine


class Results:
    """A file of scores, to which each new one is appended as soon as it is known.

    Raises:
        OutputError: the file can't be read, or a line isn't a score of this version; names the line and the field.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = {line.key: Score(line.score, line.examples) for line in _read(path)}

    def get(self, key: str) -> Score | None:
        return self._known.get(key)

    def put(self, line: ScoreLine) -> None:
        """Append a score.

        Raises:
            OutputError: the file can't be written.
        """
        self._known[line.key] = Score(line.score, line.examples)
        # Written by json, because pydantic writes an infinite perplexity as null.
        text = json.dumps(line.model_dump()) + "\n"
        try:
            with self._path.open("ab+") as file:
                if file.tell():  # the position is the end of the file: 0 if it is empty
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        text = "\n" + text  # keeps a line that an interruption cut short separate
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self._path}: can't be written: {error.strerror}.") from error


def key_of(depends_on: Mapping[str, Any]) -> str:
    """Return the hash of everything that a score depends on."""
    text = json.dumps(depends_on, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path) -> list[ScoreLine]:
    """Read the lines of a file; none if it doesn't exist.

    Raises:
        OutputError: the file can't be read, or a line isn't a score; names the line and the field.
    """
    try:
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{path}: can't be read as scores of an earlier evaluation: {error}") from error
    scores: list[ScoreLine] = []
    for number, line in enumerate(lines, start=1):
        # A line without its closing brace was cut short by an interruption: it isn't a score, but not an error either.
        if not line.rstrip().endswith("}"):
            continue
        try:
            scores.append(ScoreLine.model_validate_json(line))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"]))
            if first["type"] == "json_invalid":
                problem = f"not valid JSON ({first['ctx']['error']})."
            elif first["type"] == "extra_forbidden":
                problem = f"unknown field '{field}', perhaps of another version of hf_tsv."
            elif first["type"] == "missing":
                problem = f"the field '{field}' is missing."
            else:
                label = f"'{field}'" if field else "the line"
                problem = wrong_value(label, [first])
            way_out = "Correct it, or delete the line: its score is then computed again"
            raise OutputError(f"{path}:{number}: {problem} {way_out}.") from None
    return scores
