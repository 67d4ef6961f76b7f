"""`hf-tsv inspect`: where tasks clash, before they are merged."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hf_tsv.cli._options import CacheDir, Json, Quiet, RecipeFile, Token, parse_size, recipe_from
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
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Tensors in work at once.")] = None,
    max_memory: Annotated[
        str | None, typer.Option("--max-memory", metavar="SIZE", help="For tensors in work, such as 4GB.")
    ] = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what each fine-tune changed, and where they clash: spectra, interference, norms, signs; and advice."""
    memory = parse_size(max_memory, "--max-memory") if max_memory else None
    from hf_tsv import measuring
    from hf_tsv.hub import Hub
    from hf_tsv.inspection import print_tables, render_page, write_plots
    from hf_tsv.writers import write_text

    loaded, hub = recipe_from(recipe, None), Hub(token=token, cache_dir=cache_dir)
    with WorkProgress("Inspecting", quiet=quiet) as progress:
        summary = measuring.inspect(loaded, workers=workers, max_memory=memory, hub=hub, progress=progress)
    if html:
        write_text(html, render_page(summary))
    pictures = write_plots(summary, plots) if plots else []
    if json_:
        print(json.dumps(summary))
    else:
        print_tables(summary, out)
    for file in (*([html] if html else []), *pictures):
        err.print(f"Wrote {file}", markup=False)
