"""A fine-tune saved from a class with a head has its encoder under a prefix; the base may have none, or the reverse."""

from collections.abc import Sequence

from torch import Tensor

from hf_tsv.checkpoints.protocol import Checkpoint, TensorInfo

ENOUGH = 0.5  # of the base's tensors: fewer matches than that are chance


def aligned(checkpoint: Checkpoint, base: Checkpoint) -> Checkpoint:
    """The checkpoint under the base's names.

    `BertModel` saves `encoder.layer.0…`, `BertForSequenceClassification` the same as `bert.encoder.layer.0…`.
    The one prefix that makes most names meet is dropped or added; when the names meet as they are, or nothing
    makes them meet, the checkpoint comes back as it is.
    """
    ours, theirs = set(base.names()), set(checkpoint.names())
    if len(ours & theirs) >= ENOUGH * len(ours):
        return checkpoint
    found = max(_candidates(ours, theirs), key=lambda item: item[0], default=(0, "", ""))
    matches, drop, add = found
    return Renamed(checkpoint, drop, add) if matches >= ENOUGH * len(ours) else checkpoint


class Renamed:
    """A checkpoint with one prefix of its names dropped and another added."""

    def __init__(self, checkpoint: Checkpoint, drop: str, add: str) -> None:
        self.label = checkpoint.label
        self._checkpoint = checkpoint
        self._names = {_swap(name, drop, add): name for name in checkpoint.names()}

    def names(self) -> Sequence[str]:
        return tuple(self._names)

    def info(self, name: str) -> TensorInfo:
        info = self._checkpoint.info(self._names[name])
        return TensorInfo(name, info.shape, info.dtype)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        return self._checkpoint.read(self._names[name], rows)

    def will_need(self, name: str) -> None:
        self._checkpoint.will_need(self._names[name])

    def fingerprint(self) -> str:
        return self._checkpoint.fingerprint()


def _candidates(ours: set[str], theirs: set[str]) -> list[tuple[int, str, str]]:
    """(how many names meet, prefix to drop, prefix to add), for every first component of a name."""
    dropped = [(len({_swap(n, p, "") for n in theirs} & ours), p, "") for p in _first_parts(theirs)]
    added = [(len({p + n for n in theirs} & ours), "", p) for p in _first_parts(ours)]
    return dropped + added


def _first_parts(names: set[str]) -> list[str]:
    return sorted({name.split(".", 1)[0] + "." for name in names if "." in name})


def _swap(name: str, drop: str, add: str) -> str:
    return add + name.removeprefix(drop)
