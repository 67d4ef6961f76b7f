"""`hf-tsv compress`: an adapter for every fine-tuned model."""

from typing import Any

from hf_tsv.cli._flags import with_flags
from hf_tsv.cli._options import Keep, OutFolder, PushOptions, RecipeFile, RunOptions, Talk
from hf_tsv.cli._told import err, out, told
from hf_tsv.cli.merge import run_job
from hf_tsv.errors import size, some
from hf_tsv.job.options import Access, AdapterOptions
from hf_tsv.lora.formats import FORMATS


@told
@with_flags
def compress(
    recipe: RecipeFile,
    adapters: AdapterOptions,
    options: RunOptions,
    push: PushOptions,
    access: Access,
    talk: Talk,
    out_: OutFolder = None,
    keep: Keep = None,
) -> None:
    """Compress every model of a recipe into a PEFT adapter, and check that PEFT loads it as meant. A run that was
    stopped goes on where it was."""
    from hf_tsv.verbs.compress import compression_of

    compression = compression_of(recipe, keep, adapters)
    run_job(compression, push.out_folder(out_), options, push, access, talk, label="Compressing")


def show_adapters(record: dict[str, Any]) -> None:
    """A table of the adapters that were written."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("task")
    table.add_column("adapter")
    for column in ("bytes", "of the checkpoint", "energy kept", "largest error", "left out"):
        table.add_column(column, justify="right")
    for task, profiles in record["tasks"].items():
        for profile, facts in profiles.items():
            tensor, error = max(facts["errors"].items(), key=lambda item: item[1], default=("", 0.0))
            cells = (
                task,
                profile,
                size(facts["bytes"]),
                f"{facts['bytes'] / record['checkpoint_bytes'][task]:.1%}",
                f"{facts['energy']:.1%}",
                f"{error:.2f} {tensor}",
                f"{facts['left_out_share']:.2%} of the change",
            )
            table.add_row(*map(escape, cells))
    out.print(table)
    for why, names in _left_out(record).items():
        err.print(f"Note: PEFT doesn't load {some(sorted(names))}: {why}", style="yellow", markup=False)


def _left_out(record: dict[str, Any]) -> dict[str, set[str]]:
    """By reason, the tensors that PEFT doesn't load of formats that are meant to hold all; of every task together."""
    names: dict[str, set[str]] = {}
    for profiles in record["tasks"].values():
        for profile, facts in profiles.items():
            if FORMATS[profile].is_complete:
                for name, why in facts["left_out"].items():
                    names.setdefault(why, set()).add(name)
    return names
