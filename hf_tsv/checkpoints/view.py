"""The base class of checkpoints that show another checkpoint with a change."""

from collections.abc import Sequence

from torch import Tensor

from hf_tsv.checkpoints.protocol import Checkpoint, TensorInfo


class View:
    """An unchanged view of a checkpoint. A subclass defines only what differs.

    It is a plain `Checkpoint`, even if the inner one is an adapter: the adapter's changes and factors are hidden.

    Attributes:
        label: The checkpoint's name in messages.
        inner: The underlying checkpoint.
    """

    def __init__(self, inner: Checkpoint, *, label: str | None = None) -> None:
        self.inner = inner
        self.label = inner.label if label is None else label

    def names(self) -> Sequence[str]:
        return self.inner.names()

    def info(self, name: str) -> TensorInfo:
        return self.inner.info(name)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        return self.inner.read(name, rows)

    def will_need(self, name: str) -> None:
        self.inner.will_need(name)

    def fingerprint(self) -> str:
        return self.inner.fingerprint()
