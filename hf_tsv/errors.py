"""Every error this package raises on purpose.

* HfTsvError                an error that a person can cause, reported as one line per mistake; exit code 1
  + RecipeError             the recipe or suite is wrong; holds every mistake found
  + PlanError               recipe and checkpoints don't fit together; holds every mistake found
  + CheckpointError         a file can't be read as what it claims to be
  + MethodError             a merge method got numbers that it can't merge
  + OutputError             the output folder can't be used, or an earlier run there differs
  + PublishError            licence or privacy forbids publishing the output as asked
  + HubError                the Hub or the network refused or failed; exit code 3
  + ResourceError           not enough disk space or memory; exit code 4

Inner code raises the fact; the engine adds tensor and task; the command line prints the error and sets the exit code.
"""

import re
from collections.abc import Iterable, Sequence
from typing import ClassVar

_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}

DOWNLOADING = "downloading"  # the name under which downloads are reported to progress, in bytes


class HfTsvError(Exception):
    """Base of all errors reported to a person. `str()` has one line per mistake, ready to print."""

    exit_code: ClassVar[int] = 1

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = tuple(map(_printable, [problems] if isinstance(problems, str) else problems))
        super().__init__("\n".join(self.problems))


def _printable(text: str) -> str:
    """Escape unprintable characters, such as control sequences: a message may quote a stranger's file."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


class RecipeError(HfTsvError):
    """The recipe, or the suite of an evaluation, is wrong."""


class PlanError(HfTsvError):
    """The recipe and the checkpoints it names don't fit together."""


class CheckpointError(HfTsvError):
    """A checkpoint file is missing, broken, or of an unsupported kind."""


class MethodError(HfTsvError):
    """A merge method got numbers that it can't merge."""


class OutputError(HfTsvError):
    """The output folder can't be used."""


class PublishError(HfTsvError):
    """An output can't be published as asked: its licence or its sources' privacy forbids it."""


class HubError(HfTsvError):
    """The Hub or the network refused or failed."""

    exit_code = 3


class ResourceError(HfTsvError):
    """There is not enough disk space or memory."""

    exit_code = 4


def some(names: Sequence[str], most: int = 3) -> str:
    """Return the first `most` names, and how many more there are, for a message."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def counted(number: int, what: str) -> str:
    """Return a number with its noun: `1 model`, `2 models`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def parse_bytes(text: str) -> int:
    """Parse a number of bytes such as `4GB`, `500M` or `1e9`.

    Raises:
        ValueError: the text is not a size.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?)i?B?\s*", text, re.IGNORECASE)
    if not match:
        raise ValueError(f"{text!r} is no size")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def size(nbytes: float) -> str:
    """Format a number of bytes for a person, in decimal units like the Hub."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"


def duration(seconds: float) -> str:
    """Format a number of seconds for a person."""
    for limit, length, unit in ((100, 1, "s"), (100 * 60, 60, "min")):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 3600:.1f} h"
