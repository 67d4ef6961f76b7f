"""`hf-tsv merge`: the merged model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hf_tsv.cli._options import (
    CacheDir,
    CommitMessage,
    CreatePr,
    Device,
    DryRun,
    Json,
    License,
    MaxMemory,
    Overwrite,
    Private,
    PushToHub,
    Quiet,
    RecipeFile,
    Restart,
    ShardSize,
    Streamed,
    Svd,
    Token,
    Workers,
    memory_of,
    out_or_named,
    pushing_of,
    recipe_from,
)
from hf_tsv.cli._told import WorkProgress, err, kept_when_interrupted, told
from hf_tsv.errors import counted, size

if TYPE_CHECKING:
    from hf_tsv.record import MergeRecord


@told
def merge(
    recipe: RecipeFile,
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The output folder; pushing, its name by default.")
    ] = None,
    overwrite: Overwrite = False,
    restart: Restart = False,
    as_: Annotated[
        Literal["checkpoint", "adapter"],
        typer.Option("--as", help="adapter: what the merge changes of the base, for PEFT."),
    ] = "checkpoint",
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Of --as adapter; all there is unless given.")
    ] = None,
    dry_run: DryRun = False,
    stream: Streamed = False,
    push_to_hub: PushToHub = None,
    create_pr: CreatePr = False,
    private: Private = None,
    license_: License = None,
    commit_message: CommitMessage = None,
    svd: Svd = None,
    max_shard_size: ShardSize = "5GB",
    workers: Workers = None,
    max_memory: MaxMemory = None,
    device: Device = "cpu",
    token: Token = None,
    cache_dir: CacheDir = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Merge models by a recipe into OUT, which transformers loads. A run that was stopped goes on where it was."""
    if rank and as_ != "adapter":
        raise typer.BadParameter("is for --as adapter", param_hint="--rank")
    if as_ == "adapter" and device != "cpu":
        raise typer.BadParameter("is for checkpoints; adapters are made by the CPU", param_hint="--device")
    memory = memory_of(max_memory)
    from huggingface_hub.utils import disable_progress_bars

    from hf_tsv.cli.compress import as_data, show_adapters
    from hf_tsv.cli.push import preview
    from hf_tsv.hub import Hub
    from hf_tsv.job.preview import preview as preview_of
    from hf_tsv.job.processes import Process
    from hf_tsv.verbs.compress import merge_as_adapter
    from hf_tsv.verbs.merge import merge as run

    pushing = pushing_of(push_to_hub, create_pr, private, license_, commit_message)
    out = out_or_named(out, push_to_hub)
    loaded, hub = recipe_from(recipe, svd), Hub(token=token, cache_dir=cache_dir)
    if dry_run:
        return preview(
            preview_of(
                loaded,
                pushing,
                hub=hub,
                out=out,
                max_shard_size=max_shard_size,
                stream="none" if not stream else "tasks" if as_ == "adapter" else "all",
            )
        )
    disable_progress_bars()
    if as_ == "adapter":
        with kept_when_interrupted(out, pushes=pushing is not None), WorkProgress("Merging", quiet=quiet) as progress:
            adapters = merge_as_adapter(
                loaded,
                out,
                rank=rank,
                overwrite=overwrite,
                restart=restart,
                workers=workers,
                max_memory=memory,
                stream=stream,
                push_to_hub=pushing,
                hub=hub,
                progress=progress,
            )
        return show_adapters(adapters, out, json_=json_)
    leads = not Process.launched().rank
    with (
        kept_when_interrupted(out, pushes=pushing is not None),
        WorkProgress("Merging", quiet=quiet or not leads) as progress,
    ):
        record = run(
            loaded,
            out,
            overwrite=overwrite,
            restart=restart,
            max_shard_size=max_shard_size,
            workers=workers,
            max_memory=memory,
            device=device,
            stream=stream,
            push_to_hub=pushing,
            hub=hub,
            progress=progress,
        )
    if not leads:  # the first process speaks for all
        return None
    if json_:
        print(json.dumps(as_data(record, out)))
        return None
    for warning in record.warnings:
        err.print(f"Note: {warning}", style="yellow", markup=False)
    if not quiet:
        merged = counted(len(record.sources) - 1, "model")
        err.print(f"Merged {merged} in {record.seconds:.0f} s, {size(record.bytes.written)}.")
        _say_storage(record)
    for pushed in record.pushed:
        err.print(f"Pushed to {pushed.url}", markup=False)
    print(out)
    return None


def _say_storage(record: "MergeRecord") -> None:
    """What lies beside the merged model for single tasks, and what their checkpoints would take."""
    if record.masks:
        what = "masks"
        sizes = [mask.bytes for mask in record.masks.tasks.values()]
    else:
        what = "adapters"
        sizes = [sum(report.bytes for report in profiles.values()) for profiles in record.adapters.values()]
    if sizes:
        merged, beside = record.bytes.written, sum(sizes)
        err.print(
            f"With the {what} of {len(sizes)} tasks ({size(beside)}) {size(merged + beside)}, instead of"
            f" {size(merged * len(sizes))} for a checkpoint each."
        )
