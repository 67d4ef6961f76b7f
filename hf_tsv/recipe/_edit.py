"""Changes of a recipe in its author's text: comments, quotes and order stay.

ruamel.yaml keeps a comment with the value before it. A comment on lines of its own is about what follows, though, so
it must not be removed with that value, nor end up inside the new value. `put_key` and `remove_key` take care of that.
"""

import copy
import io
from collections.abc import Callable, Mapping
from typing import Any

from ruamel.yaml.anchor import Anchor
from ruamel.yaml.comments import CommentedMap, CommentedSeq, merge_attrib
from ruamel.yaml.error import CommentMark
from ruamel.yaml.tokens import CommentToken

from hf_tsv.recipe._load import parse_recipe
from hf_tsv.recipe._recipe import Recipe
from hf_tsv.recipe._yaml import yaml_of

_Part = CommentedMap | CommentedSeq
# Lines are broken only if they get longer than this, and longer than the text's own lines by more than the inserted
# hashes: per model that of its commit and that of its adapter's. A list in braces has all models on one line.
MIN_WIDTH = 120
GROWTH_OF_A_MODEL = 2 * 48
_COMMENT_AT = {CommentedMap: 2, CommentedSeq: 0}  # the slot in which ruamel stores the comment after a value


def edited(recipe: Recipe, change: Callable[[CommentedMap], None]) -> Recipe:
    """Return the recipe after a change of its text; the same object if nothing changes.

    Args:
        recipe: A parsed recipe. If its `svd` differs from its text, the new text gets it.
        change: Function that changes the recipe's ruamel.yaml mapping in place, with `models_of`, `own_value`,
            `put_key`, `put_keys` and `remove_key`.

    Raises:
        RecipeError: the text is no longer a recipe after the change. The lines are those of the new text.
    """
    yaml = yaml_of("rt")
    document = yaml.load(recipe.text)
    if _is_shared(document):
        document = _own_copy(document)
    before = copy.deepcopy(document)
    if recipe.svd != (document.get("svd") or "exact"):
        put_key(document, "svd", recipe.svd)
    change(document)
    if document == before:
        return recipe
    longest_line = max(map(len, recipe.text.splitlines()))
    yaml.width = max(MIN_WIDTH, longest_line + GROWTH_OF_A_MODEL * (len(recipe.models) + 1))
    _indent_alike(yaml, before)
    text = io.StringIO()
    yaml.dump(document, text)
    return parse_recipe(text.getvalue(), recipe.source, recipe.folder)


def models_of(document: CommentedMap) -> CommentedSeq:
    """The recipe's list of models: `models`, or the sources of its only slice."""
    if "models" in document:
        models: CommentedSeq = own_value(document, "models")
        return models
    only_slice = own_value(own_value(document, "slices"), 0)
    sources: CommentedSeq = own_value(only_slice, "sources")
    return sources


def own_value(part: _Part, key: str | int) -> Any:
    """The value at `key`, safe to change without changing any other.

    A value with an anchor may be used elsewhere too, and keys that `<<` merges are another mapping's: both are copied.
    """
    value = part[key]
    if _is_shared(value):
        value = _own_copy(value)
        part[key] = value
    return value


def put_key(mapping: CommentedMap, key: str, value: Any) -> None:
    """Set a key, at the mapping's end if it is new. Comment lines below it stay below."""
    at = key if key in mapping else _last_key(mapping)
    below = "" if at is None else _take_comment_below(mapping, at)
    mapping[key] = value
    _add_comment_below(mapping, key, below)


def put_keys(mapping: CommentedMap, key: str, values: Mapping[str, Any]) -> None:
    """Set keys of the mapping at `key`, which is created if it is missing or empty."""
    if not mapping.get(key):
        # Filled before it is inserted, or the comment lines below would end up in it.
        put_key(mapping, key, CommentedMap(values))
        return
    inner = own_value(mapping, key)
    for name, value in values.items():
        if inner.get(name) != value:
            put_key(inner, name, value)


def remove_key(mapping: CommentedMap, key: str) -> None:
    """Remove a key, if it exists, with the comment on its line. Comment lines below it stay."""
    if key not in mapping:
        return
    keys = list(mapping)
    at = keys.index(key)
    below = _take_comment_below(mapping, key)
    del mapping[key]
    mapping.ca.items.pop(key, None)
    if not below:
        return
    if at > 0:
        _add_comment_below(mapping, keys[at - 1], below)
    elif len(keys) > 1:
        # Without the first key, no value is above the comment: it becomes a comment before the next key.
        lines = [line.strip().removeprefix("#").strip() for line in below.splitlines()]
        mapping.yaml_set_comment_before_after_key(keys[1], before="\n".join(lines), indent=mapping.lc.col)


def _is_shared(value: Any) -> bool:
    """True if a change of the value can change others too: it has an anchor, or keys that `<<` merges."""
    if not isinstance(value, _Part):
        return False
    anchor = getattr(value, Anchor.attrib, None)
    has_anchor = anchor is not None and anchor.value is not None
    merges = bool(getattr(value, merge_attrib, None))
    return has_anchor or merges


def _own_copy(value: _Part) -> _Part:
    """A deep copy without anchors and merges, at any level."""
    copied: _Part = copy.deepcopy(value)  # the copy of a mapping contains the merged keys itself
    parts: list[Any] = [copied]  # still to be cleared
    cleared: set[int] = set()  # by identity: aliases put one part in several places
    while parts:
        part = parts.pop()
        if id(part) in cleared:
            continue
        cleared.add(id(part))
        for attribute in (Anchor.attrib, merge_attrib):
            if hasattr(part, attribute):
                delattr(part, attribute)
        if isinstance(part, _Part):
            parts += part.values() if isinstance(part, CommentedMap) else part
    return copied


def _last_key(part: _Part) -> str | int | None:
    if not part:
        return None
    return next(reversed(part)) if isinstance(part, CommentedMap) else len(part) - 1


def _last_leaf(part: _Part, key: str | int) -> tuple[_Part, str | int]:
    """The last value on lines of its own within `key`, which has the comment below all of it."""
    while True:
        value = part[key]
        if not isinstance(value, _Part) or value.fa.flow_style():
            return part, key
        last = _last_key(value)
        if last is None:
            return part, key
        part, key = value, last


def _comment_at(part: _Part, key: str | int) -> CommentToken | None:
    slots = part.ca.items.get(key)
    at = _COMMENT_AT[type(part)]
    return slots[at] if slots else None


def _take_comment_below(part: _Part, key: str | int) -> str:
    """Remove the comment lines below the value at `key`, but not the comment on its own line."""
    part, key = _last_leaf(part, key)
    token = _comment_at(part, key)
    if token is None:
        return ""
    on_its_line, _, below = token.value.partition("\n")
    token.value = f"{on_its_line}\n"  # changed in place, because a flow mapping has the same token
    if not on_its_line:
        part.ca.items[key][_COMMENT_AT[type(part)]] = None
    return str(below)


def _add_comment_below(part: _Part, key: str | int, below: str) -> None:
    if not below:
        return
    part, key = _last_leaf(part, key)
    token = _comment_at(part, key)
    if token is not None:
        token.value += below
        return
    slots = part.ca.items.setdefault(key, [None, None, None, None])
    slots[_COMMENT_AT[type(part)]] = CommentToken(f"\n{below}", CommentMark(0), None)


def _indent_alike(yaml: Any, document: CommentedMap) -> None:
    """Set the indents for writing to the text's own: those of its first mapping and its first list."""
    mapping = sequence = offset = None
    for value in document.values():
        if not isinstance(value, _Part) or value.fa.flow_style() or not value:
            continue
        indent = value.lc.col - document.lc.col
        if isinstance(value, CommentedMap):
            mapping = mapping or indent
        elif offset is None:
            _, column = value.lc.item(0)  # after the dash
            offset = indent
            sequence = column - document.lc.col
    yaml.indent(mapping=mapping, sequence=sequence, offset=offset)
