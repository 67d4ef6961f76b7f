"""`hf-tsv tune`: choose the scales of a merge, or the lambdas of its masks, on validation data."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from hf_tsv.cli._flags import flag_of, with_flags
from hf_tsv.cli._options import DeviceOfTorch, RecipeFile, Talk
from hf_tsv.cli._told import WorkProgress, interrupted, out, told
from hf_tsv.job.options import Access, Limits, option


@dataclass(frozen=True)
class Choices(DeviceOfTorch):
    """The values to try, and the device."""

    by: Literal["all", "kind", "type"] = option(
        "kind", "What gets a scale of its own: each module kind, each module type, or all one."
    )
    scales: str = option("0.4,0.6,0.8,1.0,1.2,1.4,1.6", "Scales to try.", metavar="LIST")
    lambdas: str = option("0.2,0.3,0.4,0.5,0.6", "Lambdas to try for tall_mask's masks.", metavar="LIST")
    workers: int | None = flag_of(Limits, "workers")


@told
@with_flags
def tune(
    recipe: RecipeFile,
    tuned: Annotated[Path, typer.Argument(metavar="TUNED", help="The recipe to write.", show_default=False)],
    suite: Annotated[Path, typer.Option("--suite", metavar="FILE", help="Tasks on validation data: a YAML file.")],
    choices: Choices,
    access: Access,
    talk: Talk,
) -> None:
    """Choose the scales of a merge, or the lambdas of tall_mask, by a suite's scores, and write the recipe with them.
    The merge is computed once. Scores go into TUNED.jsonl: an interrupted search resumes where it stopped.
    """
    # Before the imports, which take seconds, so that a typing mistake is reported at once.
    scales = _numbers(choices.scales, "--scales")
    lambdas = _numbers(choices.lambdas, "--lambdas")
    from hf_tsv.evaluation.options import Search
    from hf_tsv.files.disk import write_text
    from hf_tsv.hub import Hub
    from hf_tsv.verbs.tune import tune as search_scales

    try:
        with WorkProgress("Tuning", quiet=talk.quiet) as progress:
            outcome = search_scales(
                recipe,
                suite,
                Search(choices.by, scales, lambdas),
                results=tuned.with_name(f"{tuned.name}.jsonl"),
                device=choices.device,
                workers=choices.workers,
                hub=Hub(token=access.token, cache_dir=access.cache_dir),
                progress=progress,
            )
    except KeyboardInterrupt:
        interrupted("Interrupted. Complete scores are saved; run the same command again to resume.")
    write_text(tuned, outcome.text)  # the recipe as it was written, including comments, with the chosen values
    if talk.json:
        print(json.dumps({"out": str(tuned), **asdict(outcome)}))
        return
    for group, scale in outcome.scales.items():
        out.print(f"{group}  {scale:g}", markup=False)
    for task, lam in outcome.lambdas.items():
        out.print(f"lambda of {task}  {lam:g}", markup=False)
    out.print(
        f"\n{outcome.relative:.2%} of the fine-tunes' scores, {outcome.untuned:.2%} at scale 1;"
        f" {outcome.tried} choices tried.",
        markup=False,
    )
    print(tuned)


def _numbers(text: str, flag: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 0.8,1,1.2", param_hint=flag) from None
