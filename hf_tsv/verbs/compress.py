"""The verbs whose output are adapters alone."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_tsv.cards import write_card
from hf_tsv.errors import OutputError
from hf_tsv.files.checksums import checksums
from hf_tsv.files.disk import write_text
from hf_tsv.files.names import LOCK_FILE, RECIPE_FILE
from hf_tsv.hub import Hub
from hf_tsv.job.delivery import delivered, is_made, targets
from hf_tsv.job.identity import check_place, check_unchanged, discarded_if_wrong, go_on_or_start, identity_on
from hf_tsv.job.inputs import loaded, plan_of, watched
from hf_tsv.job.processes import check_alone
from hf_tsv.job.recording import make_compression_record
from hf_tsv.merging.engine import check_memory
from hf_tsv.merging.plan import DEFAULT_SHARD_SIZE, TSV_C, Plan, check_on_base
from hf_tsv.merging.progress import Progress, Silent
from hf_tsv.merging.resources import CPU, Resources, check_disks
from hf_tsv.publish.publishing import Destination, Pushing
from hf_tsv.recipe import Recipe
from hf_tsv.record.record import read_record, write_record
from hf_tsv.sources.description import described, lock_text
from hf_tsv.sources.fetching import Stream, bytes_to_download, fetch
from hf_tsv.sources.models import Source, folders_of, open_sources
from hf_tsv.staging.folder import Staging

if TYPE_CHECKING:
    from hf_tsv.kept.options import Compressing


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
    from hf_tsv.kept.adapters import compress_tasks
    from hf_tsv.lora.write.plan import BaseRef

    recipe = loaded(recipe)
    tasks = [model.name for model in recipe.models]
    run = _Run.begun(recipe, out, options.flags, tasks, push_to_hub, workers, max_memory, stream, hub, progress)

    def write(
        planned: Plan, sources: Sequence[Source], staging: Staging, identity: Mapping[str, str]
    ) -> dict[str, Any]:
        base = BaseRef(sources[0].ref.path, sources[0].revision)
        return compress_tasks(
            planned, folders_of(sources), staging, identity, base, options, run.resources, run.progress, in_order=stream
        )

    return run.record(write, overwrite=overwrite, restart=restart)


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
    from hf_tsv.kept.as_adapter import write_as_adapter
    from hf_tsv.lora.write.plan import BaseRef

    recipe = loaded(recipe)
    if recipe.residuals is not None or TSV_C in recipe.methods:
        raise OutputError(f"{out}: an adapter can't carry others, expected a recipe without tsv_c and residuals")
    in_float32 = replace(recipe, out_dtype="float32")
    flags = ["--as", "adapter", *(["--rank", str(rank)] if rank else [])]
    run = _Run.begun(in_float32, out, flags, None, push_to_hub, workers, max_memory, stream, hub, progress)

    def write(
        planned: Plan, sources: Sequence[Source], staging: Staging, identity: Mapping[str, str]
    ) -> dict[str, Any]:
        base = BaseRef(sources[0].ref.path, sources[0].revision)
        return write_as_adapter(
            planned, staging, identity, base, folders_of(sources), rank, run.resources, run.progress, in_order=stream
        )

    return run.record(write, overwrite=overwrite, restart=restart)


Write = Callable[[Plan, Sequence[Source], Staging, Mapping[str, str]], dict[str, Any]]


@dataclass(frozen=True)
class _Run:
    """What both verbs do around their own work.

    Attributes:
        recipe: What is planned.
        out: The output folder.
        flags: The command line's words for what the recipe doesn't say.
        stream: Whether the fine-tuned models' weights are read by byte range.
        resources: What may be used of the machine.
        hub: How to reach the Hub.
        progress: Told of the work done.
        sources: The recipe's models, before they are fetched.
        destinations: Where the output goes; none if it stays here.
    """

    recipe: Recipe
    out: Path
    flags: Sequence[str]
    stream: Stream
    resources: Resources
    hub: Hub
    progress: Progress
    sources: Sequence[Source]
    destinations: Sequence[Destination]

    @classmethod
    def begun(
        cls,
        recipe: Recipe,
        out: str | Path,
        flags: Sequence[str],
        tasks: Sequence[str] | None,
        push_to_hub: Pushing | str | None,
        workers: int | None,
        max_memory: int | None,
        stream: bool,
        hub: Hub | None,
        progress: Progress | None,
    ) -> "_Run":
        """With the sources opened, and the places to push to checked; nothing is downloaded or written."""
        out, hub = Path(out), hub or Hub()
        check_alone(out)
        resources = Resources.of(workers, max_memory)
        sources = open_sources(recipe, hub)
        destinations = [to for _, to in targets(push_to_hub, sources, tasks, hub)]
        how: Stream = "tasks" if stream else "none"
        return cls(recipe, out, flags, how, resources, hub, progress or Silent(), sources, destinations)

    def record(self, write: Write, *, overwrite: bool, restart: bool) -> dict[str, Any]:
        """Write the folder, unless it is there and only wants pushing, and push it; the record."""
        if not self.destinations or not is_made(self.out, self.recipe, self.sources, self.flags):
            check_place(self.out, self.sources, overwrite=overwrite)
            self._write_folder(write, restart=restart)
        return read_record(self.out) | delivered(self.out, self.destinations, self.progress)

    def _write_folder(self, write: Write, *, restart: bool) -> None:
        """A folder of adapters, which appears when it is complete."""
        started = time.monotonic()
        downloads = bytes_to_download(self.sources, self.hub, stream=self.stream)
        check_disks([(self.hub.cache_dir, downloads)])
        sources = fetch(self.sources, self.hub, stream=self.stream, progress=watched(downloads, self.progress))
        planned = plan_of(self.recipe, sources, DEFAULT_SHARD_SIZE, self.hub)
        check_on_base(planned, "adapters are put on")
        check_memory(planned, self.resources)
        identity = identity_on(CPU, planned, sources, self.flags)
        with Staging(self.out) as staging:
            go_on_or_start(staging, identity, restart=restart)
            with discarded_if_wrong(staging):
                tasks = write(planned, sources, staging, identity)
                check_unchanged(planned, sources, identity)
            record = make_compression_record(
                planned, described(sources, self.hub), tasks, flags=self.flags, seconds=time.monotonic() - started
            )
            write_text(staging.out / RECIPE_FILE, self.recipe.text)
            write_text(staging.out / LOCK_FILE, lock_text(self.recipe, sources))
            record["checksums"] = checksums(staging.out, record.get("files", ()))
            write_record(record, staging.out)
            write_card(record, staging.out, licence=self.destinations[0].licence if self.destinations else None)
            staging.publish()
