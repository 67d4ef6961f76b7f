"""`hf-tsv tune`: choose the scales of a merge, or the lambdas of its masks, on validation data."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from hf_tsv.cli._options import CacheDir, Json, Quiet, RecipeFile, Token, Workers
from hf_tsv.cli._told import WorkProgress, interrupted, out, told


@told
def tune(
    recipe: RecipeFile,
    tuned: Annotated[Path, typer.Argument(metavar="TUNED", help="The recipe to write.", show_default=False)],
    suite: Annotated[Path, typer.Option("--suite", metavar="FILE", help="Tasks on validation data: a YAML file.")],
    by: Annotated[
        Literal["all", "kind", "type"],
        typer.Option("--by", help="What gets its own scale: each module kind or type, or all one."),
    ] = "kind",
    scales: Annotated[
        str, typer.Option("--scales", metavar="LIST", help="Scales to try.")
    ] = "0.4,0.6,0.8,1.0,1.2,1.4,1.6",
    lambdas: Annotated[
        str, typer.Option("--lambdas", metavar="LIST", help="Lambdas to try for tall_mask's masks.")
    ] = "0.2,0.3,0.4,0.5,0.6",
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; a GPU if there is one.")] = None,
    workers: Workers = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Choose the scales of a merge, or the lambdas of tall_mask, by a suite's scores, and write the recipe with them.
    The merge is computed once. Scores go into TUNED.jsonl: an interrupted search resumes where it was.
    """
    grid, lambda_grid = _numbers(scales, "--scales"), _numbers(lambdas, "--lambdas")
    from hf_tsv.evaluation.options import Search
    from hf_tsv.files.disk import write_text
    from hf_tsv.hub import Hub
    from hf_tsv.verbs.tune import tune as search_scales

    hub = Hub(token=token, cache_dir=cache_dir)
    try:
        with WorkProgress("Tuning", quiet=quiet) as progress:
            outcome = search_scales(
                recipe,
                suite,
                Search(by, grid, lambda_grid),
                results=tuned.with_name(f"{tuned.name}.jsonl"),
                device=device,
                workers=workers,
                hub=hub,
                progress=progress,
            )
    except KeyboardInterrupt:
        interrupted("Interrupted. Complete scores are saved; run the same command again to resume.")
    write_text(tuned, outcome.text)
    if json_:
        print(json.dumps({"out": str(tuned), **asdict(outcome)}))
        return
    for group, scale in outcome.scales.items():
        out.print(f"{group}  {scale:g}", markup=False)
    for task, lam in outcome.lambdas.items():
        out.print(f"lambda of {task}  {lam:g}", markup=False)
    out.print(
        f"\n{outcome.relative:.2%} of the fine-tunes' scores, {outcome.untuned:.2%} at scale 1; {outcome.tried} choices"
        " tried.",
        markup=False,
    )
    print(tuned)


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 0.8,1,1.2", param_hint=option) from None
