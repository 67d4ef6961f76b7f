"""A card of hf_tsv's sections and other people's: hf_tsv's are rewritten, the others stay in place.

Each of our sections is between two marks that carry its digest. No text can contain its own digest, so nothing in a
section, whoever wrote it, can end it early.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.repocard_data import CardData

from hf_tsv.errors import RecipeError
from hf_tsv.hub import header_of_card
from hf_tsv.methods import METHODS

LICENCE_KEYS = ("license", "license_name", "license_link")
OWN_TAGS = {
    "merge",
    "hf_tsv",
    "tsv-c",
    "lora",
    *(name.replace("_", "-") for name in METHODS),
}  # of earlier cards, these tags are dropped
JOINED_KEYS = ("tags", "language", "datasets")
_MARKED = re.compile(
    r"<!-- hf_tsv:begin (?P<name>\w+) (?P<digest>[0-9a-f]{16}) -->\n"
    r".*?\n<!-- hf_tsv:end (?P=name) (?P=digest) -->[ \t]*\n?",
    re.DOTALL,
)
_HEADER = re.compile(r"\A\s*---[ \t]*\r?\n.*?\r?\n---[ \t]*(\r?\n|\Z)", re.DOTALL)


def compose(header: ModelCardData, sections: Mapping[str, str], olds: Sequence[str]) -> str:
    """Compose the card's text from our header and sections, and what people added to earlier cards.

    Composing again with the result among the old cards changes nothing.

    Args:
        header: Our header.
        sections: Our sections, by name, in order.
        olds: Earlier cards of the same model; one that isn't ours counts as written by people as a whole.
    """
    added: defaultdict[str | None, list[str]] = defaultdict(list)
    for old in olds:
        for after, written in _written_by_people(old, sections):
            # The card on the Hub and the one in the folder often contain the same text.
            if all(written not in known for known in added.values()):
                added[after].append(written)
    parts = [*added[None]]
    for name, section in sections.items():
        digest = sha256(section.encode()).hexdigest()[:16]
        parts.append(f"<!-- hf_tsv:begin {name} {digest} -->\n{section}\n<!-- hf_tsv:end {name} {digest} -->")
        parts += added[name]

    # Our header, with what people added to earlier ones, except the licence, which is decided elsewhere.
    merged = _plain(header)
    for old in olds:
        for key, value in _header_of(old).items():
            if key in JOINED_KEYS:
                known = _listed(merged.get(key))
                new = [item for item in _listed(value) if item not in known and item not in OWN_TAGS]
                merged[key] = known + new
            elif key not in LICENCE_KEYS:
                merged.setdefault(key, value)
    stated = {key: value for key, value in merged.items() if value not in (None, [])}
    text = ModelCardData(**stated, ignore_metadata_errors=True).to_yaml()
    return f"---\n{text}\n---\n\n" + "\n\n".join(parts) + "\n"


def licence_in(card: str) -> dict[str, Any]:
    """Return the licence keys of a card's header that are strings."""
    header = _header_of(card)
    return {key: header[key] for key in LICENCE_KEYS if isinstance(header.get(key), str)}


def _written_by_people(card: str, sections: Collection[str]) -> Iterator[tuple[str | None, str]]:
    """Yield the texts between our sections, each after the name of the last section before it that still exists."""
    body = _HEADER.sub("", card, count=1)
    after: str | None = None
    end = 0
    for section in _MARKED.finditer(body):
        if written := body[end : section.start()].strip():
            yield after, written
        # Text after a section that no longer exists stays after the section before it.
        after = section["name"] if section["name"] in sections else after
        end = section.end()
    if written := body[end:].strip():
        # A card without our sections was written by people as a whole, and comes last.
        yield after if end else list(sections)[-1], written


def _listed(value: Any) -> list[Any]:
    """Return a header's value as a list, because people write a single language or tag without brackets."""
    if isinstance(value, list):
        return list(value)
    return [value] if value else []


def _header_of(card: str) -> dict[str, Any]:
    """Read a card's header as data; empty if it can't be read."""
    try:
        header = header_of_card(card).data
        # With this flag, a malformed `model-index` is left out instead of raising an error.
        return _plain(ModelCardData(**{**header, "ignore_metadata_errors": True}))
    except (ValueError, RecipeError):
        return {}


def _plain(data: CardData) -> dict[str, Any]:
    """Return a header as plain data."""
    plain: dict[str, Any] = data.to_dict()  # type: ignore[no-untyped-call]  # huggingface_hub has no types for it
    return plain
