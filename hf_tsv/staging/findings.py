"""What a compression has found so far: kept on the disk while it runs, so that one that was stopped goes on."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_tsv.checkpoints.protocol import Shard, TensorInfo
from hf_tsv.checkpoints.safetensors import SafetensorsCheckpoint
from hf_tsv.checkpoints.writer import CheckpointWriter, bytes_of
from hf_tsv.errors import OutputError
from hf_tsv.files.disk import full_disk_told
from hf_tsv.linalg import Factors
from hf_tsv.staging.folder import Staging
from hf_tsv.staging.journal import Journal


class Findings:
    """Tensors found in one stage of a run, in a file that is filled in any order and noted in the run's journal.

    What was found by an earlier start of the run is there from the beginning. Safe to use from several threads.
    """

    def __init__(self, staging: Staging, identity: Mapping[str, str], stage: str, infos: Sequence[TensorInfo]) -> None:
        """
        Args:
            staging: The run's working folder.
            identity: What the run is, for its journal.
            stage: Names the file, and the entries in the journal.
            infos: What may be found, at most so large.

        Raises:
            OutputError: the folder can't be written, or the journal not be read.
            ResourceError: the disk is full.
        """
        path = staging.scratch / f"{stage}.safetensors"
        with full_disk_told(path):
            staging.scratch.mkdir(exist_ok=True)
        self._path = path
        self._writer = CheckpointWriter(staging.scratch, [Shard(path.name, tuple(infos))])
        self._journal = Journal(staging, self._writer, identity, stage=stage)
        self._file = SafetensorsCheckpoint([path], label=str(path))

    @property
    def done(self) -> Mapping[str, Mapping[str, Any]]:
        """What was noted of everything that is found, by name."""
        return self._journal.done

    def put(self, name: str, tensor: Tensor | None, **facts: Any) -> None:
        """Keep a tensor, or None where there is none to keep, and what is to be known of it as plain data."""
        checksum = None if tensor is None else self._writer.write(name, tensor)
        self._journal.note({"name": name, "sha256": checksum, **facts}, tensor.nbytes if tensor is not None else 0)

    def read(self, name: str) -> Tensor:
        """A tensor that was put.

        Raises:
            OutputError: the file holds another one now.
        """
        tensor = self._file.read(name)
        if hashlib.sha256(bytes_of(tensor)).hexdigest() != self.done[name]["sha256"]:
            raise OutputError(f"{self._path}: was damaged. Pass --restart to throw the unfinished run away")
        return tensor

    def sync(self) -> None:
        """Make all that was put survive a power cut, and the end of this process."""
        self._journal.sync()

    def __enter__(self) -> "Findings":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._journal.__exit__()
        finally:
            self._writer.__exit__()


def packed(matrices: Sequence[Factors], rank: int) -> Tensor:
    """Factors of E matrices (m, n), at most `rank` triplets each, as one tensor (E, rank, m + 1 + n).

    A row is a triplet: its column of u, s, its row of vh; zeros fill up.
    """
    rows = [torch.cat([f.u.T, f.s[:, None], f.vh], dim=1) for f in matrices]
    return torch.stack([torch.cat([r, r.new_zeros(rank - len(r), r.shape[1])]) for r in rows])


def unpacked(rows: Tensor, m: int, kept: Sequence[int], energies: Sequence[float | None]) -> list[Factors]:
    """The reverse of `packed`: `kept` triplets of each matrix, whose rows were m."""
    cut = (matrix[:k] for matrix, k in zip(rows, kept, strict=True))
    return [
        Factors(row[:, :m].T.contiguous(), row[:, m].contiguous(), row[:, m + 1 :].contiguous(), energy)
        for row, energy in zip(cut, energies, strict=True)
    ]
