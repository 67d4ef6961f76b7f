"""`hf-tsv restore`: write one task's full checkpoint."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from hf_tsv.cli._flags import flag_of, with_flags
from hf_tsv.cli._options import Talk
from hf_tsv.cli._told import WorkProgress, told
from hf_tsv.job.options import Access, Options, option


@dataclass(frozen=True)
class Writing:
    """Options for writing the checkpoint."""

    base: str | None = option(None, "The base model, where it isn't where OUT says.", metavar="MODEL")
    max_shard_size: int | str = flag_of(Options, "max_shard_size")
    overwrite: bool = flag_of(Options, "overwrite")


@told
@with_flags
def restore(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that hf-tsv has written.", show_default=False)],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the checkpoint.", show_default=False)],
    task: Annotated[str, typer.Option("--task", help="Which of OUT's tasks.", show_default=False)],
    writing: Writing,
    access: Access,
    talk: Talk,
) -> None:
    """Write the full checkpoint of one task from its adapter or mask in OUT, including tensors that PEFT can't load."""
    from hf_tsv.hub import Hub
    from hf_tsv.record import to_data
    from hf_tsv.verbs.restore import restore

    # Of a job's options, only these two have an effect here.
    options = Options(overwrite=writing.overwrite, max_shard_size=writing.max_shard_size)
    hub = Hub(token=access.token, cache_dir=access.cache_dir)
    with WorkProgress("Restoring", quiet=talk.quiet) as progress:
        record = restore(out, task, folder, options, base=writing.base, hub=hub, progress=progress)
    print(json.dumps({"out": str(folder), **to_data(record)}) if talk.json else folder)
