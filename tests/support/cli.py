"""Runs the command line in this process."""

from typer.testing import CliRunner, Result

from hf_tsv.cli import app


def run(*args: object) -> Result:
    """`hf-tsv` with these words: its exit code, stdout and stderr."""
    return CliRunner().invoke(app, [str(arg) for arg in args])
