"""Restore one task's full checkpoint from the adapter or mask in an output."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_tsv.checkpoints.protocol import Checkpoint, Shard
from hf_tsv.checkpoints.writer import CheckpointWriter
from hf_tsv.errors import OutputError, some
from hf_tsv.files.checksums import checksums
from hf_tsv.files.names import LOCK_FILE, MASKS, MODEL_CONFIG
from hf_tsv.hub import Hub
from hf_tsv.job.options import Options
from hf_tsv.job.processes import check_alone
from hf_tsv.job.recording import make_restoration_record
from hf_tsv.kept.masks import config_of, file_of, open_masked
from hf_tsv.lora.formats import ADAPTERS
from hf_tsv.lora.read.adapter import is_adapter, is_model
from hf_tsv.merging.plan import plan_shards
from hf_tsv.merging.progress import Progress, Silent
from hf_tsv.merging.resources import check_disk
from hf_tsv.recipe import ModelRef, load_recipe
from hf_tsv.record import RestoredRecord, read_record, write_record
from hf_tsv.sources.companions import companions, copy_companions, copy_config
from hf_tsv.sources.fetching import open_model
from hf_tsv.sources.models import Source
from hf_tsv.staging.folder import Staging, check_output

DEFAULTS = Options()


def restore(
    out: str | Path,
    task: str,
    to: str | Path,
    options: Options = DEFAULTS,
    *,
    base: str | None = None,
    hub: Hub | None = None,
    progress: Progress | None = None,
) -> RestoredRecord:
    """Write one task's checkpoint from its adapter or its mask.

    Each tensor has the model's dtype, or the task's own if the model has no such tensor. The checkpoint includes the
    tensors of an adapter's folder that PEFT can't load.

    Args:
        out: An output folder of `compress` or `merge`.
        task: One of its tasks.
        to: The folder to write; it must not exist, or must be empty.
        options: Options of the job; only `overwrite` and `max_shard_size` have an effect here.
        base: The base model, a Hub id or a folder, if it has moved.
        hub: The connection to the Hub.
        progress: Notified of the bytes written.

    Returns:
        The record of the checkpoint.

    Raises:
        HfTsvError: there is no such task, or any other error that a person can correct.
    """
    to, hub = Path(to), hub or Hub()
    check_alone(to)
    check_output(to, overwrite=options.overwrite)
    source = open_task(Path(out), task, base=base, hub=hub)
    model = source.checkpoint
    shards = plan_shards([model.info(name) for name in model.names()], options.max_shard_size)
    check_disk(to, sum(shard.nbytes for shard in shards))
    with Staging(to) as staging:
        staging.discard()  # the leftovers of an interrupted run
        try:
            digests = _write_model(model, shards, staging.out, progress or Silent())
            own_companions = companions(source, hub)
            copy_companions(own_companions, staging.out, tokenizer=own_companions, dtype=None, template=None)
            # A task with a head of its own has a configuration of its own, for example with other labels.
            own_config = _own_config(Path(out), task)
            if own_config:
                copy_config(own_config.parent, staging.out)
        except BaseException:  # there is no journal here to resume from, so nothing is kept
            staging.remove()
            raise
        files = [shard.file for shard in shards]
        record = make_restoration_record(task, source.describe(), files, digests)
        record = record.with_checksums(checksums(staging.out, record.files))
        write_record(record, staging.out)
        staging.publish()
    return record


def open_task(out: Path, task: str, *, base: str | None, hub: Hub) -> Source:
    """Open one task's model, whose tensors are read on demand. Arguments and errors as for `restore`."""
    if (out / file_of(task)).is_file():
        # A mask chooses between the base and the merged model, which is in `out`.
        base_ref = ModelRef.parse(base) if base else _base_in_lock(out)
        opened = open_model(base_ref, hub)
        return replace(opened, checkpoint=open_masked(out, task, opened.checkpoint, read_record(out)))
    adapters = [out / folder / task for folder in ADAPTERS.values() if is_adapter(out / folder / task)]
    if not adapters:
        known = tasks_of(out)
        way_out = f"Its tasks: {some(known)}" if known else "Name the output folder of a compression"
        raise OutputError(f"{out}: holds no adapter and no mask of task '{task}'. {way_out}")
    adapter = adapters[0]  # the faithful one, if there are several
    if base:
        ref = ModelRef.parse(base)
    elif is_model(out):  # a merged model with adapters beside it, which are changes of that model
        ref = ModelRef(str(out.absolute()), text=str(out))
    else:
        ref = _base_in_lock(out)
    if ref.adapter:
        raise OutputError(f"{ref}: a model with an adapter on top, expected a model. Restore that first")
    return open_model(replace(ref, adapter=str(adapter), text=f"{ref}+{adapter}"), hub)


def load_task(out: str | Path, task: str, *, base: str | None = None, hub: Hub | None = None) -> Any:
    """Load one task's model into memory, as transformers loads its checkpoint. Needs the extra `adapters`.

    Args:
        out: An output folder of `compress` or `merge`.
        task: One of its tasks.
        base: The base model, a Hub id or a folder, if it has moved.
        hub: The connection to the Hub.

    Returns:
        A `transformers.PreTrainedModel` of the class that the configuration names, in evaluation mode.

    Raises:
        HfTsvError: there is no such task, or any other error that a person can correct.
    """
    from hf_tsv.lora.skeleton import model_class_of

    out, hub = Path(out), hub or Hub()
    source = open_task(out, task, base=base, hub=hub)
    own_config = _own_config(out, task)
    folder = own_config.parent if own_config else source.folder
    assert folder is not None, "it was fetched"
    config, model_class = model_class_of(folder)
    # Loaded from memory, like a restored checkpoint; nothing is written.
    state = {name: source.checkpoint.read(name) for name in source.checkpoint.names()}
    model = model_class.from_pretrained(None, config=config, state_dict=state)
    return model.eval()


def tasks_of(out: Path) -> list[str]:
    """Return the tasks that can be restored from a folder, sorted."""
    tasks = {path.stem for path in (out / MASKS).glob("*.safetensors")}
    for folder in ADAPTERS.values():
        tasks |= {path.name for path in (out / folder).glob("*") if is_adapter(path)}
    return sorted(tasks)


def _base_in_lock(out: Path) -> ModelRef:
    """Return the base of the recipe that made an output, at the commit that was read."""
    if not (out / LOCK_FILE).is_file():
        raise OutputError(f"{out}: has no {LOCK_FILE} that says what it was made from. Pass --base")
    return load_recipe(out / LOCK_FILE).base


def _own_config(out: Path, task: str) -> Path | None:
    """Return the configuration file of a task that has a head of its own; None for other tasks."""
    places = [config_of(out, task)]
    places += [out / folder / task / MODEL_CONFIG for folder in ADAPTERS.values()]
    return next((place for place in places if place.is_file()), None)


def _write_model(model: Checkpoint, shards: tuple[Shard, ...], folder: Path, progress: Progress) -> dict[str, str]:
    """Write a checkpoint's files; return the SHA-256 of every tensor, by name."""
    progress.begin(float(sum(shard.nbytes for shard in shards)))
    checksums = {}
    with CheckpointWriter(folder, shards) as writer:
        for shard in shards:
            for info in shard.tensors:
                # Only one tensor at a time is in memory.
                checksums[info.name] = writer.write(info.name, model.read(info.name))
                progress.advance(info.nbytes, info.name)
        writer.sync()
    writer.write_index()
    return checksums
