"""`hf-tsv plan`: what a merge would do."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hf_tsv.cli._options import CacheDir, Json, Quiet, RecipeFile, ShardSize, Svd, Token, recipe_from
from hf_tsv.cli._told import err, out, told
from hf_tsv.errors import duration, size

if TYPE_CHECKING:
    from hf_tsv.merging.plan import Plan


@told
def plan(
    recipe: RecipeFile,
    max_shard_size: ShardSize = "5GB",
    svd: Svd = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what a merge would do, from the models' headers alone: nothing is downloaded or written."""
    from hf_tsv.hub import Hub
    from hf_tsv.verbs.plan import plan as make

    planned = make(recipe_from(recipe, svd), max_shard_size=max_shard_size, hub=Hub(token=token, cache_dir=cache_dir))
    if json_:
        print(json.dumps(as_data(planned), indent=1))
    else:
        show(planned)


def show(planned: "Plan") -> None:
    """The plan as a table by module type, and what it costs."""
    from hf_tsv.merging.engine import estimated_seconds
    from hf_tsv.merging.resources import usable_cores

    _show_tensors(planned)
    counts = Counter(step.method for step in planned.merged)
    made = ", ".join(f"{number} by {method}" for method, number in counts.most_common())
    largest, cores = max(map(planned.working_bytes, planned.steps)), usable_cores()
    seconds = estimated_seconds(planned, cores)
    out.print(
        f"\n{len(planned.steps)} tensors: {made}, {len(planned.steps) - len(planned.merged)} kept from the base."
        f" Reads {size(planned.bytes_in)}, writes {size(planned.bytes_out)} in {len(planned.shards)} file(s);"
        f" the largest tensor takes {size(largest)} of memory at work. About {duration(seconds)} of merging on this"
        f" machine's {cores} core(s).",
        markup=False,
    )
    for warning in planned.warnings:
        err.print(f"Note: {warning}", style="yellow", markup=False)


def show_compression(planned: "Plan", flags: Sequence[str]) -> None:
    """What a compression by these flags takes up of a plan, whose methods don't matter to it."""
    from hf_tsv.methods.tsv_c import tsv_c

    steps = tuple(replace(s, method=tsv_c.name, parameters={}) if s.is_merged else s for s in planned.steps)
    _show_tensors(replace(planned, steps=steps))
    out.print(
        f"\n{len(planned.merged)} tensors go into {len(planned.tasks)} adapter(s) as far as they were changed, with"
        f" {' '.join(flags)}; {len(steps) - len(planned.merged)} stay as in the base.",
        markup=False,
    )
    for warning in planned.warnings:
        err.print(f"Note: {warning}", style="yellow", markup=False)


def _show_tensors(planned: "Plan") -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "tensor", "shape", "kind", "method", box=None, pad_edge=False, header_style="bold")
    table.columns[0].justify = "right"
    table.columns[1].overflow = "fold"
    for group in planned.groups():
        first, count = group.steps[0], len(group.steps)
        name, shape = group.name if count > 1 else first.name, "x".join(map(str, first.info.shape))
        table.add_row(*map(escape, (f"{count} x", name, shape, first.kind, _method(first))))
    out.print(table)
    for part in planned.parts:
        out.print(f"task part of {part.task}: {part.info.name} {part.info.shape}", markup=False)


def as_data(planned: "Plan") -> dict[str, Any]:
    """The plan for machines."""
    from hf_tsv.merging.engine import estimated_seconds
    from hf_tsv.merging.resources import usable_cores

    return {
        "tasks": planned.tasks,
        "seconds": round(estimated_seconds(planned, usable_cores()), 1),
        "bytes_in": planned.bytes_in,
        "bytes_out": planned.bytes_out,
        "working_bytes": max(map(planned.working_bytes, planned.steps)),
        "tensors": [
            {
                "name": step.name,
                "shape": step.info.shape,
                "dtype": step.info.dtype,
                "out_dtype": step.out.dtype,
                "kind": step.kind,
                "method": step.method,
                "parameters": dict(step.parameters),
                "weights": step.weights,
                "why": step.why,
            }
            for step in planned.steps
        ],
        "task_parts": [{"task": part.task, "name": part.info.name, "shape": part.info.shape} for part in planned.parts],
        "files": {shard.file: shard.nbytes for shard in planned.shards},
        "vocabulary": planned.vocabulary and planned.vocabulary.describe(),
        "warnings": planned.warnings,
    }


def _method(step: Any) -> str:
    if step.why:
        return f"base ({step.why})"
    shown = ", ".join(f"{key}={value}" for key, value in step.parameters.items())
    return f"{step.method}({shown})" if shown else step.method
