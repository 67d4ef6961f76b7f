"""`hf-tsv compress`: an adapter for every fine-tuned model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hf_tsv.cli._options import (
    CacheDir,
    CommitMessage,
    CreatePr,
    DryRun,
    Json,
    License,
    Overwrite,
    Private,
    PushToHub,
    Quiet,
    RecipeFile,
    Restart,
    Streamed,
    Token,
    Workers,
    out_or_named,
    pushing_of,
    recipe_from,
)
from hf_tsv.cli._told import WorkProgress, err, kept_when_interrupted, out, told
from hf_tsv.errors import size

if TYPE_CHECKING:
    from hf_tsv.hub import Hub
    from hf_tsv.linalg.ranks import RankChoice
    from hf_tsv.recipe import Recipe
    from hf_tsv.sources.fetching import Stream

PROFILES: dict[str | None, tuple[Literal["faithful", "serving"], ...] | None] = {
    None: None,
    "faithful": ("faithful",),
    "serving": ("serving",),
    "both": ("faithful", "serving"),
}


@told
def compress(
    recipe: RecipeFile,
    out_: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The output folder; pushing, its name by default.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="For each adapter: a size such as 10MB, or a share such as 10%.")
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="Let the adapters share their budgets: more for what needs more.")
    ] = False,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="The same rank for every matrix.")] = None,
    fraction: Annotated[
        float | None, typer.Option("--fraction", help="A share of min(m, n); 1 / number of models unless given.")
    ] = None,
    energy: Annotated[float | None, typer.Option("--energy", help="Share of the squared change to keep.")] = None,
    error: Annotated[float | None, typer.Option("--error", help="Largest relative error of a matrix.")] = None,
    profile: Annotated[
        Literal["faithful", "serving", "both"] | None,
        typer.Option("--profile", help="faithful: all that PEFT holds; serving: what vLLM and others read."),
    ] = None,
    serving_rank: Annotated[
        Literal["8", "16", "32", "64", "128"] | None,
        typer.Option("--serving-rank", help="As large as the budget allows, else as the rule needs, unless given."),
    ] = None,
    factor_dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option("--factor-dtype", help="bfloat16 under a budget, else the model's own, unless given."),
    ] = None,
    verify: Annotated[
        Literal["weights", "forward"], typer.Option("--verify", help="What PEFT's reading is compared by.")
    ] = "weights",
    overwrite: Overwrite = False,
    restart: Restart = False,
    workers: Workers = None,
    dry_run: DryRun = False,
    stream: Streamed = False,
    push_to_hub: PushToHub = None,
    create_pr: CreatePr = False,
    private: Private = None,
    license_: License = None,
    commit_message: CommitMessage = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compress every model of a recipe into a PEFT adapter, and check that PEFT loads it as meant. A run that was
    stopped goes on where it was."""
    given = {"budget": budget, "rank": rank, "fraction": fraction, "energy": energy, "error": error}
    chosen = [f"--{option}" for option, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise typer.BadParameter("choose one rule for the ranks", param_hint=" / ".join(chosen))
    for option, value in {"fraction": fraction, "energy": energy, "error": error}.items():
        if value is not None and not 0 < value <= 1:
            raise typer.BadParameter(
                f"expected a share above 0 and at most 1 but got {value}", param_hint=f"--{option}"
            )
    if together and budget is None:
        raise typer.BadParameter("needs --budget", param_hint="--together")
    from huggingface_hub.utils import disable_progress_bars

    from hf_tsv.cli.push import preview
    from hf_tsv.hub import Hub
    from hf_tsv.job.preview import preview as preview_of
    from hf_tsv.kept.options import compressing
    from hf_tsv.verbs.compress import compress as run

    pushing = pushing_of(push_to_hub, create_pr, private, license_, commit_message)
    out_ = out_or_named(out_, push_to_hub)
    loaded, hub = recipe_from(recipe, None), Hub(token=token, cache_dir=cache_dir)
    options = compressing(
        loaded,
        _rule(loaded, hub, given),
        profiles=PROFILES[profile],
        serving_rank=int(serving_rank) if serving_rank else None,
        factor_dtype=factor_dtype,
        verify=verify,
        together=together,
    )
    if dry_run:
        tasks = [model.name for model in loaded.models]
        streamed: Stream = "tasks" if stream else "none"
        return preview(preview_of(loaded, pushing, hub=hub, out=out_, tasks=tasks, stream=streamed), options)
    disable_progress_bars()
    with kept_when_interrupted(out_, pushes=pushing is not None), WorkProgress("Compressing", quiet=quiet) as progress:
        record = run(
            loaded,
            out_,
            options,
            overwrite=overwrite,
            restart=restart,
            workers=workers,
            stream=stream,
            push_to_hub=pushing,
            hub=hub,
            progress=progress,
        )
    show_adapters(record, out_, json_=json_)
    return None


def show_adapters(record: dict[str, Any], folder: Path, *, json_: bool) -> None:
    """What was written: a table, or JSON."""
    if json_:
        print(json.dumps({"out": str(folder), **record}))
        return
    _show(record)
    for pushed in record.get("pushed", ()):
        err.print(f"Pushed to {pushed['url']}", markup=False)
    print(folder)


def _rule(loaded: "Recipe", hub: "Hub", given: dict[str, Any]) -> "RankChoice":
    from hf_tsv.linalg.ranks import rank_choice
    from hf_tsv.verbs.plan import plan as make

    nbytes = 0
    if str(given["budget"]).endswith("%"):
        base = make(loaded, hub=hub).base
        nbytes = sum(base.info(name).nbytes for name in base.names())
    return rank_choice(given, num_tasks=len(loaded.models), checkpoint_bytes=nbytes)


def _show(record: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (
        "task",
        "adapter",
        "bytes",
        "of the checkpoint",
        "energy kept",
        "largest error",
        "left out",
    ):
        table.add_column(column, justify="left" if column in ("task", "adapter") else "right")
    for task, profiles in record["tasks"].items():
        for profile, facts in profiles.items():
            worst = max(facts["errors"].items(), key=lambda item: item[1], default=("", 0.0))
            table.add_row(
                *map(
                    escape,
                    (
                        task,
                        profile,
                        size(facts["bytes"]),
                        f"{facts['bytes'] / record['checkpoint_bytes'][task]:.1%}",
                        f"{facts['energy']:.1%}",
                        f"{worst[1]:.2f} {worst[0]}",
                        f"{facts['left_out_share']:.2%} of the change",
                    ),
                )
            )
    out.print(table)
    for task, profiles in record["tasks"].items():
        for profile, facts in profiles.items():
            for name, why in list(facts["left_out"].items())[:3] if profile == "faithful" else ():
                err.print(f"Note: {task}: {name}: {why}", style="yellow", markup=False)
