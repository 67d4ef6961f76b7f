"""`hf-tsv plan`: show what a merge would do."""

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from hf_tsv.cli._flags import with_flags
from hf_tsv.cli._options import RecipeFile, Shards, Svd, Talk
from hf_tsv.cli._told import err, out, told
from hf_tsv.errors import counted, duration, size
from hf_tsv.job.options import Access

if TYPE_CHECKING:
    from hf_tsv.merging.plan import Plan


@told
@with_flags
def plan(recipe: RecipeFile, shards: Shards, svd: Svd, access: Access, talk: Talk) -> None:
    """Show what a merge would do, from headers alone: no whole model is downloaded, and nothing is written."""
    from hf_tsv.hub import Hub
    from hf_tsv.verbs.plan import plan as make_plan

    hub = Hub(token=access.token, cache_dir=access.cache_dir)
    planned = make_plan(svd.recipe(recipe), max_shard_size=shards.max_shard_size, hub=hub)
    if talk.json:
        print(json.dumps(as_data(planned), indent=1))
    else:
        show(planned)


def show(planned: "Plan") -> None:
    """Print a plan as a table by module type, and its cost."""
    from rich.markup import escape
    from rich.table import Table

    from hf_tsv.merging.cost import largest_bytes
    from hf_tsv.merging.engine import estimated_seconds
    from hf_tsv.merging.resources import usable_cores

    table = Table("", "tensor", "shape", "kind", "method", box=None, pad_edge=False, header_style="bold")
    table.columns[0].justify = "right"
    table.columns[1].overflow = "fold"
    # One row per group of similar tensors: a model has hundreds, the same in every layer.
    for group in planned.groups():
        first, count = group.steps[0], len(group.steps)
        name = group.name if count > 1 else first.name
        shape = "x".join(map(str, first.info.shape))
        if first.why:  # the reason why the base's tensor is kept
            method = f"base ({first.why})"
        else:
            parameters = ", ".join(f"{key}={value}" for key, value in first.parameters.items())
            method = f"{first.method}({parameters})" if parameters else first.method
        cells = (f"{count} x", name, shape, first.kind, method)
        table.add_row(*map(escape, cells))
    out.print(table)
    for part in planned.parts:
        out.print(f"task part of {part.task}: {part.info.name} {part.info.shape}", markup=False)
    counts = Counter(step.method for step in planned.merged)
    copied = len(planned.steps) - len(planned.merged)
    methods = ", ".join(f"{number} by {method}" for method, number in counts.most_common())
    out.print(f"\n{len(planned.steps)} tensors: {methods}, {copied} kept from the base.", markup=False)
    cores = usable_cores()
    memory = size(largest_bytes(planned))
    time_needed = duration(estimated_seconds(planned, cores))
    out.print(
        f"Reads {size(planned.bytes_in)}, writes {_output_size(planned)}; the largest tensor takes {memory} of memory"
        f" at work. About {time_needed} of merging on this machine's {counted(cores, 'core')}.",
        markup=False,
    )
    for warning in planned.warnings:
        err.print(f"Note: {warning}", style="yellow", markup=False)


def _output_size(planned: "Plan") -> str:
    """Return the size of the output in words; for adapters, an upper bound."""
    from hf_tsv.kept.sizes import largest_adapter_bytes
    from hf_tsv.merging.plan import leaves_residuals

    parts = []
    if planned.makes_model:
        parts.append(f"{size(planned.bytes_out)} in {counted(len(planned.shards), 'file')}")
    # Sizes of adapters depend on singular values, which headers don't contain.
    if planned.makes_one_adapter:
        parts.append("an adapter on the base")
    elif leaves_residuals(planned):
        each = size(largest_adapter_bytes(planned))
        parts.append(f"{counted(len(planned.tasks), 'adapter')} of at most {each} in each profile")
    return " and ".join(parts)


def as_data(planned: "Plan") -> dict[str, Any]:
    """Return the plan as JSON data."""
    from hf_tsv.merging.cost import largest_bytes
    from hf_tsv.merging.engine import estimated_seconds
    from hf_tsv.merging.resources import usable_cores

    return {
        "tasks": planned.tasks,
        "seconds": round(estimated_seconds(planned, usable_cores()), 1),
        "bytes_in": planned.bytes_in,
        "bytes_out": planned.bytes_out,
        "working_bytes": largest_bytes(planned),
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
