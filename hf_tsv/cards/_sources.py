"""The models that an output was made from, as a card shows them."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from hf_tsv.cards._licences import Licence, inherited
from hf_tsv.cards._markdown import one_line
from hf_tsv.recipe import in_repository
from hf_tsv.record import Record, SourceEntry, Terms

HUB = "https://huggingface.co"


class Place(NamedTuple):
    """The location of a model or adapter: a Hub id with its commit, or a folder, which has none."""

    path: str
    revision: str | None

    @property
    def name(self) -> str:
        """A Hub id, or a folder's last part, because the path on somebody's machine is private."""
        return self.path if self.revision else folder_name(self.path)


@dataclass(frozen=True)
class NamedTerms:
    """The `terms` that a model or adapter states, with its `name` in cards."""

    name: str
    terms: Terms


@dataclass(frozen=True)
class PlaceCell:
    """A model or adapter in the table of sources.

    Attributes:
        name: The name of the model or adapter.
        revision: The commit; None for a folder.
        url: The page on the Hub at that commit; None for a folder.
        licence: The licence that the model or adapter names; None if it names none.
    """

    name: str
    revision: str | None
    url: str | None
    licence: str | None


@dataclass(frozen=True)
class SourceRow:
    """A row of the table of sources: the `task`, None for the base, and the `places` of its model and any adapter."""

    task: str | None
    places: tuple[PlaceCell, ...]


def places(source: SourceEntry) -> list[Place]:
    """Return the location of a source's model, then of the adapter on top of it, if any."""
    in_order = [Place(source.model, source.revision)]
    if source.adapter:
        path, _, revision = source.adapter.rpartition("@")
        # A folder's name may also contain an @.
        is_pinned = re.fullmatch("[0-9a-f]{40}", revision)
        in_order.append(Place(path, revision) if is_pinned else Place(source.adapter, None))
    return in_order


def folder_name(path: str) -> str:
    """Return the last part of a folder's path, or `local folder` if it isn't a name."""
    name = PurePosixPath(path).name
    return name if name.strip(".~") else "local folder"  # `..` and `~` aren't names to show


def all_terms(record: Record) -> list[NamedTerms]:
    """Return the terms of each model and adapter that a record names, the base first."""
    return named_terms(record.sources)


def named_terms(sources: Iterable[SourceEntry]) -> list[NamedTerms]:
    """Return the terms of each model and adapter of these sources, in order."""
    named: list[NamedTerms] = []
    for source in sources:
        for place, terms in zip(places(source), _terms(source), strict=True):
            named.append(NamedTerms(place.name, terms))
    return named


def source_rows(record: Record) -> list[SourceRow]:
    """Return the rows of the table of sources, the base first."""
    rows: list[SourceRow] = []
    for source in record.sources:
        cells: list[PlaceCell] = []
        for place, terms in zip(places(source), _terms(source), strict=True):
            url = None
            if place.revision:
                repo_id, folder = in_repository(place.path)  # ORG/NAME, or ORG/NAME/FOLDER within a repository
                url = f"{HUB}/{repo_id}/tree/{place.revision}"
                if folder:
                    url += f"/{folder}"
            cells.append(PlaceCell(place.name, place.revision, url, terms.license_name or terms.license))
        rows.append(SourceRow(source.task, tuple(cells)))
    return rows


def have_licences(rows: Sequence[SourceRow]) -> bool:
    """Return True if any source names a licence, so that the table needs a column for it."""
    return any(place.licence for place in _all_places(rows))


def have_folders(rows: Sequence[SourceRow]) -> bool:
    """Return True if any source is a local folder."""
    return any(not place.url for place in _all_places(rows))


def _all_places(rows: Sequence[SourceRow]) -> Iterator[PlaceCell]:
    for row in rows:
        yield from row.places


def provenance(record: Record, recipe: str, licence: Licence | None) -> dict[str, Any]:
    """Return the part of every card's header about the model's origin.

    Args:
        record: The output's record.
        recipe: The recipe's text as it is published.
        licence: The chosen licence; None for the licence that follows from the sources.

    Returns:
        Keyword arguments of `huggingface_hub.ModelCardData`.
    """
    # Keys of dictionaries, so that each appears once, in order.
    ids: dict[str, None] = {}
    for source in record.sources:
        for place in places(source):
            if place.revision:
                repo_id, _ = in_repository(place.path)
                ids[one_line(repo_id)] = None
    languages: dict[str, None] = {}
    datasets: dict[str, None] = {}
    terms = [named.terms for named in all_terms(record)]
    for term in terms:
        languages |= dict.fromkeys(map(one_line, term.language))
        datasets |= dict.fromkeys(map(one_line, term.datasets))
    carried = licence or inherited(terms).licence
    return {
        "base_model": list(ids) or None,
        "license": carried and one_line(carried.id),
        "license_name": carried and carried.name and one_line(carried.name),
        "license_link": carried and carried.link and one_line(carried.link),
        "language": list(languages) or None,
        "datasets": list(datasets) or None,
        "hf_tsv": {
            "version": record.versions.hf_tsv,
            "recipe_sha256": hashlib.sha256(recipe.encode()).hexdigest(),
        },
    }


def licence_sentence(record: Record, licence: Licence | None) -> str:
    """Say which licence the model carries, and why; empty if no source names one."""
    terms = [named.terms for named in all_terms(record)]
    following = inherited(terms)
    if licence:
        sentence = f"Licence: {licence.label}, chosen by the publisher."
    elif following.licence:
        sentence = f"Licence: {following.licence.label}; {following.why}."
    else:
        any_named = any(term.license for term in terms)
        return f"No licence follows from these sources: {following.why}." if any_named else ""
    carried = licence or following.licence
    if carried and carried.id.startswith("llama"):
        sentence += " Built with Llama."  # these licences require the sentence
    return sentence


def base_name(rows: Sequence[SourceRow]) -> str:
    """Return the base model's name without its owner."""
    return PurePosixPath(rows[0].places[0].name).name


def _terms(source: SourceEntry) -> Sequence[Terms]:
    """Return the terms of each of a source's places; empty ones if they weren't read."""
    return source.terms or [Terms() for _ in places(source)]
