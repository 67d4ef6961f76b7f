"""`python -m examples.demo`: the whole way on real small models, offline."""

import json
from pathlib import Path
from typing import Annotated

import typer

from examples.demo.compare import run
from hf_tsv.cli._options import Json, Quiet
from hf_tsv.cli._told import WorkProgress, err, out, told


@told
def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where the models are made and kept.")] = Path(".demo"),
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a real encoder on real tasks, merge by four methods, and compare."""
    result = run(folder, err if json_ else out, lambda label: WorkProgress(label, quiet=quiet))
    if json_:
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    typer.run(demo)
