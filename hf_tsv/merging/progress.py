"""What hears of the work done: a progress bar, or nothing."""

from typing import Protocol


class Progress(Protocol):
    """Told how much work there is and, in the same unit, how much has been done."""

    def begin(self, total: float) -> None: ...

    def advance(self, work: float, name: str) -> None: ...


class Silent:
    """Progress that nobody watches."""

    def begin(self, total: float) -> None: ...

    def advance(self, work: float, name: str) -> None: ...
