"""One task's full checkpoint, from what a compression or a merge left of it."""

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
    """Write one task's checkpoint, from its adapter or its mask; the record.

    Each tensor has the model's dtype, or the task's own where the model has no such tensor. What PEFT can't load of an
    adapter is in it as well.

    Args:
        out: A folder that `compress` or `merge` has written.
        task: Which of its tasks.
        to: The folder to write; it must not exist, or be empty.
        options: How to do it; of these, `overwrite` and `max_shard_size` have an effect here.
        base: The base model, a Hub id or a folder, where it isn't found as it was.
        hub: How to reach the Hub.
        progress: Told of the bytes written.

    Raises:
        HfTsvError: no such task, or anything else a person can mend.
    """
    to, hub = Path(to), hub or Hub()
    check_alone(to)
    check_output(to, overwrite=options.overwrite)
    source = open_task(Path(out), task, base=base, hub=hub)
    model = source.checkpoint
    shards = plan_shards([model.info(name) for name in model.names()], options.max_shard_size)
    check_disk(to, sum(shard.nbytes for shard in shards))
    with Staging(to) as staging:
        staging.discard()
        try:
            digests = _copied(model, shards, staging.out, progress or Silent())
            _copy_companions(source, _own_config(Path(out), task), hub, staging.out)
        except BaseException:
            staging.remove()
            raise
        record = make_restoration_record(task, source.describe(), [shard.file for shard in shards], digests)
        record = record.with_checksums(checksums(staging.out, record.files))
        write_record(record, staging.out)
        staging.publish()
    return record


def open_task(out: Path, task: str, *, base: str | None, hub: Hub) -> Source:
    """One task's model, read tensor by tensor as it is asked for. Arguments and errors as for `restore`."""
    if (out / file_of(task)).is_file():
        on = open_model(ModelRef.parse(base) if base else _base_in_lock(out), hub)
        return replace(on, checkpoint=open_masked(out, task, on.checkpoint, read_record(out)))
    adapter = _adapter_of(out, task)
    ref = ModelRef.parse(base) if base else _base_of(out)
    if ref.adapter:
        raise OutputError(f"{ref}: a model with an adapter on top, expected a model. Restore that first")
    return open_model(replace(ref, adapter=str(adapter), text=f"{ref}+{adapter}"), hub)


def load_task(out: str | Path, task: str, *, base: str | None = None, hub: Hub | None = None) -> Any:
    """One task's model in memory, as transformers loads a checkpoint of it. Needs the extra `adapters`.

    Args:
        out: A folder that `compress` or `merge` has written.
        task: Which of its tasks.
        base: The base model, a Hub id or a folder, where it isn't found as it was.
        hub: How to reach the Hub.

    Returns:
        A `transformers.PreTrainedModel` of the class that the configuration names, in evaluation mode.

    Raises:
        HfTsvError: no such task, or anything else a person can mend.
    """
    from hf_tsv.lora.skeleton import model_class_of

    out, hub = Path(out), hub or Hub()
    source = open_task(out, task, base=base, hub=hub)
    own = _own_config(out, task)
    config, model_class = model_class_of(own.parent if own else _folder(source))
    state = {name: source.checkpoint.read(name) for name in source.checkpoint.names()}
    return model_class.from_pretrained(None, config=config, state_dict=state).eval()


def tasks_of(out: Path) -> list[str]:
    """The tasks that can be restored from a folder."""
    adapters = {path.name for kind in ADAPTERS.values() for path in (out / kind).glob("*") if is_adapter(path)}
    return sorted(adapters | {path.stem for path in (out / MASKS).glob("*.safetensors")})


def _folder(source: Source) -> Path:
    assert source.folder is not None, "it was fetched"
    return source.folder


def _adapter_of(out: Path, task: str) -> Path:
    found = [out / kind / task for kind in ADAPTERS.values() if is_adapter(out / kind / task)]
    if not found:
        known = tasks_of(out)
        way_out = f"Its tasks: {some(known)}" if known else "Name the output folder of a compression"
        raise OutputError(f"{out}: holds no adapter and no mask of task '{task}'. {way_out}")
    return found[0]


def _base_of(out: Path) -> ModelRef:
    """The merged model where one lies beside the adapters, else the base of the recipe that made them."""
    if is_model(out):
        return ModelRef(str(out.absolute()), text=str(out))
    return _base_in_lock(out)


def _base_in_lock(out: Path) -> ModelRef:
    if not (out / LOCK_FILE).is_file():
        raise OutputError(f"{out}: no {LOCK_FILE} in it tells what it was made from. Pass --base")
    return load_recipe(out / LOCK_FILE).base


def _own_config(out: Path, task: str) -> Path | None:
    """The configuration of a task that has a head of its own."""
    places = [config_of(out, task), *(out / kind / task / MODEL_CONFIG for kind in ADAPTERS.values())]
    return next((place for place in places if place.is_file()), None)


def _copied(model: Checkpoint, shards: tuple[Shard, ...], folder: Path, progress: Progress) -> dict[str, str]:
    """The checkpoint's files; every tensor's checksum."""
    progress.begin(float(sum(shard.nbytes for shard in shards)))
    checksums = {}
    with CheckpointWriter(folder, shards) as writer:
        for info in (info for shard in shards for info in shard.tensors):
            checksums[info.name] = writer.write(info.name, model.read(info.name))
            progress.advance(info.nbytes, info.name)
        writer.sync()
    writer.write_index()
    return checksums


def _copy_companions(source: Source, config: Path | None, hub: Hub, folder: Path) -> None:
    """Those of the model, but for the configuration of a task that has a head of its own."""
    own = companions(source, hub)
    copy_companions(own, folder, tokenizer=own, dtype=None, template=None)
    if config:
        copy_config(config.parent, folder)
