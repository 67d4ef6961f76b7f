"""The base of checkpoints that show another one, with something about it changed."""

from collections.abc import Sequence

from torch import Tensor

from hf_tsv.checkpoints.protocol import Checkpoint, TensorInfo


class View:
    """A checkpoint seen as it is. A subclass defines only what differs.

    It is a plain `Checkpoint` even of an adapter: the inner one's changes and factors don't show through.

    Attributes:
        label: What a message calls it.
        inner: The checkpoint that is seen.
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
