"""Conversion of YAML text to plain data with the line of each value, and of plain data to YAML text.

The parser is ruamel.yaml's. Its loaders stop at the first mistake, so this module walks the composer's tree instead:
every mistake is noted, and the rest is read.
"""

import io
import re
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from hf_tsv.errors import RecipeError
from hf_tsv.recipe._document import Document, Mark, Path
from hf_tsv.recipe._messages import shown

# Far beyond any recipe: larger files are refused before they take time or memory.
MAX_CHARACTERS = 1_000_000
MAX_VALUES = 100_000  # a few lines of nested aliases can stand for billions
MAX_DEPTH = 100

_TAG = "tag:yaml.org,2002:"
_KEY_TAGS = (_TAG + "str", _TAG + "merge")
_TAGS_OF_TEXT = (_TAG + "timestamp", _TAG + "value")  # ruamel's tags for 2024-01-31 and =, which are text in YAML 1.2
_FLOAT = re.compile(r"[-+]?\.[0-9]+[eE][0-9]+")  # such as .5e3: text for ruamel, a number in YAML 1.2
_WAYS_OUT = {
    "'\\t'": "Indent with spaces instead of tabs.",
    "that cannot start any token": "Put the value in quotes.",
    "alias": "A value that starts with * needs quotes.",
    "mapping values are not allowed": "A value that contains ': ' needs quotes, and keys of one level the same indent.",
}

Pairs = dict[str, tuple[Node, Node]]  # the nodes of key and value, by the key


def yaml_of(typ: Literal["safe", "rt"]) -> YAML:
    """Return a ruamel YAML with our limits and scalars; `rt` keeps comments, quotes and order when writing."""
    yaml = YAML(typ=typ, pure=True)
    yaml.Resolver = _Resolver
    yaml.max_depth = MAX_DEPTH
    yaml.composer.warn_double_anchors = False  # YAML allows double anchors: the latest counts
    yaml.allow_unicode = True
    yaml.preserve_quotes = True
    yaml.brace_single_entry_mapping_in_flow_sequence = True  # JSON stays JSON
    yaml.width = MAX_CHARACTERS  # no line is broken
    return yaml


def to_yaml(data: Any) -> str:
    """Return plain data as YAML text, with its keys in their order."""
    text = io.StringIO()
    yaml_of("rt").dump(data, text)
    return text.getvalue()


def read_yaml(
    text: str,
    source: str,
    *,
    keys: str = "merge_method, base_model and models",
    example: str = "merge_method: tsv_m",
) -> Document:
    """Read one of this package's YAML files: one document, which must be a mapping.

    Scalars are those of YAML 1.2: 1e-3 is a number; yes, on and dates are text. Mistakes that don't prevent reading
    the rest, such as a key written twice, are noted in the document.

    Args:
        text: The file's text.
        source: The file's name in messages.
        keys: The keys that the file must have, for the message about an empty file.
        example: A line of such a file, for the message about one that isn't a mapping.

    Raises:
        RecipeError: the text isn't YAML, is too large, is empty, or isn't a mapping.
    """
    if len(text) > MAX_CHARACTERS:
        size = MAX_CHARACTERS // 1_000_000
        raise RecipeError(f"{source}:1: the file is larger than {size} MB. Leave out what isn't needed.")
    try:
        return _read(text, source, keys, example)
    except MaxDepthExceededError as error:
        raise RecipeError(_too_deep(source, _line_of(error))) from None
    except RecursionError:  # from a long chain of aliases, each part of the next
        raise RecipeError(_too_deep(source)) from None
    except MarkedYAMLError as error:
        problem = f"this isn't YAML: {error.problem}"
        if error.context:
            problem += f" {error.context}"
        if error.context and error.context_mark:
            problem += f" since line {error.context_mark.line + 1}"
        way_out = next((way_out for sign, way_out in _WAYS_OUT.items() if sign in problem), None)
        hint = "" if way_out is None else f" {way_out}"
        raise RecipeError(f"{source}:{_line_of(error)}: {problem}.{hint}") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"character U+{error.character:04X} isn't allowed in YAML."
        raise RecipeError(f"{source}:{line}: {problem}") from None


def _too_deep(source: str, line: int = 1) -> str:
    return f"{source}:{line}: its values are nested more than {MAX_DEPTH} levels deep. Write them flatter."


def _read(text: str, source: str, keys: str, example: str) -> Document:
    """Read a document as `read_yaml` does, but let the parser's own errors pass through."""
    yaml = yaml_of("safe")
    constructor, parser = yaml.get_constructor_parser(text)
    composer = yaml.composer
    root = composer.get_node() if composer.check_node() else None
    if root is None or root.tag == _TAG + "null":
        raise RecipeError(f"{source}:1: the file is empty, expected {keys}.")
    mark = _mark(root)
    if not isinstance(root, MappingNode):
        raise RecipeError(f"{source}:{mark[0]}: this isn't a mapping, expected keys such as {example}.")
    if root.tag != _TAG + "map":
        # Without the root there is nothing left to look for other mistakes in.
        raise RecipeError(f"{source}:{mark[0]}: unknown tag {_short(root.tag)}. Leave it out.")
    document = Document(source, marks={(): mark})
    document.data = _TreeReader(constructor, document).value(root, ())
    if composer.check_node():
        second = parser.peek_event().start_mark.line + 1
        document.tell_at((second, 1), "a second document starts here, expected one recipe per file. Split the file.")
    return document


class _Resolver(VersionedResolver):
    """ruamel's resolver of scalars' types, with YAML 1.2's core schema where ruamel departs from it."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        if kind is not ScalarNode:
            return tag
        if str(tag) in _TAGS_OF_TEXT:
            return self.DEFAULT_SCALAR_TAG
        is_plain = implicit[0]
        if is_plain and _FLOAT.fullmatch(value):
            return Tag(suffix=_TAG + "float")
        return tag


class _TreeReader:
    """Converter of nodes to data that marks the position of each value."""

    def __init__(self, constructor: SafeConstructor, document: Document) -> None:
        self._constructor = constructor
        self._document = document
        self._above: set[int] = set()  # ids of the nodes around the current one
        self._pairs_of: dict[int, Pairs] = {}  # by the mapping node's id

    def value(self, node: Node, path: Path) -> Any:
        """The value of a node, None if the node itself is a mistake, which is noted."""
        if len(self._document.marks) > MAX_VALUES:
            problem = f"it has more than {MAX_VALUES} values, with those that its aliases stand for."
            raise RecipeError(f"{self._document.source}:1: {problem} Leave out what isn't needed.")
        if len(path) > MAX_DEPTH:
            line = self._document.line(path[:1])
            raise RecipeError(_too_deep(self._document.source, line))
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._above:
            self._document.tell(path, "this alias stands for something it is a part of. Write the value out.")
            return None
        if node.tag not in (_TAG + "map", _TAG + "seq"):
            self._document.tell(path, f"unknown tag {_short(node.tag)}. Leave it out.")
            return None
        children: dict[str | int, Node] = {}  # by key or index
        if isinstance(node, MappingNode):
            for name, (key, child) in self._pairs(node).items():
                self._document.marks[*path, name] = _mark(key)
                children[name] = child
        else:
            for i, child in enumerate(node.value):
                self._document.marks[*path, i] = _mark(child)
                children[i] = child
        self._above.add(id(node))
        values = {step: self.value(child, (*path, step)) for step, child in children.items()}
        self._above.discard(id(node))
        return values if isinstance(node, MappingNode) else list(values.values())

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        text = _whole_characters(node.value)
        if text is None:
            self._document.tell(path, "half a character is written here (a lone surrogate). Write the whole character.")
            return None
        if node.tag == _TAG + "str":
            return text
        try:
            return self._constructor.construct_object(node)
        except (YAMLError, ValueError, KeyError):  # `!!bool maybe` raises KeyError
            problem = f"{shown(node.value)} can't be read as {_short(node.tag)}."
            self._document.tell(path, f"{problem} Leave the tag out, or put the value in quotes.")
            return None

    def _pairs(self, node: MappingNode) -> Pairs:
        """The pairs of a mapping and of those that `<<` merges into it; the mapping's own take precedence."""
        if id(node) in self._pairs_of:
            return self._pairs_of[id(node)]
        self._pairs_of[id(node)] = {}  # so that a mapping merged into itself adds nothing and the recursion ends
        own = self._own_pairs(node)
        merged = Pairs()
        for key, value in node.value:
            if key.tag != _TAG + "merge":
                continue
            sources = value.value if isinstance(value, SequenceNode) else [value]
            for source in sources:
                if isinstance(source, MappingNode):
                    merged = self._pairs(source) | merged  # the first source that has a key counts
                    continue
                problem = "'<<' needs mappings to merge. Write an alias of one, such as *name."
                self._document.tell_at(_mark(source), problem)
        self._pairs_of[id(node)] = merged | own
        return self._pairs_of[id(node)]

    def _own_pairs(self, node: MappingNode) -> Pairs:
        """The pairs written in a mapping itself. If a key is written twice, the first counts."""
        pairs: Pairs = {}
        for key, value in node.value:
            is_scalar = isinstance(key, ScalarNode) and key.tag in _KEY_TAGS
            name = _whole_characters(key.value) if is_scalar else None
            if name is None:
                self._document.tell_at(_mark(key), "this key isn't text. Put it in quotes if it should be.")
            elif name in pairs:
                first_line, _ = _mark(pairs[name][0])
                problem = f"'{name}' is written twice, first on line {first_line}. Keep one of them."
                self._document.tell_at(_mark(key), problem)
            elif key.tag == _TAG + "str":
                pairs[name] = key, value
        return pairs


def _whole_characters(text: str) -> str | None:
    """The text with surrogate pairs (as JSON escapes some characters) joined; None if half of a pair is missing."""
    if text.isascii():
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return None


def _mark(node: Node) -> Mark:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _short(tag: str | None) -> str:
    """A tag in its short form: `!!int`."""
    return str(tag).replace(_TAG, "!!")


def _line_of(error: MarkedYAMLError) -> int:
    mark = error.problem_mark or error.context_mark
    return mark.line + 1 if mark else 1
