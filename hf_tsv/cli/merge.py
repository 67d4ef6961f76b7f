"""`hf-tsv merge`: the merged model."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hf_tsv.cli._flags import with_flags
from hf_tsv.cli._options import Keep, OutFolder, PushOptions, RecipeFile, RunOptions, Talk
from hf_tsv.cli._told import WorkProgress, err, kept_when_interrupted, told
from hf_tsv.errors import counted, size
from hf_tsv.job.options import Access

Form = Annotated[
    Literal["recipe", "adapter"],
    typer.Option("--as", help="adapter: what the merge changes of the base, as one PEFT adapter."),
]


@told
@with_flags
def merge(
    recipe: RecipeFile,
    options: RunOptions,
    push: PushOptions,
    access: Access,
    talk: Talk,
    out: OutFolder = None,
    as_: Form = "recipe",
    keep: Keep = None,
) -> None:
    """Merge models by a recipe into OUT, which transformers loads. A run that was stopped goes on where it was."""
    if keep and as_ != "adapter":
        raise typer.BadParameter("needs --as adapter; in a recipe, it is a parameter of tsv_c", param_hint="--keep")
    from hf_tsv.linalg.ranks import parse_keep
    from hf_tsv.recipe import as_adapter_output, load_recipe

    loaded = load_recipe(recipe)
    if as_ == "adapter":
        loaded = as_adapter_output(loaded, parse_keep(keep) if keep else None)
    run_job(loaded, push.out_folder(out), options, push, access, talk, label="Merging")


def run_job(
    recipe: Any, out: Path, options: RunOptions, push: PushOptions, access: Access, talk: Talk, *, label: str
) -> None:
    """Do what a recipe says and report it; with --dry-run, say what would be done."""
    from huggingface_hub.utils import disable_progress_bars

    from hf_tsv.cli.push import show_preview
    from hf_tsv.hub import Hub
    from hf_tsv.job.job import Job
    from hf_tsv.job.preview import preview
    from hf_tsv.job.processes import Process

    pushing = push.pushing
    leads = not Process.launched().rank
    with (
        kept_when_interrupted(out, pushes=pushing is not None),
        WorkProgress(label, quiet=talk.quiet or not leads) as progress,
    ):
        job = Job(recipe, out, options, pushing, Hub(token=access.token, cache_dir=access.cache_dir), progress)
        if options.dry_run:
            return show_preview(preview(job))
        disable_progress_bars()
        record = job.run()
    if leads:  # the first process speaks for all
        _show(record, out, talk)
    return None


def _show(record: dict[str, Any], out: Path, talk: Talk) -> None:
    from hf_tsv.cli.compress import show_adapters

    if talk.json:
        print(json.dumps({"out": str(out), **record}))
        return
    for warning in record["warnings"]:
        err.print(f"Note: {warning}", style="yellow", markup=False)
    if "tasks" in record:
        show_adapters(record)
    elif not talk.quiet:
        _show_model(record)
    for pushed in record.get("pushed", ()):
        err.print(f"Pushed to {pushed['url']}", markup=False)
    print(out)


def _show_model(record: dict[str, Any]) -> None:
    """What was merged, what lies beside it for single tasks, and what their checkpoints would take."""
    written = record["bytes"]["written"]
    merged = counted(len(record["sources"]) - 1, "model")
    err.print(f"Merged {merged} in {record['seconds']:.0f} s, {size(written)}.")
    beside, what = record.get("masks", {}).get("tasks", {}), "masks"
    if "adapters" in record:
        what = "adapters"
        for task, profiles in record["adapters"].items():
            beside[task] = {"bytes": sum(facts["bytes"] for facts in profiles.values())}
    if beside:
        nbytes = sum(facts["bytes"] for facts in beside.values())
        err.print(
            f"With the {what} of {len(beside)} tasks ({size(nbytes)}) {size(written + nbytes)}, instead of"
            f" {size(written * len(beside))} for a checkpoint each."
        )
