"""`hf-tsv schema`: print the JSON schemas of files in an output."""

import json
from enum import StrEnum
from typing import Annotated

import typer

from hf_tsv.cli._told import told


class SchemaName(StrEnum):
    """The files that have a schema."""

    record = "record"
    evaluation = "evaluation"


@told
def schema(
    name: Annotated[
        SchemaName,
        typer.Argument(
            metavar="[record|evaluation]",
            help="record: hf_tsv.json. evaluation: a line of evaluation.jsonl.",
            show_default=True,
        ),
    ] = SchemaName.record,
) -> None:
    """Print the JSON schema of a file that hf-tsv writes."""
    from hf_tsv.record import json_schema

    print(json.dumps(json_schema(name), indent=1, ensure_ascii=False))
