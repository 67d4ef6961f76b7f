"""`python -m examples.demo`: the whole way on real small models, offline."""

import json
from dataclasses import dataclass
from pathlib import Path

import typer

from examples.demo.compare import run
from hf_tsv.cli._flags import with_flags
from hf_tsv.cli._options import Talk
from hf_tsv.cli._told import WorkProgress, err, out, told
from hf_tsv.job.options import option


@dataclass(frozen=True)
class Place:
    """Where the demo works."""

    folder: Path = option(Path(".demo"), "Folder in which the models are made, and stay.")


@told
@with_flags
def demo(place: Place, talk: Talk) -> None:
    """Fine-tune a real encoder on real tasks, merge by four methods, and compare."""
    result = run(place.folder, err if talk.json else out, lambda label: WorkProgress(label, quiet=talk.quiet))
    if talk.json:
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    typer.run(demo)
