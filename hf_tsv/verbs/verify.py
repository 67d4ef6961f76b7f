"""Verify that a folder still matches its record, and that its sources give the same bits again."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_tsv.checkpoints.safetensors import Located, read_header
from hf_tsv.checkpoints.writer import METADATA, bytes_of, layout
from hf_tsv.errors import CheckpointError, HfTsvError, some
from hf_tsv.files.checksums import sha256_of
from hf_tsv.files.names import CARD_FILE, LOCK_FILE, RECORD_FILE
from hf_tsv.hub import Hub
from hf_tsv.job.opened import open_recipe
from hf_tsv.job.options import Limits
from hf_tsv.job.recording import versions
from hf_tsv.merging.engine import check_memory, run
from hf_tsv.merging.plan import Step
from hf_tsv.merging.progress import Progress, Silent
from hf_tsv.merging.resources import Resources, usable_cores
from hf_tsv.recipe import Recipe, load_recipe
from hf_tsv.record import MergeRecord, Record, RestoredRecord, TensorEntry, TensorSum, Versions, read_record

SAMPLE = 8
DEFAULTS = Limits()
OWN_WORDS = (CARD_FILE, RECORD_FILE)  # a card can be written again, and a record can't hold its own checksum


@dataclass
class Verification:
    """The result of a comparison of an output with its record.

    Attributes:
        tensors: Number of tensors whose bytes were compared with their recorded checksums.
        files: Number of whole files that were compared with their recorded checksums.
        recomputed: Tensors that were merged again from the sources, whatever the result.
        differs: The differences from the record, one line each. Empty if everything compared is equal, bit for bit.
        not_checked: Things that could not be compared, with the reason, one line each.
        notes: Further remarks for a person, such as another version of torch.
        exit_code: 1 if anything differs; otherwise the exit code of an error in reading the sources, or 0.
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
    limits: Limits = DEFAULTS,
    *,
    sample: int | None = SAMPLE,
    seed: int = 0,
    recipe: str | Path | None = None,
    hub: Hub | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compare every file of an output with its record, and merge a sample of its tensors again.

    Args:
        out: An output folder of `merge`, `compress` or `restore`.
        limits: Limits on the use of the machine for merging tensors again.
        sample: The number of tensors to merge again from the sources that `recipe.lock.yaml` pins; None for all, 0 for
            none. Adapters and restored checkpoints are never merged again: only their files are compared.
        seed: The seed of the random sample.
        recipe: A copy of the lock file with the sources' new paths, if they have moved.
        hub: The connection to the Hub.
        progress: Notified of the work done, first of the reading, then of the merging.

    Returns:
        The result. Differences are not raised as errors.

    Raises:
        OutputError: the record is missing or malformed, so there is nothing to compare with.
    """
    out, progress = Path(out), progress or Silent()
    record = read_record(out)
    result = Verification()
    _compare_tensors(out, record, result, progress)
    _compare_files(out, record, result)
    if sample == 0:
        pass
    elif not isinstance(record, MergeRecord):
        result.notes.append("nothing was merged into this folder, so only its files were compared")
    else:
        try:
            locked = load_recipe(recipe or out / LOCK_FILE)
            sampled = _Sampled(record, sample, seed, result)
            sampled.merge(locked, limits.resources(), hub or Hub(), progress)
        except HfTsvError as error:  # sources may be gone, or need a token; the files have been compared anyway
            result.not_checked += [f"not merged again: {problem}" for problem in error.problems]
            result.not_checked.append(
                f"where sources have moved, pass a copy of {out / LOCK_FILE} that names them as --recipe;"
                " --sample 0 compares the files alone"
            )
            result.exit_code = error.exit_code
    if result.differs:
        result.exit_code = 1
    return result


def _files_of(record: Record) -> Sequence[str]:
    """Return the names of the weight files, whose tensors have checksums of their own."""
    return record.files if isinstance(record, MergeRecord | RestoredRecord) else ()


def _compare_tensors(out: Path, record: Record, result: Verification, progress: Progress) -> None:
    """Compare every byte of the weight files: headers with the bytes that we write, tensors with their checksums."""
    entries: Mapping[str, TensorEntry | TensorSum] = {}
    if isinstance(record, MergeRecord | RestoredRecord):
        entries = record.tensors
    present: list[Located] = []
    for file in _files_of(record):
        path = out / file
        try:
            in_file = read_header(path)
        except CheckpointError as error:
            result.differs += error.problems
            continue
        header, _ = layout([located.info for located in in_file], METADATA)
        with path.open("rb") as stream:
            # Other bytes can describe the same tensors, or hold metadata that we didn't write.
            if stream.read(len(header)) != header:
                result.differs.append(f"{path}: its header is not the one that was written. Download it again")
        present += in_file
    progress.begin(float(sum(located.info.nbytes for located in present)))
    # Threads suffice: hashing and reading release Python's lock.
    with ThreadPoolExecutor(usable_cores()) as pool:
        for located, digest in zip(present, pool.map(_digest, present), strict=True):
            info = located.info
            progress.advance(info.nbytes, info.name)
            entry = entries.get(info.name)
            where = f"{located.path}: tensor {info.name!r}"
            if entry is None:
                result.differs.append(f"{where} is not in the record")
            elif isinstance(entry, TensorEntry) and (info.dtype, info.shape) != (entry.dtype, entry.shape):
                found = f"{info.dtype} {list(info.shape)}"
                result.differs.append(f"{where} is {found}, expected {entry.dtype} {list(entry.shape)}")
            elif digest != entry.sha256:
                result.differs.append(f"{where} has other bytes than were written. Download the file again")
    result.tensors = len(present)
    # If a file is broken or gone, so are its tensors, and its own line is enough.
    lost = sorted(entries.keys() - {located.info.name for located in present})
    if lost and not result.differs:
        result.differs.append(f"{out}: {len(lost)} recorded tensors are in none of its files: {some(lost)}")


def _digest(located: Located) -> str:
    """Return a tensor's SHA-256, or the reason why it can't be read, which is unequal to every checksum."""
    try:
        return sha256_of(located.path, located.start, located.info.nbytes)
    except OSError as error:
        return error.strerror or "can't be read"


def _compare_files(out: Path, record: Record, result: Verification) -> None:
    """Compare the files beside the weights with their checksums, and look for files without checksums."""
    for file, digest in record.checksums.items():
        if not (out / file).is_file():
            result.differs.append(f"{out / file}: is gone")
        elif sha256_of(out / file) != digest:
            result.differs.append(f"{out / file}: has other bytes than were written")
    result.files = len(record.checksums)
    # An unrecorded file may be a person's own, so it is reported but not counted as a difference.
    present = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    known = {*record.checksums, *_files_of(record)}
    extra = sorted(file for file in present - known if Path(file).name not in OWN_WORDS)
    if extra:
        result.not_checked.append(f"{out}: the record has no checksum of {len(extra)} files: {some(extra)}")


class _Sampled:
    """A sample of a record's tensors, merged again and compared with the record instead of written."""

    def __init__(self, record: MergeRecord, sample: int | None, seed: int, result: Verification) -> None:
        """
        Args:
            record: The record to compare with.
            sample: The number of tensors; None for all.
            seed: The seed of the random sample.
            result: The result that differences are added to.
        """
        self._record = record
        self._sample = sample
        self._draw = random.Random(seed)
        self._result = result
        self._differing: dict[str, str] = {}  # tensor to method

    def merge(self, locked: Recipe, resources: Resources, hub: Hub, progress: Progress) -> None:
        """Merge the sample from the sources that a recipe names. Raises the errors of a merge."""
        opened = open_recipe(locked, hub).fetched(progress)
        plan, sources = opened.plan, opened.sources
        entries = self._record.tensors
        steps = [step for step in plan.steps if step.name in entries]
        if self._sample is not None:
            # Drawn in the plan's order, so that a seed gives the same sample everywhere.
            steps = self._draw.sample(steps, min(self._sample, len(steps)))
        check_memory(plan, resources)
        # Local folders have no commit: the size, modification time and header of their files show changes.
        recorded = {source.task: source.fingerprint for source in self._record.sources}
        for source in sources:
            fingerprint = recorded.get(source.task)
            if fingerprint and source.identity != fingerprint:
                self._result.notes.append(
                    f"{source.ref}: its files have another size, time of change or header than when they were merged"
                )
        self._result.notes += _other_versions(self._record.versions, resources.device)
        run(plan, steps, self, resources, progress)
        self._result.recomputed = sorted(step.name for step in steps)
        for name, method in sorted(self._differing.items()):
            self._result.differs.append(f"{name}: {method} of the sources gives other bits than were recorded")
        in_one_only = sorted(entries.keys() ^ {step.name for step in plan.steps})
        if in_one_only:
            self._result.differs.append(
                f"{locked.source}: its sources hold other tensors than were merged: {some(in_one_only)}"
            )

    def put(self, step: Step, tensor: Tensor, facts: Mapping[str, Any]) -> None:
        """Compare a merged tensor with the record; the engine calls this for each one."""
        digest = hashlib.sha256(bytes_of(tensor)).hexdigest()
        if digest != self._record.tensors[step.name].sha256:
            # Several threads call this at once, so the lines are written later, in the order of names.
            self._differing[step.name] = step.method


def _other_versions(then: Versions, device: torch.device) -> list[str]:
    """Return one line per changed version among those that the bits depend on. Python's is not one of them."""
    now = versions(device)
    compared = {
        "numerics": (then.numerics, now.numerics),
        "torch": (then.torch, now.torch),
        "processor": (then.processor, now.processor),
    }
    notes = []
    for what, (before, after) in compared.items():
        if before != after:
            notes.append(f"made with {what} {before}, merged again with {after}: another one may round differently")
    return notes
