"""YAML text -> plain data in which every value knows its line."""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from hf_tsv.errors import RecipeError

Path = tuple[str | int, ...]
Mark = tuple[int, int]  # line and column, from 1
Pairs = dict[str, tuple[yaml.Node, yaml.Node]]  # the nodes of key and value, by the key

MOST_VALUES = 100_000  # far beyond any recipe; a few lines of nested aliases can stand for billions

_TAG = "tag:yaml.org,2002:"
_KEY_TAGS = (_TAG + "str", _TAG + "merge")
_WAYS_OUT = {
    "'\\t'": "Indent by spaces, not by tabs.",
    "that cannot start any token": "Put the value in quotes.",
    "alias": "A value that starts with * needs quotes.",
    "mapping values are not allowed": "A value that holds ': ' needs quotes, and keys of one level the same indent.",
}


@dataclass
class Document:
    """What a recipe file says, and what is wrong with it.

    Attributes:
        source: What messages call the file.
        data: Its content: dicts with text keys, lists and scalars.
        marks: Where each value starts; for the value of a key, where the key does.
        notes: What is right but has no effect, or another than its words say.
        layers: How many layers it says that the models have, and the line; None where it doesn't say.
    """

    source: str
    data: Any = None
    marks: dict[Path, Mark] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    layers: tuple[int, int] | None = None
    _problems: list[tuple[Mark, Path, str]] = field(default_factory=list)

    def tell(self, path: Path, problem: str) -> None:
        """Note a mistake, to be raised together with all others. What is absent is told of what it is absent from."""
        self.tell_at(self._mark(path), problem, path)

    def tell_at(self, mark: Mark, problem: str, path: Path = ()) -> None:
        self._problems.append((mark, path, problem))

    def tell_missing(self, path: Path, way_out: str) -> None:
        """Note that a key is missing, unless it is there and wrong."""
        if not self.told(path):
            self.tell(path, f"'{path[-1]}' is missing. {way_out}")

    def told(self, path: Path) -> bool:
        """Whether a mistake is noted of the value at `path`, or of one inside or around it."""
        return any(path[: len(other)] == other[: len(path)] for _, other, _ in self._problems if other)

    def line(self, path: Path) -> int:
        """The line of the value at `path`, or of what it is absent from."""
        return self._mark(path)[0]

    def note(self, path: Path, note: str) -> None:
        self.notes.append(f"{self.source}:{self.line(path)}: {note}")

    def raise_problems(self) -> None:
        """Raise RecipeError with every mistake noted, in the order of the file."""
        if self._problems:
            in_order = sorted(self._problems, key=lambda problem: problem[0])
            raise RecipeError(f"{self.source}:{line}: {text}" for (line, _), _, text in in_order)

    def _mark(self, path: Path) -> Mark:
        return next(self.marks[path[:i]] for i in range(len(path), -1, -1) if path[:i] in self.marks)


def read_yaml(
    text: str,
    source: str,
    *,
    keys: str = "merge_method, base_model and models",
    example: str = "merge_method: tsv_m",
) -> Document:
    """Read the one YAML document of a recipe or suite, which must be a mapping; `keys` and `example` say of what.

    Numbers such as 1e-3 are numbers here, as in YAML 1.2, and dates are text. What doesn't keep the rest from being
    read, such as a key written twice, is noted in the document.

    Raises:
        RecipeError: the text is no YAML, is empty, or is no mapping.
    """
    try:
        return _read(text, source, keys, example)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise RecipeError(f"{source}:{mark.line + 1 if mark else 1}: {_syntax_problem(error)}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(
            f"{source}:{line}: character U+{ord(text[error.position]):04X} isn't allowed in YAML."
        ) from None
    except RecursionError:
        raise RecipeError(f"{source}:1: its values are nested too deeply for a recipe.") from None


def _read(text: str, source: str, keys: str, example: str) -> Document:
    loader = _Loader(text)
    root = loader.get_node() if loader.check_node() else None
    if root is None or root.tag == _TAG + "null":
        raise RecipeError(f"{source}:1: the file is empty, expected {keys}.")
    line, column = _mark(root)
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(f"{source}:{line}: this is no mapping, expected keys such as {example}.")
    document = Document(source, marks={(): (line, column)})
    document.data = _Builder(loader, document).value(root, ())
    if loader.check_node():
        line = loader.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]  # PyYAML has no types for it
        document.tell_at((line, 1), "a second document starts here, expected one recipe a file. Split the file.")
    return document


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's floats and without dates."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML keeps its table so
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TAG + "timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(_TAG + "float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


class _Builder:
    """Turns nodes into data, and marks where each value stands."""

    def __init__(self, loader: _Loader, document: Document) -> None:
        self._loader = loader
        self._document = document
        self._above: set[int] = set()
        self._pairs_of: dict[int, Pairs] = {}

    def value(self, node: yaml.Node, path: Path) -> Any:
        """The value of a node, None where a mistake is noted of it."""
        if len(self._document.marks) > MOST_VALUES:
            raise RecipeError(f"{self._document.source}:1: its aliases stand for more than {MOST_VALUES} values.")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._above:
            return self._document.tell(path, "this alias stands for what it is a part of. Write the value out.")
        if node.tag not in (_TAG + "map", _TAG + "seq"):
            return self._document.tell(path, f"unknown tag {_short(node.tag)}. Leave it out.")
        self._above.add(id(node))
        data = self._mapping(node, path) if isinstance(node, yaml.MappingNode) else self._list(node, path)
        self._above.discard(id(node))
        return data

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        if not _is_text(node.value):
            return self._document.tell(path, "half a character is written here. Write the whole of it.")
        try:
            return self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError):
            return self._document.tell(path, f"{node.value!r} can't be read as {_short(node.tag)}. Leave the tag out.")

    def _list(self, node: yaml.Node, path: Path) -> list[Any]:
        self._document.marks |= {(*path, i): _mark(item) for i, item in enumerate(node.value)}
        return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        pairs = self._pairs(node)
        self._document.marks |= {(*path, name): _mark(key) for name, (key, _) in pairs.items()}
        return {name: self.value(value, (*path, name)) for name, (_, value) in pairs.items()}

    def _pairs(self, node: yaml.Node) -> Pairs:
        """The keys of a mapping and of those merged into it by `<<`, whose own keys count less."""
        if id(node) not in self._pairs_of:
            self._pairs_of[id(node)] = {}  # what a mapping holds that is merged into itself
            own, merged = self._own_pairs(node), Pairs()
            for key, value in node.value:
                if key.tag == _TAG + "merge":
                    for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                        merged = self._merged_pairs(source) | merged
            self._pairs_of[id(node)] = merged | own
        return self._pairs_of[id(node)]

    def _merged_pairs(self, source: yaml.Node) -> Pairs:
        if isinstance(source, yaml.MappingNode):
            return self._pairs(source)
        self._document.tell_at(_mark(source), "'<<' merges what is no mapping. Write an alias of one.")
        return {}

    def _own_pairs(self, node: yaml.Node) -> Pairs:
        pairs: Pairs = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in _KEY_TAGS or not _is_text(key.value):
                self._document.tell_at(_mark(key), "this key is no text. Put it in quotes if it is meant to be.")
            elif key.value in pairs:
                first = _mark(pairs[key.value][0])[0]
                problem = f"'{key.value}' is written twice, first on line {first}. Keep one of them."
                self._document.tell_at(_mark(key), problem)
            elif key.tag == _TAG + "str":
                pairs[key.value] = key, value
        return pairs


def _is_text(value: str) -> bool:
    """Whether it is Unicode: an escape such as \\ud800 alone is half a character."""
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def _mark(node: yaml.Node) -> Mark:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _short(tag: str) -> str:
    return tag.replace(_TAG, "!!")


def _syntax_problem(error: yaml.MarkedYAMLError) -> str:
    began = f" since line {error.context_mark.line + 1}" if error.context_mark else ""
    context = f" {error.context}{began}" if error.context else ""
    fact = f"this isn't YAML: {error.problem}{context}."
    return f"{fact} {next((way_out for sign, way_out in _WAYS_OUT.items() if sign in fact), '')}".rstrip()
