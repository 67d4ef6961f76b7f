"""The verbs: what the command line calls, and users of Python."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from torch import Tensor

from hf_tsv.cards import write_card
from hf_tsv.checkpoints.protocol import Shard
from hf_tsv.checkpoints.writer import CheckpointWriter
from hf_tsv.files.checksums import checksums
from hf_tsv.files.disk import full_disk_told, write_text
from hf_tsv.files.names import LOCK_FILE, PARTS, RECIPE_FILE, RECORD_FILE
from hf_tsv.hub import Hub
from hf_tsv.job.delivery import UPLOADING, delivered, is_made, targets
from hf_tsv.job.identity import check_place, check_unchanged, discarded_if_wrong, go_on_or_start, identity_on
from hf_tsv.job.inputs import loaded, plan_of, watched
from hf_tsv.job.processes import Process, Team, stamp
from hf_tsv.job.recording import make_record
from hf_tsv.merging.engine import Sink, check_memory, run
from hf_tsv.merging.plan import DEFAULT_SHARD_SIZE, Plan, Step, leaves_masks, leaves_residuals
from hf_tsv.merging.progress import Progress, Silent
from hf_tsv.merging.resources import Resources, check_disks, device_named
from hf_tsv.publish.publishing import Destination, Pushing, sending
from hf_tsv.recipe import Recipe
from hf_tsv.record.record import read_record, write_record
from hf_tsv.sources.companions import companions, copy_companions, copy_licences, most_common_template
from hf_tsv.sources.description import described, lock_text
from hf_tsv.sources.fetching import Stream, bytes_to_download, fetch
from hf_tsv.sources.models import Source, folders_of, open_sources
from hf_tsv.sources.tokenizers import tokenizer_companions
from hf_tsv.staging.folder import Staging
from hf_tsv.staging.journal import Journal


def merge(
    recipe: Recipe | str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    restart: bool = False,
    max_shard_size: int | str = DEFAULT_SHARD_SIZE,
    workers: int | None = None,
    max_memory: int | None = None,
    device: str = "cpu",
    stream: bool = False,
    push_to_hub: Pushing | str | None = None,
    hub: Hub | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Merge by a recipe into a folder that transformers loads; its record.

    OUT appears when it is complete. A run that was stopped goes on where it was, to the same bytes. With
    `push_to_hub`, files are uploaded as they are finished and committed when OUT is complete; the record then says
    under `pushed` where; and an OUT that holds this very merge already is pushed as it is.

    Started as several processes by a launcher that sets RANK and WORLD_SIZE, with OUT on a file system that all of them
    share, each merges its part of the tensors, the first publishes and pushes, and all return the record.

    Args:
        recipe: A recipe, or the path of its file.
        out: The output folder; it must not exist, or be empty.
        overwrite: Replace an earlier output.
        restart: Throw an unfinished run's work away.
        max_shard_size: Largest output file, in bytes or as `5GB`.
        workers: Tensors in work at once in each process, one processor core each; all cores unless given.
        max_memory: Bytes that the tensors in work may take together; most of what is free unless given. Of both, the
            processes on one machine get equal shares unless given.
        device: Where methods compute: `cpu`, `cuda`, or one of several as `cuda:1`. With `cuda` the processes on one
            machine take its GPUs in turn. Another kind of device rounds differently.
        stream: Read weights from the Hub tensor by tensor instead of downloading their files.
        push_to_hub: Where to push the output: `user/name`, or more exactly.
        hub: How to reach the Hub.
        progress: Told of the work done.

    Raises:
        HfTsvError: anything a person can mend, another process of the run that has ended too; nothing is lost by it.
    """
    recipe, out, hub, progress = loaded(recipe), Path(out), hub or Hub(), progress or Silent()
    process = Process.launched()
    computing = device_named(device, process.rank % process.local_count)
    resources = Resources.of(workers, max_memory, process.local_count, computing)
    before = stamp(out / RECORD_FILE)
    with Staging(out, leads=not process.rank) as staging, Team(staging.root, process) as team:
        sources = open_sources(recipe, hub)
        planned = plan_of(recipe, sources, max_shard_size, hub)
        destinations = [to for _, to in targets(push_to_hub, sources, None, hub)]
        if not destinations or not is_made(out, recipe, sources, [shard.file for shard in planned.shards]):
            check_place(out, sources, overwrite=overwrite)
            check_memory(planned, resources)
            streamed: Stream = "all" if stream else "none"
            downloads = bytes_to_download(sources, hub, stream=streamed)
            check_disks([(out.parent, planned.bytes_out), (hub.cache_dir, downloads)])
            if leaves_residuals(planned):
                from hf_tsv.kept.residuals import check_residuals

                check_residuals(planned)
            in_order = stream or bool(destinations)
            sources = fetch(sources, hub, stream=streamed, progress=watched(downloads, progress))
            planned = plan_of(recipe, sources, max_shard_size, hub)
            run_ = partial(run, resources=resources, progress=progress, in_order=in_order)
            if process.rank:
                _help(planned, staging, team, identity_on(computing, planned, sources), run_)
                return team.await_output(out / RECORD_FILE, before)
            _merge_into(staging, team, planned, sources, hub, resources, progress, destinations, run_, restart=restart)
    return read_record(out) | ({} if process.rank else delivered(out, destinations, progress))


def _merge_into(
    staging: Staging,
    team: Team,
    planned: Plan,
    sources: Sequence[Source],
    hub: Hub,
    resources: Resources,
    progress: Progress,
    destinations: Sequence[Destination],
    run_: "_Run",
    *,
    restart: bool,
) -> None:
    """Merge fetched sources into OUT, uploading each file of weights when it is finished."""
    started = time.monotonic()
    identity = identity_on(resources.device, planned, sources)
    go_on_or_start(staging, identity, restart=restart)
    with discarded_if_wrong(staging):
        with sending(destinations[0] if destinations else None, partial(progress.advance, 0.0, UPLOADING)) as send:
            tensors = _write_shared(planned, staging, team, identity, run_, send)
        parts = _write_parts(planned, staging.out)
        check_unchanged(planned, sources, identity)
    _copy_companions(planned, sources, hub, staging.out)
    adapters = _write_adapters(planned, staging, identity, sources, resources, progress)
    masks = _write_masks(planned, staging, sources, resources, progress)
    record = make_record(
        planned,
        described(sources, hub),
        tensors,
        seconds=time.monotonic() - started,
        device=resources.device,
        parts=parts,
        adapters=adapters,
        masks=masks,
    )
    write_text(staging.out / RECIPE_FILE, planned.recipe.text)
    write_text(staging.out / LOCK_FILE, lock_text(planned.recipe, sources))
    record["checksums"] = checksums(staging.out, record["files"])
    write_record(record, staging.out)
    write_card(record, staging.out, licence=destinations[0].licence if destinations else None)
    staging.publish()


class _Files:
    """Writes merged tensors, notes them in the journal, and tells which files are finished."""

    def __init__(
        self,
        writer: CheckpointWriter,
        journal: Journal,
        team: Team,
        shards: Sequence[Shard],
        finished: Callable[[str], None],
    ) -> None:
        self._writer, self._journal, self._team, self._finished = writer, journal, team, finished
        self._files = {info.name: shard.file for shard in shards for info in shard.tensors}
        self._left = {shard.file: {info.name for info in shard.tensors} - journal.done.keys() for shard in shards}
        self._lock = Lock()
        for file, left in self._left.items():
            if not left:
                finished(file)

    def put(self, step: Step, tensor: Tensor, facts: Mapping[str, Any]) -> None:
        self._team.check()
        checksum = self._writer.write(step.name, tensor)
        self._journal.note({"name": step.name, **facts, "sha256": checksum}, step.out.nbytes)
        file = self._files[step.name]
        with self._lock:
            self._left[file].remove(step.name)
        if not self._left[file]:
            self._finished(file)


_Run = Callable[[Plan, Sequence[Step], Sink], None]


def _write_shared(
    planned: Plan,
    staging: Staging,
    team: Team,
    identity: Mapping[str, str],
    run_: _Run,
    send: Callable[[str, Path], None],
) -> dict[str, dict[str, Any]]:
    """The merged model's files; what was noted of each tensor."""
    with (
        CheckpointWriter(staging.out, planned.shards, is_shared=team.process.count > 1) as writer,
        Journal(staging, writer, identity) as journal,
    ):
        writer.sync()
        files = _Files(writer, journal, team, planned.shards, lambda file: send(file, staging.out / file))
        left = [step for step in _by_file(planned) if step.name not in journal.done]
        share = {step.name for step in team.deal(left, planned.work, lambda step: step.name, identity)}
        run_(planned, [step for step in left if step.name in share], files)
        team.await_all()
        journal.take_in()
    writer.write_index()
    return journal.done


def _help(planned: Plan, staging: Staging, team: Team, identity: Mapping[str, str], run_: _Run) -> None:
    """What one of the other processes does: its share, into the files that the first has laid out."""
    share = set(team.await_deal(identity))
    with (
        CheckpointWriter(staging.out, planned.shards, is_shared=True) as writer,
        Journal(staging, writer, identity, rank=team.process.rank) as journal,
    ):
        files = _Files(writer, journal, team, planned.shards, lambda file: None)
        run_(planned, [step for step in _by_file(planned) if step.name in share], files)


def _by_file(planned: Plan) -> list[Step]:
    by_name = {step.name: step for step in planned.steps}
    return [by_name[info.name] for shard in planned.shards for info in shard.tensors]


def _write_parts(planned: Plan, out: Path) -> dict[str, str]:
    """What belongs to single tasks, one file a task, as the fine-tuned model stores it."""
    files: dict[str, str] = {}
    for task, checkpoint in zip(planned.tasks, planned.finetuned, strict=True):
        parts = [part.info for part in planned.parts if part.task == task]
        if not parts:
            continue
        files[task] = f"{PARTS}/{task}.safetensors"
        with full_disk_told(out / PARTS):
            (out / PARTS).mkdir(exist_ok=True)
        with CheckpointWriter(out, [Shard(files[task], tuple(parts))]) as writer:
            for info in parts:
                writer.write(info.name, checkpoint.read(info.name))
            writer.sync()
    return files


def _write_adapters(
    planned: Plan,
    staging: Staging,
    identity: Mapping[str, str],
    sources: Sequence[Source],
    resources: Resources,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """The adapters on the merged model that the recipe asks for, if any."""
    if not leaves_residuals(planned):
        return {}
    from hf_tsv.kept.residuals import write_residuals

    return write_residuals(planned, staging, identity, folders_of(sources), resources, progress)


def _write_masks(
    planned: Plan, staging: Staging, sources: Sequence[Source], resources: Resources, progress: Progress
) -> dict[str, Any]:
    """The tasks' masks beside the merged model that the recipe asks for, if any."""
    if not leaves_masks(planned):
        return {}
    from hf_tsv.kept.masks import write_masks

    return write_masks(planned, staging.out, folders_of(sources), resources, progress)


def _copy_companions(planned: Plan, sources: Sequence[Source], hub: Hub, out: Path) -> None:
    recipe, by_ref = planned.recipe, {source.ref: source for source in sources}
    template = recipe.chat_template
    if template == "auto":
        template = most_common_template([source.folder for source in by_ref.values() if source.folder])
    vocabulary, base = planned.vocabulary, companions(by_ref[recipe.base], hub)
    is_bases = recipe.tokenizer_model == recipe.base
    tokenizer = base if is_bases else tokenizer_companions(by_ref[recipe.tokenizer_model], hub)
    rows = {vocabulary.base_rows[name]: new for name, new in vocabulary.rows.items()} if vocabulary else None
    copy_companions(base, out, tokenizer=tokenizer, dtype=recipe.out_dtype, template=template, rows=rows)
    if vocabulary:
        vocabulary.write(out)
    folders = {s.ref.path if s.pin else s.folder.name: s.folder for s in sources if s.folder}
    copy_licences(folders, out)
