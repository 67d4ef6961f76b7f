"""Whether a folder still is what its record says, and whether its sources give the same bits again."""

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_tsv.checkpoints.protocol import TensorInfo
from hf_tsv.checkpoints.safetensors import Located, read_header
from hf_tsv.checkpoints.writer import METADATA, bytes_of, layout
from hf_tsv.errors import CheckpointError, HfTsvError, OutputError, some
from hf_tsv.files.checksums import sha256_of
from hf_tsv.files.names import CARD_FILE, LOCK_FILE, RECORD_FILE
from hf_tsv.hub import Hub
from hf_tsv.job.inputs import plan_of
from hf_tsv.job.recording import versions
from hf_tsv.merging.engine import check_memory, run
from hf_tsv.merging.plan import DEFAULT_SHARD_SIZE, Plan, Step
from hf_tsv.merging.progress import Progress, Silent
from hf_tsv.merging.resources import Resources, device_named, usable_cores
from hf_tsv.recipe import load_recipe
from hf_tsv.record.record import read_record
from hf_tsv.sources.fetching import fetch
from hf_tsv.sources.models import Source, open_sources

SAMPLE = 8
OWN_WORDS = (CARD_FILE, RECORD_FILE)  # the card may be written again, and a record can't hold its own checksum


@dataclass
class Verification:
    """What was compared, and what came of it.

    Attributes:
        tensors: How many tensors' bytes were compared with their recorded checksums.
        files: How many whole files were.
        recomputed: Tensors that were merged again from the sources, whatever came of it.
        differs: What is not as recorded, a line each. Empty: all that was compared is the same, bit for bit.
        not_checked: What could not be compared, and why, a line each.
        notes: What a person should know besides, such as another version of torch.
        exit_code: 0; 1 where anything differs; else, where the sources could not be read, that error's.
    """

    tensors: int = 0
    files: int = 0
    recomputed: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    exit_code: int = 0


def verify(
    out: str | Path,
    *,
    sample: int | None = SAMPLE,
    seed: int = 0,
    recipe: str | Path | None = None,
    workers: int | None = None,
    max_memory: int | None = None,
    device: str = "cpu",
    hub: Hub | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compare every file of an output with its record, and merge a sample of its tensors again.

    Args:
        out: A folder that `merge`, `compress` or `restore` has written.
        sample: How many tensors are merged again from the sources that `recipe.lock.yaml` pins; None for all of them,
            0 for none. Of adapters and restored checkpoints only the files are compared.
        seed: Which tensors these are.
        recipe: A copy of the lock file that names the sources where they are now, should they have moved.
        workers: Tensors in work at once; all cores unless given.
        max_memory: Bytes that the tensors in work may take together; most of what is free unless given.
        device: Where to merge them, as for `merge`.
        hub: How to reach the Hub.
        progress: Told of the work done, of the reading and of the merging in turn.

    Raises:
        OutputError: the folder has no record that can be read, so that there is nothing to compare with.
    """
    out, progress = Path(out), progress or Silent()
    record, found = _record(out), Verification()
    resources = Resources.of(workers, max_memory, device=device_named(device))
    _compare_tensors(out, record, found, progress)
    _compare_files(out, record, found)
    if sample != 0:
        try:
            _merge_again(out, record, found, sample, seed, recipe, resources, hub or Hub(), progress)
        except HfTsvError as error:
            found.not_checked += [f"not merged again: {problem}" for problem in error.problems]
            found.not_checked.append(
                f"where sources have moved, pass a copy of {out / LOCK_FILE} that names them as --recipe;"
                " --sample 0 compares the files alone"
            )
            found.exit_code = error.exit_code
    found.exit_code = 1 if found.differs else found.exit_code
    return found


def _record(out: Path) -> dict[str, Any]:
    record = read_record(out)
    try:
        files, tensors, sums = record.get("files", []), record.get("tensors", {}), record.get("checksums", {})
        entries = [tensors, sums, record["versions"], *tensors.values(), *record["sources"]]
        if all(map(_is_inside, (*files, *sums))) and all(isinstance(entry, dict) for entry in entries):
            return record
    except (KeyError, TypeError, AttributeError):
        pass
    raise OutputError(f"{out / RECORD_FILE}: is not the record of a run. Get the folder again")


def _is_inside(file: object) -> bool:
    return isinstance(file, str) and bool(file) and not Path(file).is_absolute() and ".." not in Path(file).parts


def _compare_tensors(out: Path, record: Mapping[str, Any], found: Verification, progress: Progress) -> None:
    """Every byte of the weight files: headers against what they must be, tensors against their checksums."""
    tensors, held = record.get("tensors", {}), _located(out, record, found)
    progress.begin(float(sum(located.info.nbytes for located in held)))
    with ThreadPoolExecutor(usable_cores()) as pool:
        for located, digest in zip(held, pool.map(_digest, held), strict=True):
            progress.advance(located.info.nbytes, located.info.name)
            found.differs += _tensor_differs(located, digest, tensors.get(located.info.name))
    found.tensors = len(held)
    if not found.differs and (lost := sorted(tensors.keys() - {located.info.name for located in held})):
        found.differs.append(f"{out}: {len(lost)} recorded tensors are in none of its files: {some(lost)}")


def _located(out: Path, record: Mapping[str, Any], found: Verification) -> list[Located]:
    held: list[Located] = []
    for file in record.get("files", []):
        try:
            there = read_header(out / file)
        except CheckpointError as error:
            found.differs += error.problems
            continue
        if not _has_header(out / file, [located.info for located in there]):
            found.differs.append(f"{out / file}: its header is not the one that was written. Get it again")
        held += there
    return held


def _has_header(path: Path, tensors: Sequence[TensorInfo]) -> bool:
    header, _ = layout(tensors, METADATA)
    with path.open("rb") as file:
        return file.read(len(header)) == header


def _tensor_differs(located: Located, digest: str, entry: Mapping[str, Any] | None) -> list[str]:
    where = f"{located.path}: tensor {located.info.name!r}"
    if entry is None:
        return [f"{where} is not in the record"]
    there = [located.info.dtype, list(located.info.shape)]
    said = [entry.get("dtype", there[0]), entry.get("shape", there[1])]
    if said != there:
        return [f"{where} is {there[0]} {there[1]}, expected {said[0]} {said[1]}"]
    return [] if digest == entry.get("sha256") else [f"{where} has other bytes than were written. Get the file again"]


def _digest(located: Located) -> str:
    try:
        return sha256_of(located.path, located.start, located.info.nbytes)
    except OSError as error:
        return error.strerror or "can't be read"


def _compare_files(out: Path, record: Mapping[str, Any], found: Verification) -> None:
    """What lies beside the weights."""
    sums: Mapping[str, str] = record.get("checksums", {})
    for file, digest in sums.items():
        if not (out / file).is_file():
            found.differs.append(f"{out / file}: is gone")
        elif sha256_of(out / file) != digest:
            found.differs.append(f"{out / file}: has other bytes than were written")
    found.files = len(sums)
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    extra = sorted(file for file in there - {*sums, *record.get("files", [])} if Path(file).name not in OWN_WORDS)
    if extra:
        found.not_checked.append(f"{out}: the record has no checksum of {len(extra)} files: {some(extra)}")


def _merge_again(
    out: Path,
    record: Mapping[str, Any],
    found: Verification,
    sample: int | None,
    seed: int,
    recipe: str | Path | None,
    resources: Resources,
    hub: Hub,
    progress: Progress,
) -> None:
    if "tasks" in record or "restored" in record:
        found.notes.append("nothing was merged into this folder, so its files were compared and nothing else")
        return
    locked = load_recipe(recipe or out / LOCK_FILE)
    sources = fetch(open_sources(locked, hub), hub)
    plan = plan_of(locked, sources, DEFAULT_SHARD_SIZE, hub)
    steps = [step for step in plan.steps if step.name in record["tensors"]]
    chosen = steps if sample is None else random.Random(seed).sample(steps, min(sample, len(steps)))
    check_memory(plan, resources)
    found.notes += [*_other_sources(record, sources), *_other_versions(record, resources.device)]
    again = _Again(record["tensors"])
    run(plan, chosen, again, resources, progress)
    found.recomputed = sorted(step.name for step in chosen)
    found.differs += _told_apart(plan, sorted(again.differing))
    if unlike := sorted(record["tensors"].keys() ^ {step.name for step in plan.steps}):
        found.differs.append(f"{locked.source}: its sources hold other tensors than were merged: {some(unlike)}")


class _Again:
    """Compares merged tensors with the record instead of writing them."""

    def __init__(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        self._entries = entries
        self.differing: list[str] = []

    def put(self, step: Step, tensor: Tensor, facts: Mapping[str, Any]) -> None:
        if hashlib.sha256(bytes_of(tensor)).hexdigest() != self._entries[step.name].get("sha256"):
            self.differing.append(step.name)


def _told_apart(plan: Plan, names: Iterable[str]) -> list[str]:
    methods = {step.name: step.method for step in plan.steps}
    return [f"{name}: {methods[name]} of the sources gives other bits than were recorded" for name in names]


def _other_sources(record: Mapping[str, Any], sources: Sequence[Source]) -> list[str]:
    """Local folders have no commit: what is known of them is their files' size, time of change and headers."""
    then = {str(source.get("task")): source.get("fingerprint") for source in record["sources"]}
    return [
        f"{source.ref}: its files have another size, time of change or header than when they were merged"
        for source in sources
        if then.get(str(source.task)) and source.identity != then[str(source.task)]
    ]


def _other_versions(record: Mapping[str, Any], device: torch.device) -> list[str]:
    now, then = versions(device), record["versions"]
    return [
        f"made with {what} {then[what]}, merged again with {now[what]}: another one may round differently"
        for what in ("numerics", "torch", "processor")
        if what in then and then[what] != now[what]
    ]
