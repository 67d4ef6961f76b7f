"""`hf-tsv restore`: one task's full checkpoint."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hf_tsv.cli._options import CacheDir, Json, Overwrite, Quiet, ShardSize, Token
from hf_tsv.cli._told import WorkProgress, told


@told
def restore(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that hf-tsv has written.", show_default=False)],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the checkpoint goes.", show_default=False)],
    task: Annotated[str, typer.Option("--task", help="Which of OUT's tasks.", show_default=False)],
    base: Annotated[
        str | None, typer.Option("--base", help="The base model, where it isn't found as OUT names it.")
    ] = None,
    max_shard_size: ShardSize = "5GB",
    overwrite: Overwrite = False,
    token: Token = None,
    cache_dir: CacheDir = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the checkpoint of one task from its adapter in OUT, with what PEFT can't load."""
    from hf_tsv.hub import Hub
    from hf_tsv.record import to_data
    from hf_tsv.verbs.restore import restore

    hub = Hub(token=token, cache_dir=cache_dir)
    with WorkProgress("Restoring", quiet=quiet) as progress:
        record = restore(
            out,
            task,
            folder,
            base=base,
            max_shard_size=max_shard_size,
            overwrite=overwrite,
            hub=hub,
            progress=progress,
        )
    print(json.dumps({"out": str(folder), **to_data(record)}) if json_ else folder)
