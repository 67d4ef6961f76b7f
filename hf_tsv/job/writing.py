"""The writing of a job's files: the shared model, the files that single tasks keep, and the companion files."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from torch import Tensor

from hf_tsv.checkpoints.protocol import Shard
from hf_tsv.checkpoints.writer import CheckpointWriter
from hf_tsv.files.disk import full_disk_told
from hf_tsv.files.names import PARTS
from hf_tsv.hub import Hub
from hf_tsv.job.processes import Team
from hf_tsv.job.recording import KeptFiles
from hf_tsv.kept.workplace import Workplace
from hf_tsv.merging.cost import step_work
from hf_tsv.merging.engine import run
from hf_tsv.merging.plan import Plan, Step, leaves_masks, leaves_residuals
from hf_tsv.record import AdapterReports, Masks
from hf_tsv.sources.companions import companions, copy_companions, copy_licences, most_common_template
from hf_tsv.sources.models import Source
from hf_tsv.sources.tokenizers import tokenizer_companions
from hf_tsv.staging.journal import Journal


def write_shared(
    plan: Plan, work: Workplace, team: Team, file_is_complete: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Write the shared model's files, together with the other processes of the job.

    Args:
        plan: The plan of the merge.
        work: The workplace of the job.
        team: The processes of the job; this is the first one.
        file_is_complete: Called with the name of each file once all of its tensors are written.

    Returns:
        The record's facts about each tensor, by name.
    """
    with (
        CheckpointWriter(work.out, plan.shards, is_shared=team.process.count > 1) as writer,
        Journal(work.staging, writer, work.identity) as journal,
    ):
        # The files are laid out before the work is dealt out, because the other processes open them then.
        writer.sync()
        sink = _ShardSink(writer, journal, team, plan.shards, file_is_complete)
        steps_left = [step for step in _steps_by_file(plan) if step.name not in journal.done]
        own_share = team.deal(steps_left, partial(step_work, plan), lambda step: step.name, work.identity)
        own_names = {step.name for step in own_share}
        # A share is ordered by work; take its steps in the files' order, which is that of `steps_left`.
        own_steps = [step for step in steps_left if step.name in own_names]
        run(plan, own_steps, sink, work.resources, work.progress, in_order=work.in_order)
        team.await_all()
        journal.take_in()  # the other processes' journals
    if plan.shards:
        writer.write_index()
    return {name: line.facts() for name, line in journal.done.items()}


def help_to_write_shared(plan: Plan, work: Workplace, team: Team) -> None:
    """Write this process's share into the files that the first process has laid out."""
    own_names = set(team.await_deal(work.identity))
    with (
        CheckpointWriter(work.out, plan.shards, is_shared=True) as writer,
        Journal(work.staging, writer, work.identity, rank=team.process.rank) as journal,
    ):
        sink = _ShardSink(writer, journal, team, plan.shards, lambda file: None)
        own_steps = [step for step in _steps_by_file(plan) if step.name in own_names]
        run(plan, own_steps, sink, work.resources, work.progress, in_order=work.in_order)


def write_parts(plan: Plan, out: Path) -> dict[str, str]:
    """Write the tensors that single tasks have alone, as their models store them, and return each task's file."""
    files: dict[str, str] = {}
    for task, checkpoint in zip(plan.tasks, plan.finetuned, strict=True):
        infos = [part.info for part in plan.parts if part.task == task]
        if not infos:  # most tasks have no tensors of their own, such as a head with other labels
            continue
        files[task] = f"{PARTS}/{task}.safetensors"
        with full_disk_told(out / PARTS):
            (out / PARTS).mkdir(exist_ok=True)
        with CheckpointWriter(out, [Shard(files[task], tuple(infos))]) as writer:
            for info in infos:
                writer.write(info.name, checkpoint.read(info.name))
            writer.sync()
    return files


def write_kept(plan: Plan, work: Workplace, parts: Mapping[str, str]) -> KeptFiles:
    """Write the files that single tasks keep beside the shared model. Its weights and configuration are in place."""
    adapters: AdapterReports = {}
    masks: Masks | None = None
    # Modules that import PEFT and transformers are imported only when needed, because most merges don't need them.
    if leaves_residuals(plan):
        from hf_tsv.kept.residuals import write_residuals

        adapters = write_residuals(plan, work)
    if leaves_masks(plan):
        from hf_tsv.kept.masks import write_masks

        masks = write_masks(plan, work)
    return KeptFiles(parts, adapters, masks)


def copy_companions_of(plan: Plan, sources: Sequence[Source], hub: Hub, out: Path) -> None:
    """Copy the files that belong beside the shared model's weights: configuration, tokenizer, licences and the like."""
    recipe, vocabulary = plan.recipe, plan.vocabulary
    by_ref = {source.ref: source for source in sources}
    template = recipe.chat_template
    if template == "auto":
        # By reference, so that a model that the recipe names twice has one vote.
        template = most_common_template([source.folder for source in by_ref.values() if source.folder])
    base = companions(by_ref[recipe.base], hub)
    tokenizer = base
    if recipe.tokenizer_model != recipe.base:
        tokenizer = tokenizer_companions(by_ref[recipe.tokenizer_model], hub)
    rows = None
    if vocabulary:
        # The configuration states the vocabulary's size, which has changed.
        rows = {vocabulary.base_rows[name]: new_rows for name, new_rows in vocabulary.rows.items()}
    copy_companions(base, out, tokenizer=tokenizer, dtype=recipe.out_dtype, template=template, rows=rows)
    if vocabulary:
        vocabulary.write(out)
    # A folder in the Hub's cache is named after a commit, so the licence is named after the model's id.
    folders = {}
    for source in sources:
        if source.folder:
            name = source.ref.path if source.pin else source.folder.name
            folders[name] = source.folder
    copy_licences(folders, out)


def _steps_by_file(plan: Plan) -> list[Step]:
    """Return the steps in the order of their tensors in the output's files."""
    by_name = {step.name: step for step in plan.steps}
    steps = []
    for shard in plan.shards:
        steps += [by_name[info.name] for info in shard.tensors]
    return steps


class _ShardSink:
    """Writes merged tensors, notes them in the journal, and reports which files are complete."""

    def __init__(
        self,
        writer: CheckpointWriter,
        journal: Journal,
        team: Team,
        shards: Sequence[Shard],
        file_is_complete: Callable[[str], None],
    ) -> None:
        self._writer = writer
        self._journal = journal
        self._team = team
        self._file_is_complete = file_is_complete
        self._file_of: dict[str, str] = {}  # by tensor
        self._names_left: dict[str, set[str]] = {}  # tensors still to be written, by file
        for shard in shards:
            names = {info.name for info in shard.tensors}
            self._file_of |= dict.fromkeys(names, shard.file)
            self._names_left[shard.file] = names - journal.done.keys()
        self._lock = Lock()  # `put` is called from several threads
        # An earlier start of the job may have completed files. They are reported too, so that they are uploaded.
        for file, names_left in self._names_left.items():
            if not names_left:
                file_is_complete(file)

    def put(self, step: Step, tensor: Tensor, facts: Mapping[str, Any]) -> None:
        self._team.check()
        checksum = self._writer.write(step.name, tensor)
        notes = {key: value for key, value in facts.items() if key != "seconds"}
        seconds = facts.get("seconds")
        self._journal.note(step.name, sha256=checksum, nbytes=step.out.nbytes, seconds=seconds, notes=notes)
        file = self._file_of[step.name]
        with self._lock:
            self._names_left[file].remove(step.name)
            is_complete = not self._names_left[file]
        if is_complete:
            self._file_is_complete(file)
