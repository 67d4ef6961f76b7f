"""Writing, reading and checking `hf_tsv.json`, a file that anyone may have edited."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json

from hf_tsv._version import __version__
from hf_tsv.errors import OutputError, counted
from hf_tsv.files.disk import write_text
from hf_tsv.files.names import RECORD_FILE
from hf_tsv.record.evaluation import ScoreLine
from hf_tsv.record.record import FORMAT, AdaptersRecord, MergeRecord, Record

MAX_BYTES = 2**29  # a record of a million tensors takes less
WAY_OUT = "Make the output again, or download it again"
_RECORD: TypeAdapter[Record] = TypeAdapter(Record)
# Wording of some of pydantic's errors for people who don't know pydantic.
_WORDS = {
    "missing": "this field is missing",
    "extra_forbidden": "there is no such field",
    "union_tag_not_found": "this field is missing",
}


def to_text(record: Record) -> str:
    """Return the record as JSON, without the fields that have their default value."""
    return record.model_dump_json(indent=1, exclude_defaults=True) + "\n"


def to_data(record: Record) -> dict[str, Any]:
    """Return the record as plain data, with the content of its file."""
    return record.model_dump(mode="json", exclude_defaults=True)


def write_record(record: Record, folder: Path) -> None:
    """Write a record into its output folder.

    Raises:
        ResourceError: the disk is full.
        OutputError: the file can't be written.
    """
    write_text(folder / RECORD_FILE, to_text(record))


def read_record(folder: Path) -> Record:
    """Read the record in an output folder.

    Raises:
        OutputError: the record is missing, malformed, or of another format.
    """
    path = folder / RECORD_FILE
    try:
        # Checked first, because a stranger's file may be larger than memory.
        too_large = path.stat().st_size > MAX_BYTES
        content = b"" if too_large else path.read_bytes()
    except OSError as error:
        if path.exists():
            raise OutputError(f"{path}: can't be read ({error.strerror})") from None
        raise OutputError(f"{folder}: has no {RECORD_FILE}, so it is not an output of hf-tsv. Name another") from None
    if too_large:
        raise OutputError(f"{path}: is larger than {MAX_BYTES >> 20} MiB, so it is not a record. {WAY_OUT}")
    try:
        # Pydantic's parser has a limit on depth, which Python's lacks.
        return _RECORD.validate_json(content)
    except ValidationError as error:
        # Only the errors' places and kinds: a stranger's values may be long.
        mistakes = error.errors(include_url=False, include_context=False, include_input=False)
        problem = _other_format(content) or _first_of(mistakes)
    # Outside the handler, so that pydantic's error, with all its values, isn't printed as this one's context.
    raise OutputError(f"{path}: {problem}")


def read_merge_record(folder: Path) -> MergeRecord:
    """Read the record of a merged model. Raises the errors of `read_record`, and OutputError for another kind."""
    record = read_record(folder)
    if not isinstance(record, MergeRecord):
        raise OutputError(f"{folder / RECORD_FILE}: kind: expected a merge but got {record.kind}. Choose another path")
    return record


def read_adapters_record(folder: Path) -> AdaptersRecord:
    """Read the record of adapters. Raises the errors of `read_record`, and OutputError for another kind."""
    record = read_record(folder)
    if not isinstance(record, AdaptersRecord):
        raise OutputError(f"{folder / RECORD_FILE}: kind: expected adapters but got {record.kind}. Choose another path")
    return record


def json_schema(what: str) -> dict[str, Any]:
    """Return the JSON schema of `record` (hf_tsv.json) or `evaluation` (a line of evaluation.jsonl).

    Raises:
        KeyError: there is no such schema.
    """
    adapter: TypeAdapter[Any] = SCHEMAS[what]
    schema = adapter.json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


# The files that other programs may read, by the word that `json_schema` takes.
SCHEMAS: dict[str, TypeAdapter[Any]] = {"record": _RECORD, "evaluation": TypeAdapter(ScoreLine)}


def _other_format(content: bytes) -> str:
    """A message if an invalid record has another version's format, with the way out; else empty."""
    try:
        # Parsed without the model, which knows only this version's format.
        data = from_json(content)
    except ValueError:
        return ""
    number = data.get("format") if isinstance(data, dict) else None
    if not isinstance(number, int) or isinstance(number, bool):
        return ""
    # Other numbers are an invalid field; one of thousands of digits couldn't even be printed.
    if number == FORMAT or not 0 < number < 1000:
        return ""
    if number > FORMAT:
        return f"is of format {number}, which this version ({__version__}) does not know. Install a newer hf-tsv"
    versions = data.get("versions")
    written = versions.get("hf_tsv") if isinstance(versions, dict) else None
    by = "an earlier hf-tsv"
    way_out = "Make the output again with this version"
    # People copy the command, and a stranger may have written the file: only what looks like a version goes into it.
    if isinstance(written, str) and re.fullmatch(r"\d+(\.\w+){0,4}", written):
        by = f"hf-tsv {written}"
        way_out += f", or read it with pip install hf-tsv=={written}"
    return f"was made by {by} as format {number}, and this version ({__version__}) reads format {FORMAT}. {way_out}"


def _first_of(mistakes: Sequence[ErrorDetails]) -> str:
    """The first mistake with the path of its field, and the number of other mistakes."""
    first = mistakes[0]
    if first["type"] == "json_invalid":
        return f"is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}. {WAY_OUT}"
    # The first entry of the location is the member of the union, which is the kind of record.
    place = []
    for entry in first["loc"][1:]:
        key = str(entry)
        # Keys are whatever the file says, even line breaks, and a message is one line.
        place.append(key if key.isprintable() else json.dumps(key))
    if first["type"].startswith("union_tag"):  # the union's tag is a field of the record
        place = ["kind"]
    problem = _WORDS.get(first["type"])
    if problem is None:
        problem = first["msg"][:1].lower() + first["msg"][1:]  # lower case, because it follows a colon
    if place:
        problem = f"{'.'.join(place)}: {problem}"
    if len(mistakes) > 1:
        problem += f" (and {counted(len(mistakes) - 1, 'more mistake')})"
    return f"{problem}. {WAY_OUT}"
