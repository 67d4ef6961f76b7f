"""`hf-tsv merge`: merge models."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hf_tsv.cli._flags import with_flags
from hf_tsv.cli._options import Keep, OutFolder, PushOptions, RecipeFile, RunOptions, Svd, Talk
from hf_tsv.cli._told import WorkProgress, err, kept_when_interrupted, told
from hf_tsv.cli._told import out as stdout
from hf_tsv.errors import counted, size, some
from hf_tsv.job.options import Access
from hf_tsv.lora.formats import FORMATS

if TYPE_CHECKING:
    from hf_tsv.recipe import Recipe
    from hf_tsv.record import AdaptersRecord, MergeRecord

Form = Annotated[
    Literal["recipe", "adapter"],
    typer.Option("--as", help="adapter: what the merge changes of the base, as one PEFT adapter."),
]


@dataclass(frozen=True)
class MergeOptions(RunOptions, Svd):
    """Options for merging a model."""


@told
@with_flags
def merge(
    recipe: RecipeFile,
    options: MergeOptions,
    push: PushOptions,
    access: Access,
    talk: Talk,
    out: OutFolder = None,
    as_: Form = "recipe",
    keep: Keep = None,
) -> None:
    """Merge models by a recipe into OUT, which transformers loads. An interrupted run resumes where it stopped."""
    if keep and as_ != "adapter":
        raise typer.BadParameter("needs --as adapter; in a recipe, it is a parameter of tsv_c", param_hint="--keep")
    from hf_tsv.linalg.ranks import parse_keep
    from hf_tsv.recipe import as_adapter_output

    loaded = options.recipe(recipe)
    if as_ == "adapter":
        loaded = as_adapter_output(loaded, parse_keep(keep) if keep else None)
    run_job(loaded, push.out_folder(out), options, push, access, talk, label="Merging")


def run_job(
    recipe: "Recipe", out: Path, options: RunOptions, push: PushOptions, access: Access, talk: Talk, *, label: str
) -> None:
    """Run a recipe and report the result; with --dry-run, report what would be done."""
    from huggingface_hub.utils import disable_progress_bars

    from hf_tsv.cli.push import show_preview
    from hf_tsv.hub import Hub
    from hf_tsv.job.job import Job
    from hf_tsv.job.preview import preview
    from hf_tsv.job.processes import Process

    pushing = push.pushing
    leads = not Process.launched().rank
    with (
        # Outermost, so that the bar has stopped when a message is printed.
        kept_when_interrupted(out, pushes=pushing is not None),
        WorkProgress(label, quiet=talk.quiet or not leads) as progress,
    ):
        job = Job(recipe, out, options, pushing, Hub(token=access.token, cache_dir=access.cache_dir), progress)
        if options.dry_run:
            return show_preview(preview(job))
        disable_progress_bars()  # huggingface_hub's own bars would be drawn over ours
        record = job.run()
    if not leads:  # only the first process reports
        return None
    if talk.json:
        print(json.dumps(as_data(record, out)))
        return None
    for warning in record.warnings:
        err.print(f"Note: {warning}", style="yellow", markup=False)
    if record.kind == "adapters":
        show_adapters(record)
    elif not talk.quiet:
        _show_model(record)
    for pushed in record.pushed:
        err.print(f"Pushed to {pushed.url}", markup=False)
    print(out)
    return None


def as_data(record: "MergeRecord | AdaptersRecord", folder: Path) -> dict[str, Any]:
    """Return the data that --json prints: the record as in its file, the output folder, and the pushes."""
    from hf_tsv.record import to_data

    data = {"out": str(folder), **to_data(record)}
    # The file doesn't contain the pushes: it was complete before them.
    if record.pushed:
        data["pushed"] = [asdict(one) for one in record.pushed]
    return data


def _show_model(record: "MergeRecord") -> None:
    """Print the merged model's size, that of the tasks' masks or adapters, and what full checkpoints would take."""
    written = record.bytes.written
    merged = counted(len(record.sources) - 1, "model")
    err.print(f"Merged {merged} in {record.seconds:.0f} s, {size(written)}.")
    if record.masks:
        what = "masks"
        sizes = [mask.bytes for mask in record.masks.tasks.values()]
    else:
        what = "adapters"
        sizes = []
        for profiles in record.adapters.values():
            sizes.append(sum(report.bytes for report in profiles.values()))
    # Compared with one checkpoint per task, which masks and adapters replace.
    if sizes:
        beside = sum(sizes)
        err.print(
            f"With the {what} of {counted(len(sizes), 'task')} ({size(beside)}) {size(written + beside)}, instead of"
            f" {size(written * len(sizes))} for a checkpoint each."
        )


def show_adapters(record: "AdaptersRecord") -> None:
    """Print a table of the adapters that were written."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("task")
    table.add_column("adapter")
    for column in ("bytes", "of the checkpoint", "energy kept", "largest error", "left out"):
        table.add_column(column, justify="right")
    left_out: dict[str, set[str]] = {}  # reason to tensors, of all tasks together
    for task, profiles in record.adapters.items():
        for profile, report in profiles.items():
            # Formats that leave out kinds of modules by design need no note on each tensor.
            if FORMATS[profile].is_complete:
                for name, why in report.left_out.items():
                    left_out.setdefault(why, set()).add(name)
            # The matrix with the largest error is more informative than a mean.
            tensor, error = max(report.errors.items(), key=lambda item: item[1], default=("", 0.0))
            cells = (
                task,
                profile,
                size(report.bytes),
                f"{report.bytes / record.checkpoint_bytes[task]:.1%}",
                f"{report.energy:.1%}",
                f"{error:.2f} {tensor}",
                f"{report.left_out_share:.2%} of the change",
            )
            table.add_row(*map(escape, cells))
    stdout.print(table)
    for why, names in left_out.items():
        err.print(f"Note: PEFT doesn't load {some(sorted(names))}: {why}", style="yellow", markup=False)
