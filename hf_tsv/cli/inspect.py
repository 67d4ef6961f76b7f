"""`hf-tsv inspect`: where tasks clash, before they are merged."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hf_tsv.cli._options import CacheDir, Json, MaxMemory, Quiet, RecipeFile, Token, Workers, memory_of, recipe_from
from hf_tsv.cli._told import WorkProgress, err, out, told


@told
def inspect(
    recipe: RecipeFile,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write it as one page that needs no network.")
    ] = None,
    plots: Annotated[
        Path | None, typer.Option("--plots", metavar="DIR", help="Write PNG pictures. Needs hf-tsv\\[plots].")
    ] = None,
    workers: Workers = None,
    max_memory: MaxMemory = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what each fine-tune changed, and where they clash: spectra, interference, norms, signs; and advice."""
    memory = memory_of(max_memory)
    from hf_tsv.files.disk import write_text
    from hf_tsv.hub import Hub
    from hf_tsv.inspection import print_tables, render_page, write_plots
    from hf_tsv.verbs.inspect import inspect as look

    loaded, hub = recipe_from(recipe, None), Hub(token=token, cache_dir=cache_dir)
    with WorkProgress("Inspecting", quiet=quiet) as progress:
        summary = look(loaded, workers=workers, max_memory=memory, hub=hub, progress=progress)
    if html:
        write_text(html, render_page(summary))
    pictures = write_plots(summary, plots) if plots else []
    if json_:
        print(json.dumps(summary.plain()))
    else:
        print_tables(summary, out)
    for file in (*([html] if html else []), *pictures):
        err.print(f"Wrote {file}", markup=False)
