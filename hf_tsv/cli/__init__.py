"""`hf-tsv`: one file per command. Torch is imported inside the commands, so that `--help` answers at once."""

import sys
from typing import Annotated

import typer

from hf_tsv._version import __version__
from hf_tsv.cli import card, compress, eval, inspect, merge, methods, plan, push, recipes, restore, schema, tune, verify
from hf_tsv.cli._malloc import reuse_freed_memory

app = typer.Typer(
    name="hf-tsv",
    help="Merge and compress fine-tunes of one base model from the Hugging Face Hub.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Results go to stdout, messages to stderr. Exit codes: 0 done, 1 an error with a message, 2 usage, 3 the Hub"
    " or the network, 4 disk or memory, 130 interrupted.",
)
# --help lists the commands in this order: first the usual way from a recipe to the Hub.
app.command()(plan.plan)
app.command()(merge.merge)
app.command()(compress.compress)
app.command()(push.push)
app.command()(card.card)
app.command()(restore.restore)
app.command()(verify.verify)
app.command()(inspect.inspect)
app.command("eval", epilog=eval.EPILOG)(eval.evaluate)
app.command()(tune.tune)
app.command()(methods.methods)
app.command()(recipes.recipes)
app.command()(schema.schema)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"hf-tsv {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run the console script."""
    reuse_freed_memory()
    sys.exit(app())
