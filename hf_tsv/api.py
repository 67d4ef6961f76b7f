"""The verbs: what the command line calls, and users of Python."""

import copy
import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor, nn

from hf_tsv.cards import write_card
from hf_tsv.checkpoint import Shard
from hf_tsv.companions import copy_companions, most_common_template
from hf_tsv.errors import CheckpointError, MethodError, OutputError
from hf_tsv.hub import Hub
from hf_tsv.journal import Journal, Staging, check_output
from hf_tsv.loaders import MemoryCheckpoint
from hf_tsv.planner import DEFAULT_SHARD_SIZE, TSV_C, Plan, Step, leaves_residuals, make_plan
from hf_tsv.processes import Process, Team, check_alone, stamp
from hf_tsv.recipe import Recipe, load_recipe, parse_recipe
from hf_tsv.record import NUMERICS, checksums, make_compression_record, make_record, write_record
from hf_tsv.resources import check_disk, usable_cores
from hf_tsv.run import Progress, Resources, Silent, check_memory, run
from hf_tsv.sources import Source, companions, fetch, lock_text, open_sources
from hf_tsv.writers import RECORD_FILE, CheckpointWriter, write_text

if TYPE_CHECKING:
    from hf_tsv.compressed import Compressing  # needs transformers and peft

PARTS_FOLDER = "task_parts"


def plan(
    recipe: Recipe | str | Path, *, max_shard_size: int | str = DEFAULT_SHARD_SIZE, hub: Hub | None = None
) -> Plan:
    """Decide what a merge would do, from the models' headers alone.

    Args:
        recipe: A recipe, or the path of its file.
        max_shard_size: Largest output file, in bytes or as `5GB`.
        hub: How to reach the Hub.

    Raises:
        HfTsvError: the recipe is wrong, a model can't be read, or they don't fit together; all of it is told.
    """
    recipe = _loaded(recipe)
    return _planned(recipe, open_sources(recipe, hub or Hub()), max_shard_size)


def merge(
    recipe: Recipe | str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    restart: bool = False,
    max_shard_size: int | str = DEFAULT_SHARD_SIZE,
    workers: int | None = None,
    max_memory: int | None = None,
    hub: Hub | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Merge by a recipe into a folder that transformers loads; its record.

    OUT appears when it is complete. A run that was stopped goes on where it was, to the same bytes.

    Started as several processes by a launcher that sets RANK and WORLD_SIZE, with OUT on a file system that all of them
    share, each merges its part of the tensors, the first publishes, and all return the record.

    Args:
        recipe: A recipe, or the path of its file.
        out: The output folder; it must not exist, or be empty.
        overwrite: Replace an earlier output.
        restart: Throw an unfinished run's work away.
        max_shard_size: Largest output file, in bytes or as `5GB`.
        workers: Tensors in work at once in each process, one processor core each; all cores unless given.
        max_memory: Bytes that the tensors in work may take together; most of what is free unless given. Of both, the
            processes on one machine get equal shares unless given.
        hub: How to reach the Hub.
        progress: Told of the work done.

    Raises:
        HfTsvError: anything a person can mend, another process of the run that has ended too; nothing is lost by it.
    """
    started = time.monotonic()
    recipe, out, hub, process = _loaded(recipe), Path(out), hub or Hub(), Process.launched()
    resources = Resources.of(workers, max_memory, process.local_count)
    before = stamp(out / RECORD_FILE)
    with Staging(out, leads=not process.rank) as staging, Team(staging.root, process) as team:
        check_output(out, overwrite=overwrite)
        sources = open_sources(recipe, hub)
        _check_apart(out, sources)
        planned = _planned(recipe, sources, max_shard_size)
        check_memory(planned, resources)
        check_disk(out.parent, planned.bytes_out)
        if leaves_residuals(planned):
            from hf_tsv.residuals import check_residuals

            check_residuals(planned)
        sources = fetch(sources, hub)
        planned = _planned(recipe, sources, max_shard_size)
        if process.rank:
            _help(planned, staging, team, _identity(planned, sources), resources)
            return team.await_output(out / RECORD_FILE, before)
        identity = _identity(planned, sources)
        _go_on_or_start(staging, identity, restart=restart)
        with _discarded_if_wrong(staging):
            tensors = _write_shared(planned, staging, team, identity, resources, progress or Silent())
            parts = _write_parts(planned, staging.out)
            _check_unchanged(planned, sources, identity)
        _copy_companions(planned, sources, hub, staging.out)
        adapters = _write_adapters(planned, staging, sources, resources, progress or Silent())
        record = make_record(
            planned,
            [s.describe() for s in sources],
            tensors,
            seconds=time.monotonic() - started,
            parts=parts,
            adapters=adapters,
        )
        write_text(staging.out / "recipe.yaml", recipe.text)
        write_text(staging.out / "recipe.lock.yaml", lock_text(recipe, sources))
        record["checksums"] = checksums(staging.out, record["files"])
        write_record(record, staging.out)
        write_card(record, staging.out)
        staging.publish()
    return record


def compress(
    recipe: Recipe | str | Path,
    out: str | Path,
    options: "Compressing",
    *,
    overwrite: bool = False,
    workers: int | None = None,
    max_memory: int | None = None,
    hub: Hub | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compress every fine-tuned model of a recipe into an adapter; the record.

    What takes part are the tensors that the recipe merges; its methods don't matter. OUT appears when every adapter
    has been loaded back by PEFT and found to be what was meant.

    Args:
        recipe: A recipe, or the path of its file.
        out: The output folder; it must not exist, or be empty.
        options: How to compress.
        overwrite: Replace an earlier output.
        workers: Tensors in work at once, one processor core each; all cores unless given.
        max_memory: Bytes that the tensors in work may take together; most of what is free unless given.
        hub: How to reach the Hub.
        progress: Told of the work done.

    Raises:
        HfTsvError: anything a person can mend.
    """
    from hf_tsv.adapters import BaseRef
    from hf_tsv.compressed import compress_tasks

    def write(planned: Plan, sources: Sequence[Source], folder: Path, resources: Resources) -> dict[str, Any]:
        base = BaseRef(sources[0].ref.path, sources[0].revision)
        return compress_tasks(planned, _folders(sources), folder, base, options, resources, progress or Silent())

    return _written(_loaded(recipe), Path(out), write, overwrite, Resources.of(workers, max_memory), hub or Hub())


def merge_as_adapter(
    recipe: Recipe | str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    max_memory: int | None = None,
    hub: Hub | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Merge by a recipe into an adapter on the base model, which PEFT loads; its record.

    Args:
        recipe: A recipe, or the path of its file.
        out: The adapter's folder; it must not exist, or be empty.
        rank: Most rank of a matrix; as much as the merged change has unless given.
        overwrite: Replace an earlier output.
        workers: Tensors in work at once, one processor core each; all cores unless given.
        max_memory: Bytes that the tensors in work may take together; most of what is free unless given.
        hub: How to reach the Hub.
        progress: Told of the work done.

    Raises:
        HfTsvError: anything a person can mend.
    """
    from hf_tsv.adapters import BaseRef
    from hf_tsv.as_adapter import write_as_adapter

    def write(planned: Plan, sources: Sequence[Source], folder: Path, resources: Resources) -> dict[str, Any]:
        base = BaseRef(sources[0].ref.path, sources[0].revision)
        return write_as_adapter(planned, folder, base, _folders(sources), rank, resources, progress or Silent())

    recipe = _loaded(recipe)
    if recipe.residuals is not None or TSV_C in recipe.methods:
        raise OutputError(f"{out}: an adapter can't carry others, expected a recipe without tsv_c and residuals")
    in_float32 = dataclasses.replace(recipe, out_dtype="float32")
    return _written(in_float32, Path(out), write, overwrite, Resources.of(workers, max_memory), hub or Hub())


def _written(
    recipe: Recipe,
    out: Path,
    write: Callable[[Plan, Sequence[Source], Path, Resources], dict[str, Any]],
    overwrite: bool,
    resources: Resources,
    hub: Hub,
) -> dict[str, Any]:
    """A folder of adapters, which appears when it is complete; its record."""
    started = time.monotonic()
    check_alone(out)
    check_output(out, overwrite=overwrite)
    sources = open_sources(recipe, hub)
    _check_apart(out, sources)
    sources = fetch(sources, hub)
    planned = _planned(recipe, sources, DEFAULT_SHARD_SIZE)
    check_memory(planned, resources)
    with Staging(out) as staging:
        staging.discard()
        try:
            identity = _identity(planned, sources)
            tasks = write(planned, sources, staging.out, resources)
            _check_unchanged(planned, sources, identity)
        except BaseException:
            staging.remove()
            raise
        record = make_compression_record(
            planned, [s.describe() for s in sources], tasks, seconds=time.monotonic() - started
        )
        write_text(staging.out / "recipe.yaml", recipe.text)
        write_text(staging.out / "recipe.lock.yaml", lock_text(recipe, sources))
        record["checksums"] = checksums(staging.out, record.get("files", ()))
        write_record(record, staging.out)
        staging.publish()
    return record


def merge_state_dicts(
    base: Mapping[str, Tensor],
    finetuned: Mapping[str, Mapping[str, Tensor]],
    *,
    method: str = "tsv_m",
    weights: Mapping[str, float] | None = None,
    dtype: str = "float32",
    svd: str = "exact",
    **parameters: Any,
) -> dict[str, Tensor]:
    """Merge models that are held in memory; the inputs stay as they are.

        merged = merge_state_dicts(base, {"math": math, "code": code}, method="tsv_m", scale=1.2)

    Args:
        base: The base model's state dict.
        finetuned: The fine-tuned models' state dicts by task, with the base's names and shapes.
        method: A merge method, as in recipes.
        weights: One factor a task, 1 unless given.
        dtype: Arithmetic, `float32` or `float64`.
        svd: `exact`, `fast` or `sketch`.
        parameters: The method's parameters.

    Returns:
        A new state dict with the base's names, dtypes and shapes, on the CPU.

    Raises:
        RecipeError: an unknown method or parameter.
        PlanError: names or shapes that don't fit.
        MethodError: NaN or infinity.
    """
    recipe = _recipe_of(list(finetuned), method, weights or {}, dtype, svd, parameters)
    planned = make_plan(
        recipe,
        MemoryCheckpoint(base, label="the base"),
        [MemoryCheckpoint(state, label=f"task '{task}'") for task, state in finetuned.items()],
    )
    if leaves_residuals(planned):
        raise MethodError(f"{method}: its result is one adapter a task. Call hf_tsv.merge or hf_tsv.compress")
    held = _Held()
    run(planned, planned.steps, held, Resources(usable_cores()), Silent())
    return {name: held.tensors[name] for name in base}


def merge_modules(base: nn.Module, finetuned: Mapping[str, nn.Module], **options: Any) -> nn.Module:
    """Merge modules of one class into a new one. `options` and errors are those of `merge_state_dicts`."""
    states = {task: module.state_dict() for task, module in finetuned.items()}
    merged = copy.deepcopy(base)
    merged.load_state_dict(merge_state_dicts(base.state_dict(), states, **options))
    return merged


class _Held:
    """Keeps merged tensors in memory."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def put(self, step: Step, tensor: Tensor, facts: Mapping[str, Any]) -> None:
        self.tensors[step.name] = tensor


class _Files:
    """Writes merged tensors and notes them in the journal."""

    def __init__(self, writer: CheckpointWriter, journal: Journal, team: Team) -> None:
        self._writer = writer
        self._journal = journal
        self._team = team

    def put(self, step: Step, tensor: Tensor, facts: Mapping[str, Any]) -> None:
        self._team.check()
        checksum = self._writer.write(step.name, tensor)
        self._journal.note({"name": step.name, **facts, "sha256": checksum}, step.out.nbytes)


def _loaded(recipe: Recipe | str | Path) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe)


def _planned(recipe: Recipe, sources: Sequence[Source], max_shard_size: int | str) -> Plan:
    base, *tasks = sources
    return make_plan(recipe, base.checkpoint, [task.checkpoint for task in tasks], max_shard_size=max_shard_size)


def _check_apart(out: Path, sources: Sequence[Source]) -> None:
    for source in sources:
        if source.folder and source.folder.resolve().is_relative_to(out.resolve()):
            raise OutputError(f"{out}: holds {source.ref.text}, which the recipe reads. Choose another folder")


def _identity(planned: Plan, sources: Sequence[Source]) -> dict[str, str]:
    """What has to be the same for an unfinished run to be gone on with."""
    layout = repr([(shard.file, shard.tensors) for shard in planned.shards])
    models = {("base model" if s.task is None else f"model '{s.task}'"): s.identity for s in sources}
    return {
        "recipe": hashlib.sha256(planned.recipe.text.encode()).hexdigest(),
        **models,
        "shards": hashlib.sha256(layout.encode()).hexdigest(),
        "singular value decomposition": planned.recipe.svd,
        "version of hf_tsv's numerics": NUMERICS,
        "version of torch": torch.__version__,
    }


def _check_unchanged(planned: Plan, sources: Sequence[Source], before: Mapping[str, str]) -> None:
    """Whether the sources still are what they were when the run began: else what was merged is a mixture.

    Raises:
        CheckpointError: one is another now.
    """
    changed = [what for what, identity in _identity(planned, sources).items() if before[what] != identity]
    if changed:
        raise CheckpointError(
            f"{', '.join(changed)}: changed while it was read, so that what was merged is of no use and was thrown"
            " away. Run it again when nothing writes there any more"
        )


def _go_on_or_start(staging: Staging, identity: Mapping[str, str], *, restart: bool) -> None:
    before = None if restart else Journal.read_identity(staging)
    if before is None:
        staging.discard()
        return
    keys = dict.fromkeys((*before, *identity))
    changed = [key for key in keys if before.get(key) != identity.get(key)]
    if changed:
        raise OutputError(
            f"{staging.final}: an unfinished run lies in {staging.root}, but another {', another '.join(changed)}"
            " is asked for now. Pass --restart to throw it away, or go back to what it was"
        )


@contextmanager
def _discarded_if_wrong(staging: Staging) -> Iterator[None]:
    """Keep an interrupted run's work, but not that of one that can't be finished with these sources."""
    try:
        yield
    except (CheckpointError, MethodError):
        staging.remove()
        raise


def _write_shared(
    planned: Plan, staging: Staging, team: Team, identity: Mapping[str, str], resources: Resources, progress: Progress
) -> dict[str, dict[str, Any]]:
    """The merged model's files; what was noted of each tensor."""
    with (
        CheckpointWriter(staging.out, planned.shards, is_shared=team.process.count > 1) as writer,
        Journal(staging, writer, identity) as journal,
    ):
        writer.sync()
        left = [step for step in planned.steps if step.name not in journal.done]
        steps = team.deal(left, planned.work, lambda step: step.name, identity)
        run(planned, steps, _Files(writer, journal, team), resources, progress)
        team.await_all()
        journal.take_in()
    writer.write_index()
    return journal.done


def _help(planned: Plan, staging: Staging, team: Team, identity: Mapping[str, str], resources: Resources) -> None:
    """What one of the other processes does: its share, into the files that the first has laid out."""
    share = set(team.await_deal(identity))
    with (
        CheckpointWriter(staging.out, planned.shards, is_shared=True) as writer,
        Journal(staging, writer, identity, rank=team.process.rank) as journal,
    ):
        steps = [step for step in planned.steps if step.name in share]
        run(planned, steps, _Files(writer, journal, team), resources, Silent())


def _write_parts(planned: Plan, out: Path) -> dict[str, str]:
    """What belongs to single tasks, one file a task, as the fine-tuned model stores it."""
    files: dict[str, str] = {}
    for task, checkpoint in zip(planned.tasks, planned.finetuned, strict=True):
        parts = [part.info for part in planned.parts if part.task == task]
        if not parts:
            continue
        files[task] = f"{PARTS_FOLDER}/{task}.safetensors"
        (out / PARTS_FOLDER).mkdir(exist_ok=True)
        with CheckpointWriter(out, [Shard(files[task], tuple(parts))]) as writer:
            for info in parts:
                writer.write(info.name, checkpoint.read(info.name))
            writer.sync()
    return files


def _write_adapters(
    planned: Plan, staging: Staging, sources: Sequence[Source], resources: Resources, progress: Progress
) -> dict[str, dict[str, Any]]:
    """The adapters on the merged model that the recipe asks for, if any."""
    if not leaves_residuals(planned):
        return {}
    from hf_tsv.residuals import write_residuals

    return write_residuals(planned, staging.out, str(staging.final), _folders(sources), resources, progress)


def _folders(sources: Sequence[Source]) -> dict[str | None, Path]:
    return {source.task: source.folder for source in sources if source.folder}


def _copy_companions(planned: Plan, sources: Sequence[Source], hub: Hub, out: Path) -> None:
    recipe, by_ref = planned.recipe, {source.ref: source for source in sources}
    template = recipe.chat_template
    if template == "auto":
        template = most_common_template([source.folder for source in by_ref.values() if source.folder])
    base, tokenizer = (companions(by_ref[ref], hub) for ref in (recipe.base, recipe.tokenizer_source))
    copy_companions(base, out, tokenizer=tokenizer, dtype=recipe.out_dtype, template=template)


def _recipe_of(
    tasks: Sequence[str], method: str, weights: Mapping[str, float], dtype: str, svd: str, parameters: Mapping[str, Any]
) -> Recipe:
    """The recipe of a merge in memory, so that it is checked and carried out as any other."""
    models = [
        {"model": f"./{task}", "name": task} | ({"parameters": {"weight": weights[task]}} if task in weights else {})
        for task in tasks
    ]
    data = {
        "merge_method": method,
        "base_model": "./the base",
        "models": models,
        "parameters": dict(parameters),
        "dtype": dtype,
        "svd": svd,
    }
    return parse_recipe(yaml.safe_dump(data, sort_keys=False), source=f"merge_state_dicts(method={method!r})")
