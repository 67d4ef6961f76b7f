"""Align a fine-tune's names with the base's.

A fine-tune saved from a class with a head has its encoder under a prefix that the base may not have, or the reverse.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from hf_tsv.checkpoints.protocol import Checkpoint, TensorInfo
from hf_tsv.checkpoints.view import View

ENOUGH = 0.5  # fraction of the base's tensors: fewer matches than that are chance


@dataclass(frozen=True)
class Renaming:
    """A renaming of tensors: remove the prefix `drop` from names that have it, then put `add` in front."""

    drop: str = ""
    add: str = ""

    def __call__(self, name: str) -> str:
        return self.add + name.removeprefix(self.drop)


def aligned(checkpoint: Checkpoint, base: Checkpoint) -> Checkpoint:
    """Return the checkpoint under the base's names.

    `BertModel` saves `encoder.layer.0…`, `BertForSequenceClassification` the same as `bert.encoder.layer.0…`.
    The one prefix that makes most names match is dropped or added. If enough names match as they are, or no prefix
    makes enough of them match, the checkpoint is returned unchanged.
    """
    base_names, names = set(base.names()), set(checkpoint.names())
    if len(base_names & names) >= ENOUGH * len(base_names):
        return checkpoint
    # A class puts a whole model under one attribute, so only the first component of a name can be the prefix.
    renamings = [Renaming(drop=prefix) for prefix in first_components(names)]
    renamings += [Renaming(add=prefix) for prefix in first_components(base_names)]
    matches = {renaming: len(base_names & set(map(renaming, names))) for renaming in renamings}
    best = max(renamings, key=matches.__getitem__, default=Renaming())
    if matches.get(best, 0) < ENOUGH * len(base_names):
        return checkpoint
    return Renamed(checkpoint, best)


class Renamed(View):
    """A checkpoint under other names, which a renaming gives."""

    def __init__(self, inner: Checkpoint, renaming: Renaming) -> None:
        super().__init__(inner)
        self._inner_names = {renaming(name): name for name in inner.names()}

    def names(self) -> Sequence[str]:
        return tuple(self._inner_names)

    def info(self, name: str) -> TensorInfo:
        info = super().info(self._inner_names[name])
        return TensorInfo(name, info.shape, info.dtype)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        return super().read(self._inner_names[name], rows)

    def will_need(self, name: str) -> None:
        super().will_need(self._inner_names[name])


def first_components(names: Iterable[str]) -> list[str]:
    """Return the names' prefixes up to and including the first dot, sorted: a set's order differs between runs."""
    return sorted({name.split(".", 1)[0] + "." for name in names if "." in name})
