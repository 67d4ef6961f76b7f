"""Progress reporting: the protocol, and an implementation that does nothing."""

from typing import Protocol


class Progress(Protocol):
    """A listener that is notified how much work there is and, in the same unit, how much has been done."""

    def begin(self, total: float) -> None: ...

    def advance(self, work: float, name: str) -> None: ...


class Silent:
    """Progress that shows nothing."""

    def begin(self, total: float) -> None: ...

    def advance(self, work: float, name: str) -> None: ...
