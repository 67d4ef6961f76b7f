"""`hf-tsv verify`: whether an output still is what was made of its sources."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_tsv.cli._options import CacheDir, Device, Json, MaxMemory, Quiet, Token, Workers, memory_of
from hf_tsv.cli._told import WorkProgress, err, told

if TYPE_CHECKING:
    from hf_tsv.verbs.verify import Verification


@told
def verify(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that hf-tsv has written.", show_default=False)],
    sample: Annotated[
        int, typer.Option("--sample", min=0, help="How many tensors to merge again from the pinned sources.")
    ] = 8,
    all_: Annotated[bool, typer.Option("--all", help="Merge every tensor again.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Chooses the sample.")] = 0,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", help="A copy of OUT/recipe.lock.yaml that names the sources where they are now."),
    ] = None,
    workers: Workers = None,
    max_memory: MaxMemory = None,
    device: Device = "cpu",
    token: Token = None,
    cache_dir: CacheDir = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare every file of OUT with its record, and a sample of its tensors, merged again, bit for bit."""
    memory = memory_of(max_memory)
    from hf_tsv.hub import Hub
    from hf_tsv.merging.resources import Resources, device_named
    from hf_tsv.verbs.verify import verify

    resources = Resources.of(workers, memory, device=device_named(device))
    with WorkProgress("Verifying", quiet=quiet) as progress:
        found = verify(
            out,
            sample=None if all_ else sample,
            seed=seed,
            recipe=recipe,
            resources=resources,
            hub=Hub(token=token, cache_dir=cache_dir),
            progress=progress,
        )
    if json_:
        print(json.dumps({"out": str(out), **asdict(found)}))
    else:
        _show(out, found)
    raise typer.Exit(found.exit_code)


def _show(out: Path, found: "Verification") -> None:
    for line in found.notes:
        err.print(f"Note: {line}", style="yellow", markup=False)
    for line in found.not_checked:
        err.print(f"Not checked: {line}", style="yellow", markup=False)
    for line in found.differs:
        err.print(line, style="red", markup=False)
    counts = f"{found.tensors} tensors and {found.files} other files read, {len(found.recomputed)} tensors merged again"
    print(f"{out}: {counts}: {f'{len(found.differs)} differ' if found.differs else 'all as recorded'}")
