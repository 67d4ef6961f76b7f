"""The journal of a run's complete tensors, one line of JSON per tensor. A stopped run resumes from it.

The first line identifies the run; each other line states that a tensor's bytes are on the disk. Only whole lines count:
a process that is killed may leave half a line at the end.
"""

import json
import os
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from hf_tsv.checkpoints.writer import CheckpointWriter
from hf_tsv.errors import OutputError
from hf_tsv.files.disk import full_disk_told, sync_folder
from hf_tsv.staging.folder import Staging

MERGED = "merged"  # the stage of a run that writes the model's own files
SYNC_BYTES, SYNC_SECONDS = 256 * 2**20, 1.0  # a sync is due after whichever comes first; a crash loses about so much
RESTART = "Pass --restart to throw the unfinished run away"


class RunLine(BaseModel):
    """The first line of a journal.

    Attributes:
        format: Version of the journal's format. Another version of this package may write another format.
        identity: Everything that has to be the same for the run to be resumed, under its name in messages.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: Literal[1] = 1
    identity: dict[str, str]


class TensorLine(BaseModel):
    """The line of a complete tensor.

    Attributes:
        name: Name of the tensor, unique within its stage.
        stage: Name of the part of the run that made the tensor.
        sha256: SHA-256 of the tensor's bytes; None where there is no tensor to keep.
        seconds: Time that the tensor took; None if it wasn't measured.
        notes: Notes of the method, or the stage, about the tensor.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: str
    stage: str
    sha256: str | None = None
    seconds: float | None = None
    notes: dict[str, JsonValue] = {}

    def facts(self) -> dict[str, JsonValue]:
        """Return the record's facts about the tensor."""
        facts = dict(self.notes)
        if self.seconds is not None:
            facts["seconds"] = self.seconds
        return facts | {"sha256": self.sha256}


class Journal:
    """A list of complete tensors. A tensor's line is written only after its bytes are on the disk.

    Each process of a run has its own journal; the first process adds the others' lines to its own. A run with several
    stages has one object for each stage, on the same file. Safe to use from several threads.

    Attributes:
        done: The line of each noted tensor of the stage, by name.
    """

    def __init__(
        self,
        staging: Staging,
        writer: CheckpointWriter,
        identity: Mapping[str, str],
        *,
        rank: int = 0,
        stage: str = MERGED,
    ) -> None:
        """
        Args:
            staging: The run's working folder.
            writer: The writer of the noted tensors.
            identity: The identity of the run.
            rank: Rank of this process in the run.
            stage: Name of this part of the run.

        Raises:
            OutputError: the journal can't be read or written.
            ResourceError: the disk is full.
        """
        self._root, self._stage = staging.root, stage
        self._path = staging.root / (f"journal-{rank}.jsonl" if rank else "journal.jsonl")
        self._writer = writer
        self._pending: list[TensorLine] = []
        self._pending_bytes = 0
        self._synced = time.monotonic()
        self._lock = Lock()
        if self._path.exists():
            # Half a line at the end is removed, because the next line would be appended to it.
            whole_bytes = sum(len(line) + 1 for line in _complete_lines(self._path))
            os.truncate(self._path, whole_bytes)
        self.done = _lines_of(self._path, stage, but=writer.made_anew)
        with full_disk_told(self._path):
            self._file = self._path.open("ab", buffering=0)
        if not self._path.stat().st_size:
            sync_folder(staging.out)
            self._append([RunLine(identity=dict(identity))])
        # A run that was stopped early may have left journals of its other processes.
        if not rank:
            self.take_in(but=writer.made_anew)

    def take_in(self, but: Collection[str] = ()) -> None:
        """Move the other processes' lines into this journal, except those of the tensors in `but`."""
        for path in sorted(self._root.glob("journal-*.jsonl")):
            lines = _lines_of(path, self._stage, but)
            self._append(list(lines.values()))
            self.done |= lines
            path.unlink()  # only now, when its lines are on the disk in this journal

    @staticmethod
    def read_identity(staging: Staging) -> dict[str, str] | None:
        """Read the identity of the run that left this folder; None if there was no run.

        Raises:
            OutputError: the journal is damaged, or another version wrote it.
        """
        path = staging.root / "journal.jsonl"
        lines = _complete_lines(path)
        return _parsed(path, 1, lines[0], RunLine).identity if lines else None

    @staticmethod
    def read_done(staging: Staging, stage: str) -> set[str]:
        """Read the names noted in one stage of the run that left this folder. Errors are those of `read_identity`."""
        return set(_lines_of(staging.root / "journal.jsonl", stage))

    def note(
        self,
        name: str,
        *,
        sha256: str | None,
        nbytes: int,
        seconds: float | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Note a written tensor. The note is on the disk after the next sync.

        Args:
            name: Name of the tensor.
            sha256: SHA-256 of the tensor's bytes; None where there is no tensor to keep.
            nbytes: Number of bytes written.
            seconds: Time that the tensor took; None if it wasn't measured.
            notes: Any values that JSON can hold.
        """
        # Converted to JSON and back, so that a resumed run has the same notes as one that wasn't stopped.
        plain = json.loads(json.dumps(dict(notes or {})))
        line = TensorLine(name=name, stage=self._stage, sha256=sha256, seconds=seconds, notes=plain)
        with self._lock:
            self.done[name] = line
            self._pending.append(line)
            self._pending_bytes += nbytes
            due = self._pending_bytes >= SYNC_BYTES or time.monotonic() - self._synced >= SYNC_SECONDS
        if due:
            self.sync()

    def sync(self) -> None:
        """Write the data to the disk, then the lines that state that it is there."""
        # Under the lock, so that no line is added whose data is not yet on the disk.
        with self._lock:
            self._synced = time.monotonic()
            if self._pending:
                self._writer.sync()
                self._append(self._pending)
                self._pending, self._pending_bytes = [], 0

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.sync()
        finally:
            self._file.close()

    def _append(self, lines: Sequence[RunLine | TensorLine]) -> None:
        """Append all of the lines or, where the disk is full, none: half a line would spoil the next one."""
        text = "".join(json.dumps(line.model_dump()) + "\n" for line in lines)
        data = memoryview(text.encode())
        end = self._file.seek(0, os.SEEK_END)
        with full_disk_told(self._path):
            try:
                while data:  # one write may write only part of the data
                    data = data[self._file.write(data) :]
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(end)
                raise


def names_in(path: Path) -> set[str]:
    """Read the names of the tensors in a journal, of all stages. Another process may be writing to the journal.

    Raises:
        OutputError: the journal is damaged, or another version wrote it.
    """
    return {line.name for line in _tensor_lines(path)}


Line = TypeVar("Line", RunLine, TensorLine)


def _lines_of(path: Path, stage: str, but: Collection[str] = ()) -> dict[str, TensorLine]:
    """Read the lines of one stage by tensor, except those of the tensors in `but`."""
    return {line.name: line for line in _tensor_lines(path) if line.stage == stage and line.name not in but}


def _tensor_lines(path: Path) -> list[TensorLine]:
    lines = _complete_lines(path)
    return [_parsed(path, number, line, TensorLine) for number, line in enumerate(lines[1:], start=2)]


def _parsed(path: Path, number: int, line: bytes, model: type[Line]) -> Line:
    """Parse one line of a journal.

    Raises:
        OutputError: the line isn't valid; names the line and the field.
    """
    try:
        # Not with pydantic's JSON parser: Python's restores every float that it wrote, bit for bit.
        return model.model_validate(json.loads(line))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        problem = f"{field}: {first['msg']}" if field else first["msg"]
    except (ValueError, RecursionError):
        problem = "is not JSON"
    raise OutputError(
        f"{path}:{number}: {problem}: the journal is damaged, or another version of hf-tsv wrote it. {RESTART}"
    )


def _complete_lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    return path.read_bytes().split(b"\n")[:-1]  # the part after the last newline is empty, or an incomplete line
