"""The verbs whose output are adapters alone."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_tsv.cards import Licence, write_card
from hf_tsv.errors import OutputError
from hf_tsv.hub import Hub
from hf_tsv.inputs import loaded, plan_of, watched
from hf_tsv.journal import Staging
from hf_tsv.outputs import LOCK_FILE, RECIPE_FILE
from hf_tsv.planner import DEFAULT_SHARD_SIZE, TSV_C, Plan, check_on_base
from hf_tsv.processes import check_alone
from hf_tsv.publishing import Destination, Pushing
from hf_tsv.pushing import delivered, is_made, targets
from hf_tsv.recipe import Recipe
from hf_tsv.record import checksums, make_compression_record, read_record, write_record
from hf_tsv.resources import CPU, check_disks
from hf_tsv.run import Progress, Resources, Silent, check_memory
from hf_tsv.sources import Source, Stream, bytes_to_download, described, fetch, folders_of, lock_text, open_sources
from hf_tsv.unfinished import check_place, check_unchanged, discarded_if_wrong, go_on_or_start, identity_on
from hf_tsv.writers import write_text

if TYPE_CHECKING:
    from hf_tsv.compressing import Compressing


def compress(
    recipe: Recipe | str | Path,
    out: str | Path,
    options: "Compressing",
    *,
    overwrite: bool = False,
    restart: bool = False,
    workers: int | None = None,
    max_memory: int | None = None,
    stream: bool = False,
    push_to_hub: Pushing | str | None = None,
    hub: Hub | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compress every fine-tuned model of a recipe into an adapter; the record.

    What takes part are the tensors that the recipe merges; its methods don't matter. OUT appears when every adapter
    has been loaded back by PEFT and found to be what was meant. A run that was stopped goes on where it was, to the
    same bytes.

    Args:
        recipe: A recipe, or the path of its file.
        out: The output folder; it must not exist, or be empty.
        options: How to compress.
        overwrite: Replace an earlier output.
        restart: Throw an unfinished run's work away.
        workers: Tensors in work at once, one processor core each; all cores unless given.
        max_memory: Bytes that the tensors in work may take together; most of what is free unless given.
        stream: Read the fine-tuned models' weights from the Hub tensor by tensor, once for each of the passes, instead
            of downloading their files. The base's are downloaded: PEFT loads them.
        push_to_hub: Where to push the adapters, as in `push`, or more exactly. An OUT that holds this very compression
            already is pushed as it is; the record then says under `pushed` where.
        hub: How to reach the Hub.
        progress: Told of the work done.

    Raises:
        HfTsvError: anything a person can mend.
    """
    from hf_tsv.adapters import BaseRef
    from hf_tsv.compressed import compress_tasks

    recipe, out, hub, progress = loaded(recipe), Path(out), hub or Hub(), progress or Silent()
    check_alone(out)
    resources = Resources.of(workers, max_memory)
    sources = open_sources(recipe, hub)
    tasks = [model.name for model in recipe.models]
    destinations = [to for _, to in targets(push_to_hub, sources, tasks, hub)]

    def write(
        planned: Plan, sources: Sequence[Source], staging: Staging, identity: Mapping[str, str]
    ) -> dict[str, Any]:
        base = BaseRef(sources[0].ref.path, sources[0].revision)
        return compress_tasks(
            planned, folders_of(sources), staging, identity, base, options, resources, progress, in_order=stream
        )

    return _written_and_pushed(
        recipe,
        out,
        sources,
        write,
        options.flags,
        resources,
        hub,
        destinations,
        progress,
        overwrite=overwrite,
        restart=restart,
        stream=stream,
    )


def merge_as_adapter(
    recipe: Recipe | str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    overwrite: bool = False,
    restart: bool = False,
    workers: int | None = None,
    max_memory: int | None = None,
    stream: bool = False,
    push_to_hub: Pushing | str | None = None,
    hub: Hub | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Merge by a recipe into an adapter on the base model, which PEFT loads; its record.

    A run that was stopped goes on where it was, to the same bytes.

    Args:
        recipe: A recipe, or the path of its file.
        out: The adapter's folder; it must not exist, or be empty.
        rank: Most rank of a matrix; as much as the merged change has unless given.
        overwrite: Replace an earlier output.
        restart: Throw an unfinished run's work away.
        workers: Tensors in work at once, one processor core each; all cores unless given.
        max_memory: Bytes that the tensors in work may take together; most of what is free unless given.
        stream: As in `compress`.
        push_to_hub: As in `compress`.
        hub: How to reach the Hub.
        progress: Told of the work done.

    Raises:
        HfTsvError: anything a person can mend.
    """
    from hf_tsv.adapters import BaseRef
    from hf_tsv.as_adapter import write_as_adapter

    recipe, out, hub, progress = loaded(recipe), Path(out), hub or Hub(), progress or Silent()
    if recipe.residuals is not None or TSV_C in recipe.methods:
        raise OutputError(f"{out}: an adapter can't carry others, expected a recipe without tsv_c and residuals")
    check_alone(out)
    resources = Resources.of(workers, max_memory)
    sources = open_sources(recipe, hub)
    destinations = [to for _, to in targets(push_to_hub, sources, None, hub)]

    def write(
        planned: Plan, sources: Sequence[Source], staging: Staging, identity: Mapping[str, str]
    ) -> dict[str, Any]:
        base = BaseRef(sources[0].ref.path, sources[0].revision)
        return write_as_adapter(
            planned, staging, identity, base, folders_of(sources), rank, resources, progress, in_order=stream
        )

    in_float32 = dataclasses.replace(recipe, out_dtype="float32")
    flags = ["--as", "adapter", *(["--rank", str(rank)] if rank else [])]
    return _written_and_pushed(
        in_float32,
        out,
        sources,
        write,
        flags,
        resources,
        hub,
        destinations,
        progress,
        overwrite=overwrite,
        restart=restart,
        stream=stream,
    )


Write = Callable[[Plan, Sequence[Source], Staging, Mapping[str, str]], dict[str, Any]]


def _written_and_pushed(
    recipe: Recipe,
    out: Path,
    sources: Sequence[Source],
    write: Write,
    flags: Sequence[str],
    resources: Resources,
    hub: Hub,
    destinations: Sequence[Destination],
    progress: Progress,
    *,
    overwrite: bool,
    restart: bool,
    stream: bool,
) -> dict[str, Any]:
    """Write the folder, unless it is there and only wants pushing, and push it; the record."""
    if not destinations or not is_made(out, recipe, sources, flags):
        check_place(out, sources, overwrite=overwrite)
        licence = destinations[0].licence if destinations else None
        _write_adapter_folder(
            recipe, out, sources, write, flags, resources, hub, licence, progress, restart=restart, stream=stream
        )
    return read_record(out) | delivered(out, destinations, progress)


def _write_adapter_folder(
    recipe: Recipe,
    out: Path,
    sources: Sequence[Source],
    write: Write,
    flags: Sequence[str],
    resources: Resources,
    hub: Hub,
    licence: Licence | None,
    progress: Progress,
    *,
    restart: bool,
    stream: bool,
) -> None:
    """A folder of adapters, which appears when it is complete."""
    started = time.monotonic()
    streamed: Stream = "tasks" if stream else "none"
    downloads = bytes_to_download(sources, hub, stream=streamed)
    check_disks([(hub.cache_dir, downloads)])
    sources = fetch(sources, hub, stream=streamed, came=watched(downloads, progress))
    planned = plan_of(recipe, sources, DEFAULT_SHARD_SIZE, hub)
    check_on_base(planned, "adapters are put on")
    check_memory(planned, resources)
    identity = identity_on(CPU, planned, sources, flags)
    with Staging(out) as staging:
        go_on_or_start(staging, identity, restart=restart)
        with discarded_if_wrong(staging):
            tasks = write(planned, sources, staging, identity)
            check_unchanged(planned, sources, identity)
        record = make_compression_record(
            planned, described(sources, hub), tasks, flags=flags, seconds=time.monotonic() - started
        )
        write_text(staging.out / RECIPE_FILE, recipe.text)
        write_text(staging.out / LOCK_FILE, lock_text(recipe, sources))
        record["checksums"] = checksums(staging.out, record.get("files", ()))
        write_record(record, staging.out)
        write_card(record, staging.out, licence=licence)
        staging.publish()
