"""The record of a run, `hf_tsv.json`: what was made of what, tensor by tensor. Cards and reports read nothing else."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_tsv.errors import OutputError
from hf_tsv.files.disk import write_text
from hf_tsv.files.names import RECORD_FILE

FORMAT = 1


def write_record(record: Mapping[str, Any], folder: Path) -> None:
    write_text(folder / RECORD_FILE, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """The record in an output folder.

    Raises:
        OutputError: there is none, or it is none.
    """
    try:
        record = json.loads((folder / RECORD_FILE).read_text("utf-8"))
    except OSError:
        raise OutputError(f"{folder}: holds no {RECORD_FILE}, expected an output of hf-tsv. Choose another") from None
    except (ValueError, RecursionError) as error:
        raise OutputError(f"{folder / RECORD_FILE}: can't be read ({error}). Make the output again") from None
    if not isinstance(record, dict):
        raise OutputError(f"{folder / RECORD_FILE}: holds no record. Make the output again")
    return record
