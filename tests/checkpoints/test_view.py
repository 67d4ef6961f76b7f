"""A view passes on everything that it doesn't change, and shows an adapter as a plain checkpoint."""

import torch

from hf_tsv.checkpoints.memory import MemoryCheckpoint
from hf_tsv.checkpoints.protocol import AdapterCheckpoint, Checkpoint
from hf_tsv.checkpoints.view import View


class Recorded(MemoryCheckpoint):
    """Notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__({"a": torch.arange(6).reshape(3, 2)}, label="inner")
        self.needed: list[str] = []

    def will_need(self, name: str) -> None:
        self.needed.append(name)

    def is_changed(self, name: str) -> bool:
        return True


def test_a_view_passes_everything_on() -> None:
    inner = Recorded()
    view: Checkpoint = View(inner)
    assert (view.label, View(inner, label="other").label) == ("inner", "other")
    assert (view.names(), view.info("a"), view.fingerprint()) == (inner.names(), inner.info("a"), inner.fingerprint())
    assert view.read("a", (1, 3)).tolist() == [[2, 3], [4, 5]]
    view.will_need("a")
    assert inner.needed == ["a"]
    assert not hasattr(view, "is_changed")
    assert not isinstance(view, AdapterCheckpoint)
