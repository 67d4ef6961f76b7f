"""Findings: tensors that a stage of a run has computed, kept on the disk so that a stopped run can resume."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from hf_tsv.checkpoints.protocol import Shard, TensorInfo
from hf_tsv.checkpoints.safetensors import SafetensorsCheckpoint
from hf_tsv.checkpoints.writer import CheckpointWriter, bytes_of
from hf_tsv.errors import OutputError
from hf_tsv.files.disk import full_disk_told
from hf_tsv.linalg import Factors
from hf_tsv.staging.folder import Staging
from hf_tsv.staging.journal import RESTART, Journal

Notes = TypeVar("Notes", bound=BaseModel)


class Findings:
    """Tensors of one stage of a run, in a file that is filled in any order. The run's journal notes each of them.

    Tensors from an earlier start of the run are there from the beginning. Safe to use from several threads.
    """

    def __init__(self, staging: Staging, identity: Mapping[str, str], stage: str, infos: Sequence[TensorInfo]) -> None:
        """
        Args:
            staging: The run's working folder.
            identity: The identity of the run, for its journal.
            stage: Name of the stage, used for the file and in the journal's lines.
            infos: Headers of the tensors that may be put.

        Raises:
            OutputError: the folder can't be written, or the journal can't be read.
            ResourceError: the disk is full.
        """
        path = staging.scratch / f"{stage}.safetensors"
        with full_disk_told(path):
            staging.scratch.mkdir(exist_ok=True)
        self._path = path
        self._writer = CheckpointWriter(staging.scratch, [Shard(path.name, tuple(infos))])
        self._journal = Journal(staging, self._writer, identity, stage=stage)
        self._file = SafetensorsCheckpoint([path], label=str(path))

    def __contains__(self, name: str) -> bool:
        """Return whether something was put under this name, be it a tensor or None."""
        return name in self._journal.done

    def put(self, name: str, tensor: Tensor | None, notes: BaseModel) -> None:
        """Keep a tensor, or None where there is no tensor to keep, together with notes about it."""
        checksum = None if tensor is None else self._writer.write(name, tensor)
        nbytes = 0 if tensor is None else tensor.nbytes
        self._journal.note(name, sha256=checksum, nbytes=nbytes, notes=notes.model_dump())

    def notes(self, name: str, model: type[Notes]) -> Notes:
        """Return the notes that were put under this name.

        Raises:
            OutputError: the journal's notes don't fit the model.
        """
        try:
            return model.model_validate(self._journal.done[name].notes)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, ("notes", *first["loc"])))
            raise OutputError(f"{self._path}: {name}: {field}: {first['msg']}. {RESTART}") from None

    def read(self, name: str) -> Tensor:
        """Read a tensor that was put.

        Raises:
            OutputError: the tensor in the file was changed since, by its checksum.
        """
        tensor = self._file.read(name)
        if hashlib.sha256(bytes_of(tensor)).hexdigest() != self._journal.done[name].sha256:
            raise OutputError(f"{self._path}: was damaged. {RESTART}")
        return tensor

    def sync(self) -> None:
        """Write everything that was put to the disk, so that it survives a power cut and the end of this process."""
        self._journal.sync()

    def __enter__(self) -> "Findings":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._journal.__exit__()  # syncs through the writer, which must still be open
        finally:
            self._writer.__exit__()


def packed(matrices: Sequence[Factors], rank: int) -> Tensor:
    """Pack factors of E matrices (m, n), at most `rank` triplets each, into one tensor (E, rank, m + 1 + n).

    A row is a triplet: its column of u, s, its row of vh. Missing triplets are rows of zeros.
    """
    padded = []
    for factors in matrices:
        triplets = torch.cat([factors.u.T, factors.s[:, None], factors.vh], dim=1)  # (k, m + 1 + n)
        zeros = triplets.new_zeros(rank - len(triplets), triplets.shape[1])
        padded.append(torch.cat([triplets, zeros]))  # (rank, m + 1 + n)
    return torch.stack(padded)


def unpacked(rows: Tensor, m: int, counts: Sequence[int], energies: Sequence[float | None]) -> list[Factors]:
    """Unpack the factors of `packed`.

    Args:
        rows: The packed tensor (E, rank, m + 1 + n), or its first triplets.
        m: Number of rows of each matrix.
        counts: Number of triplets of each matrix; where `rows` has fewer, all of them are taken.
        energies: Energy of each whole matrix; None where it isn't known.
    """
    factors = []
    for matrix, count, energy in zip(rows, counts, energies, strict=True):
        triplets = matrix[:count]  # (k, m + 1 + n)
        u = triplets[:, :m].T  # (m, k)
        s = triplets[:, m]  # (k,)
        vh = triplets[:, m + 1 :]  # (k, n)
        factors.append(Factors(u.contiguous(), s.contiguous(), vh.contiguous(), energy))
    return factors
