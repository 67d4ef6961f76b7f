"""`hf-tsv tune`: the scales of a merge, or the lambdas of its masks, chosen on validation data."""

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
        Literal["all", "kind", "type"], typer.Option("--by", help="What has a scale of its own: module kind or type.")
    ] = "kind",
    scales: Annotated[
        str, typer.Option("--scales", metavar="LIST", help="What is tried.")
    ] = "0.4,0.6,0.8,1.0,1.2,1.4,1.6",
    lambdas: Annotated[
        str, typer.Option("--lambdas", metavar="LIST", help="What is tried as lambda of tall_mask's masks.")
    ] = "0.2,0.3,0.4,0.5,0.6",
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; a GPU if there is one.")] = None,
    workers: Workers = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Choose the scales of a merge, or the lambdas of tall_mask, by a suite's scores, and write the recipe with them.
    The merge is computed once. Scores are kept in TUNED.jsonl: what was stopped goes on where it was.
    """
    grid, lambda_grid = _numbers(scales, "--scales"), _numbers(lambdas, "--lambdas")
    from hf_tsv.files.disk import write_text
    from hf_tsv.hub import Hub
    from hf_tsv.verbs.tune import tune as search

    hub = Hub(token=token, cache_dir=cache_dir)
    try:
        with WorkProgress("Tuning", quiet=quiet) as progress:
            found = search(
                recipe,
                suite,
                by=by,
                grid=grid,
                lambdas=lambda_grid,
                results=tuned.with_name(f"{tuned.name}.jsonl"),
                device=device,
                workers=workers,
                hub=hub,
                progress=progress,
            )
    except KeyboardInterrupt:
        interrupted("Interrupted. Every score that was complete is kept; the same command goes on from there.")
    write_text(tuned, found.text)
    if json_:
        print(json.dumps({"out": str(tuned), **asdict(found)}))
        return
    for group, scale in found.scales.items():
        out.print(f"{group}  {scale:g}", markup=False)
    for task, lam in found.lambdas.items():
        out.print(f"lambda of {task}  {lam:g}", markup=False)
    out.print(
        f"\n{found.relative:.2%} of the fine-tunes' scores, {found.untuned:.2%} at scale 1; {found.tried} choices"
        " tried.",
        markup=False,
    )
    print(tuned)


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r}, expected numbers such as 0.8,1,1.2", param_hint=option) from None
