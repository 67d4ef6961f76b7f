"""`hf-tsv verify`: check that an output is still what was made from its sources."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from hf_tsv.cli._flags import with_flags
from hf_tsv.cli._options import Talk
from hf_tsv.cli._told import WorkProgress, err, told
from hf_tsv.job.options import Access, Limits, option


@dataclass(frozen=True)
class Sample:
    """The sample of tensors to merge again."""

    sample: int = option(8, "How many tensors to merge again from the pinned sources.", least=0)
    all: bool = option(False, "Merge every tensor again.")
    seed: int = option(0, "Chooses the sample.")
    recipe: Path | None = option(
        None, "A copy of OUT/recipe.lock.yaml that names the sources where they are now.", metavar="FILE"
    )


@told
@with_flags
def verify(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that hf-tsv has written.", show_default=False)],
    sample: Sample,
    limits: Limits,
    access: Access,
    talk: Talk,
) -> None:
    """Compare every file of OUT with its record; merge a sample of its tensors again and compare them bit for bit."""
    from hf_tsv.hub import Hub
    from hf_tsv.verbs.verify import verify

    # Differences are results, not errors: all of them are shown, and the exit code reports that there are some.
    with WorkProgress("Verifying", quiet=talk.quiet) as progress:
        result = verify(
            out,
            limits,
            sample=None if sample.all else sample.sample,
            seed=sample.seed,
            recipe=sample.recipe,
            hub=Hub(token=access.token, cache_dir=access.cache_dir),
            progress=progress,
        )
    if talk.json:
        print(json.dumps({"out": str(out), **asdict(result)}))
        raise typer.Exit(result.exit_code)
    for line in result.notes:
        err.print(f"Note: {line}", style="yellow", markup=False)
    for line in result.not_checked:
        err.print(f"Not checked: {line}", style="yellow", markup=False)
    for line in result.differs:
        err.print(line, style="red", markup=False)
    outcome = f"{len(result.differs)} differ" if result.differs else "all as recorded"
    print(
        f"{out}: {result.tensors} tensors and {result.files} other files read,"
        f" {len(result.recomputed)} tensors merged again: {outcome}"
    )
    raise typer.Exit(result.exit_code)
