"""The progress of a download, without the client's own bars."""

import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any


class ByteCounter:
    """Counter that calls a callback with the number of bytes received since the last call.

    `bar` replaces the tqdm class that the client expects. Two of its bars count bytes, those received and those
    written, and it depends on the transport which of them moves; the one that is further along counts.
    """

    def __init__(self, progress: Callable[[int], None] | None) -> None:
        self._progress = progress
        self._reported = 0
        self._lock = threading.Lock()

    def bar(self, *_: Any, unit: str = "it", **__: Any) -> "Bar":
        return Bar(self._advance if unit == "B" else None)  # other bars count files

    def _advance(self, done: int) -> None:
        with self._lock:
            more = done - self._reported
            if more <= 0:  # the other bar has already reported these
                return
            self._reported = done
        if self._progress:
            self._progress(more)


class Bar:
    """A tqdm that draws nothing; any other method that the client calls does nothing."""

    format_dict: Mapping[str, Any] = MappingProxyType({})  # the client reads the speed from here

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
