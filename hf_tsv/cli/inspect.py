"""`hf-tsv inspect`: show where tasks clash, before they are merged."""

import json
from dataclasses import dataclass
from pathlib import Path

from hf_tsv.cli._flags import flag_of, with_flags
from hf_tsv.cli._options import RecipeFile, Talk
from hf_tsv.cli._told import WorkProgress, err, out, told
from hf_tsv.job.options import Access, Limits, option


@dataclass(frozen=True)
class Reports:
    """Report files to write."""

    html: Path | None = option(None, "Write the report as one page that needs no network.", metavar="FILE")
    plots: Path | None = option(None, "Write PNG pictures. Needs hf-tsv\\[plots].", metavar="DIR")


@dataclass(frozen=True)
class CpuLimits:
    """Limits on the use of the machine. Task vectors are inspected on the CPU."""

    workers: int | None = flag_of(Limits, "workers")
    max_memory: int | str | None = flag_of(Limits, "max_memory")


@told
@with_flags
def inspect(recipe: RecipeFile, reports: Reports, limits: CpuLimits, access: Access, talk: Talk) -> None:
    """Show what each fine-tune changed and where they clash: spectra, interference, norms and signs; with advice."""
    from hf_tsv.files.disk import write_text
    from hf_tsv.hub import Hub
    from hf_tsv.inspection import print_tables, render_page, write_plots
    from hf_tsv.verbs.inspect import inspect as inspect_recipe

    hub = Hub(token=access.token, cache_dir=access.cache_dir)
    with WorkProgress("Inspecting", quiet=talk.quiet) as progress:
        summary = inspect_recipe(recipe, Limits(limits.workers, limits.max_memory), hub=hub, progress=progress)
    files = []
    if reports.html:
        write_text(reports.html, render_page(summary))
        files.append(reports.html)
    if reports.plots:
        files += write_plots(summary, reports.plots)
    # Lines about files go to stderr, so that stdout holds the report alone.
    if talk.json:
        print(json.dumps(summary.plain()))
    else:
        print_tables(summary, out)
    for file in files:
        err.print(f"Wrote {file}", markup=False)
