"""The verbs: what the command line calls, and users of Python."""

import copy
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor, nn

from hf_tsv.cards import all_terms, write_card
from hf_tsv.checkpoint import Shard
from hf_tsv.companions import copy_companions, most_common_template
from hf_tsv.errors import CheckpointError, MethodError, OutputError
from hf_tsv.hub import Hub, Pushed
from hf_tsv.journal import Journal, Staging, check_output
from hf_tsv.loaders import MemoryCheckpoint
from hf_tsv.planner import DEFAULT_SHARD_SIZE, Plan, Step, make_plan
from hf_tsv.publishing import (
    Destination,
    Parcel,
    Pushing,
    check,
    deliver,
    licence_of_card,
    parcel,
    read_record,
    tasks_of,
)
from hf_tsv.recipe import Recipe, load_recipe, parse_recipe
from hf_tsv.record import make_compression_record, make_record, write_record
from hf_tsv.resources import check_disk, default_memory, usable_cores
from hf_tsv.run import Progress, Resources, Silent, check_memory, run
from hf_tsv.sources import Source, companions, described, fetch, lock_text, open_sources
from hf_tsv.writers import CheckpointWriter, write_text

if TYPE_CHECKING:
    from hf_tsv.compressed import Compressing  # needs transformers and peft

PARTS_FOLDER = "task_parts"
NUMERICS = "1"  # counts up whenever the same inputs give other bits than before


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

    Args:
        recipe: A recipe, or the path of its file.
        out: The output folder; it must not exist, or be empty.
        overwrite: Replace an earlier output.
        restart: Throw an unfinished run's work away.
        max_shard_size: Largest output file, in bytes or as `5GB`.
        workers: Tensors in work at once, one processor core each; all cores unless given.
        max_memory: Bytes that the tensors in work may take together; most of what is free unless given.
        hub: How to reach the Hub.
        progress: Told of the work done.

    Raises:
        HfTsvError: anything a person can mend; nothing is lost by it.
    """
    started = time.monotonic()
    recipe, out, hub = _loaded(recipe), Path(out), hub or Hub()
    resources = Resources(workers or usable_cores(), max_memory or default_memory())
    sources = open_sources(recipe, hub)
    _check_place(out, sources, overwrite=overwrite)
    planned = _planned(recipe, sources, max_shard_size)
    check_memory(planned, resources)
    check_disk(out.parent, planned.bytes_out)
    sources = fetch(sources, hub)
    planned = _planned(recipe, sources, max_shard_size)
    with Staging(out) as staging:
        _go_on_or_start(staging, _identity(planned, sources), restart=restart)
        with _discarded_if_wrong(staging):
            tensors = _write_shared(planned, staging, sources, resources, progress or Silent())
            parts = _write_parts(planned, staging.out)
        _copy_companions(planned, sources, hub, staging.out)
        record = make_record(planned, described(sources, hub), tensors, seconds=time.monotonic() - started, parts=parts)
        write_text(staging.out / "recipe.yaml", recipe.text)
        write_text(staging.out / "recipe.lock.yaml", lock_text(recipe, sources))
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

    started = time.monotonic()
    recipe, out, hub = _loaded(recipe), Path(out), hub or Hub()
    resources = Resources(workers or usable_cores(), max_memory or default_memory())
    sources = open_sources(recipe, hub)
    _check_place(out, sources, overwrite=overwrite)
    sources = fetch(sources, hub)
    planned = _planned(recipe, sources, DEFAULT_SHARD_SIZE)
    check_memory(planned, resources)
    base = BaseRef(sources[0].ref.path, sources[0].revision)
    folders = {source.task: source.folder for source in sources if source.folder}
    with Staging(out) as staging:
        staging.discard()
        try:
            tasks = compress_tasks(planned, folders, staging.out, base, options, resources, progress or Silent())
        except BaseException:
            staging.remove()
            raise
        record = make_compression_record(
            planned, described(sources, hub), tasks, flags=options.flags, seconds=time.monotonic() - started
        )
        write_text(staging.out / "recipe.yaml", recipe.text)
        write_text(staging.out / "recipe.lock.yaml", lock_text(recipe, sources))
        write_record(record, staging.out)
        write_card(record, staging.out)
        staging.publish()
    return record


def push(
    out: str | Path,
    repo: str,
    *,
    create_pr: bool = False,
    private: bool | None = None,
    license: str | None = None,
    hub: Hub | None = None,
) -> list[Pushed]:
    """Push an output folder to the Hub: a merged model, adapters, or one adapter.

    Access, name, privacy and licence are checked before a byte is uploaded. Each repository gets one commit, or none
    when it holds everything; what the Hub has is not uploaded again.

    Args:
        out: The folder.
        repo: `user/name`; for adapters also `user/name-{task}`, a repository each.
        create_pr: Open a pull request instead of committing to the main branch.
        private: Whether a new repository is private; None for private where a source is private or gated, else as its
            owner's settings say. False says that such sources may go public.
        license: The licence to carry, in the Hub's word; None for what follows from the sources.
        hub: How to reach the Hub.

    Raises:
        OutputError: the folder is no output.
        PublishError: licence or privacy forbids it.
        HubError: the Hub refuses or fails; says what was done.
    """
    pushing = Pushing(repo, create_pr, private, license)
    return [deliver(*prepared) for prepared in prepare_push(Path(out), pushing, hub or Hub())]


def card(out: str | Path, *, license: str | None = None) -> Path:
    """Write the card of an output again, and of a compression those of its adapters; the path of the first.

    What people wrote outside of our marks stays, and so does what they added to the header.

    Args:
        out: The output folder.
        license: The licence to carry, in the Hub's word; None for what its header or the sources say.

    Raises:
        OutputError: the folder is no output.
        PublishError: no such licence.
    """
    out = Path(out)
    record, path = read_record(out), out / "README.md"
    old = path.read_text("utf-8") if path.is_file() else ""
    write_card(record, out, licence=licence_of_card(license, all_terms(record), old), keep=[old] if old else [])
    return path


def prepare_push(out: Path, pushing: Pushing, hub: Hub) -> list[tuple[Parcel, Destination]]:
    """What `push` would do, checked; nothing is written. Errors are those of `push`."""
    parcels = {repo: parcel(out, tasks) for repo, tasks in pushing.repositories(tasks_of(out)).items()}
    destinations = [
        check(pushing, repo, all_terms(found.record), hub, found.old_card) for repo, found in parcels.items()
    ]
    return list(zip(parcels.values(), destinations, strict=True))


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

    def __init__(self, writer: CheckpointWriter, journal: Journal) -> None:
        self._writer = writer
        self._journal = journal

    def put(self, step: Step, tensor: Tensor, facts: Mapping[str, Any]) -> None:
        checksum = self._writer.write(step.name, tensor)
        self._journal.note({"name": step.name, **facts, "sha256": checksum}, step.out.nbytes)


def _loaded(recipe: Recipe | str | Path) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe)


def _planned(recipe: Recipe, sources: Sequence[Source], max_shard_size: int | str) -> Plan:
    base, *tasks = sources
    return make_plan(recipe, base.checkpoint, [task.checkpoint for task in tasks], max_shard_size=max_shard_size)


def _check_place(out: Path, sources: Sequence[Source], *, overwrite: bool) -> None:
    check_output(out, overwrite=overwrite)
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


def _go_on_or_start(staging: Staging, identity: Mapping[str, str], *, restart: bool) -> None:
    before = Journal.read_identity(staging)
    if restart or before is None:
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
    planned: Plan, staging: Staging, sources: Sequence[Source], resources: Resources, progress: Progress
) -> dict[str, dict[str, Any]]:
    """The merged model's files; what was noted of each tensor."""
    with (
        CheckpointWriter(staging.out, planned.shards) as writer,
        Journal(staging, writer, _identity(planned, sources)) as journal,
    ):
        steps = [step for step in planned.steps if step.name not in journal.done]
        run(planned, steps, _Files(writer, journal), resources, progress)
    writer.write_index()
    return journal.done


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
