"""The content of one of this package's YAML files, and its mistakes."""

from dataclasses import dataclass, field
from typing import Any

from hf_tsv.errors import RecipeError

Path = tuple[str | int, ...]  # keys and indices, from the top
Mark = tuple[int, int]  # line and column, from 1


@dataclass(frozen=True)
class _Problem:
    """A mistake and its position in the file."""

    mark: Mark
    text: str


@dataclass
class Document:
    """The content of a recipe file, and its mistakes.

    Attributes:
        source: The file's name in messages.
        data: The content: dicts with text keys, lists and scalars.
        marks: The start of each value, by path; for the value of a key, the start of the key.
        notes: Messages about valid settings that have no effect, or another one than their words suggest.
        layers: The models' number of layers by the file, and the line that gives it; None if the file doesn't say.
    """

    source: str
    data: Any = None
    marks: dict[Path, Mark] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    layers: tuple[int, int] | None = None
    _problems: list[_Problem] = field(default_factory=list)
    # The paths of the problems, and of everything around them. Sets, because a file may have thousands of each.
    _wrong: set[Path] = field(default_factory=set)
    _around_wrong: set[Path] = field(default_factory=set)

    def tell(self, path: Path, problem: str) -> None:
        """Note a mistake, to be raised together with all others. A missing value gets its parent's line."""
        self.tell_at(self._mark(path), problem, path)

    def tell_at(self, mark: Mark, problem: str, path: Path = ()) -> None:
        """Note a mistake at a line and column; `path` is the value that contains it, if any."""
        self._problems.append(_Problem(mark, problem))
        if path:
            self._wrong.add(path)
            for end in range(1, len(path) + 1):
                self._around_wrong.add(path[:end])

    def tell_missing(self, path: Path, way_out: str) -> None:
        """Note that a key is missing, unless a mistake in it is already noted."""
        if not self.has_problem(path):
            self.tell(path, f"'{path[-1]}' is missing. {way_out}")

    def has_problem(self, path: Path) -> bool:
        """True if a mistake was noted for the value at `path`, or for one inside or around it."""
        if path in self._around_wrong:
            return True
        return any(path[:end] in self._wrong for end in range(1, len(path)))

    def line(self, path: Path) -> int:
        """The line of the value at `path`; if it is missing, the line of its parent."""
        return self._mark(path)[0]

    def note(self, path: Path, note: str) -> None:
        """Note that the value at `path` has no effect, or another one than its words suggest."""
        self.notes.append(f"{self.source}:{self.line(path)}: {note}")

    def raise_problems(self) -> None:
        """Raise RecipeError with every mistake noted, in the order of the file."""
        if self._problems:
            in_order = sorted(self._problems, key=lambda problem: problem.mark)
            raise RecipeError(f"{self.source}:{problem.mark[0]}: {problem.text}" for problem in in_order)

    def _mark(self, path: Path) -> Mark:
        # `read_yaml` marks the top, so the loop ends there at the latest.
        while path not in self.marks:
            path = path[:-1]
        return self.marks[path]
