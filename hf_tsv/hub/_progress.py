"""How far a download is, without the client's own bars."""

import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any


class ByteCounter:
    """Tells a callback how many more bytes have come.

    `bar` stands where the client expects a tqdm class. Two of the bars it makes count bytes, those received and those
    written, and which of them moves depends on the transport; the further one is believed.
    """

    def __init__(self, progress: Callable[[int], None] | None) -> None:
        self._progress = progress
        self._told = 0
        self._lock = threading.Lock()

    def bar(self, *_: Any, unit: str = "it", **__: Any) -> "Bar":
        return Bar(self._advance if unit == "B" else None)

    def _advance(self, done: int) -> None:
        with self._lock:
            more, self._told = max(0, done - self._told), max(done, self._told)
        if more and self._progress:
            self._progress(more)


class Bar:
    """A tqdm that draws nothing; whatever else the client calls on it does nothing."""

    format_dict: Mapping[str, Any] = MappingProxyType({})  # where the client looks for the speed

    def __init__(self, advance: Callable[[int], None] | None) -> None:
        self.n = 0
        self.total = 0
        self._advance = advance
        self._lock = threading.Lock()

    def update(self, more: float | None = 1) -> None:
        with self._lock:
            self.n += int(more or 0)
            done = self.n
        if self._advance:
            self._advance(done)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None
