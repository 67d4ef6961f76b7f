"""What a YAML file of ours says, and everything that is wrong with it."""

from dataclasses import dataclass, field
from typing import Any

from hf_tsv.errors import RecipeError

Path = tuple[str | int, ...]  # keys and indices, from the top
Mark = tuple[int, int]  # line and column, from 1


@dataclass(frozen=True)
class _Problem:
    """A mistake, and where it stands in the file."""

    mark: Mark
    text: str


@dataclass
class Document:
    """What a recipe file says, and what is wrong with it.

    Attributes:
        source: What messages call the file.
        data: Its content: dicts with text keys, lists and scalars.
        marks: Where each value starts; for the value of a key, where the key does.
        notes: What is right but has no effect, or a different one than its words suggest.
        layers: How many layers it says the models have, and the line; None where it doesn't say.
    """

    source: str
    data: Any = None
    marks: dict[Path, Mark] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    layers: tuple[int, int] | None = None
    _problems: list[_Problem] = field(default_factory=list)
    # The paths of the problems, and everything around them: files may have many thousands of each.
    _wrong: set[Path] = field(default_factory=set)
    _around_wrong: set[Path] = field(default_factory=set)

    def tell(self, path: Path, problem: str) -> None:
        """Note a mistake, to be raised together with all others. A missing value has the line around it."""
        self.tell_at(self._mark(path), problem, path)

    def tell_at(self, mark: Mark, problem: str, path: Path = ()) -> None:
        """Note a mistake at a line and column; `path` is the value it is in, if it is in one."""
        self._problems.append(_Problem(mark, problem))
        if path:
            self._wrong.add(path)
            for end in range(1, len(path) + 1):
                self._around_wrong.add(path[:end])

    def tell_missing(self, path: Path, way_out: str) -> None:
        """Note that a key is missing, unless it is there and wrong."""
        if not self.has_problem(path):
            self.tell(path, f"'{path[-1]}' is missing. {way_out}")

    def has_problem(self, path: Path) -> bool:
        """Whether a mistake was noted for the value at `path`, or for one inside or around it."""
        if path in self._around_wrong:
            return True
        return any(path[:end] in self._wrong for end in range(1, len(path)))

    def line(self, path: Path) -> int:
        """The line of the value at `path`, or of what it is missing from."""
        return self._mark(path)[0]

    def note(self, path: Path, note: str) -> None:
        """Note what has no effect, or a different one than its words suggest."""
        self.notes.append(f"{self.source}:{self.line(path)}: {note}")

    def raise_problems(self) -> None:
        """Raise RecipeError with every mistake noted, in the order of the file."""
        if self._problems:
            in_order = sorted(self._problems, key=lambda problem: problem.mark)
            raise RecipeError(f"{self.source}:{problem.mark[0]}: {problem.text}" for problem in in_order)

    def _mark(self, path: Path) -> Mark:
        # The top has a mark, so this ends there at the latest.
        while path not in self.marks:
            path = path[:-1]
        return self.marks[path]
