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
    """Where a model or an adapter lies: a Hub id with its commit, or a folder, which has none."""

    path: str
    revision: str | None

    @property
    def name(self) -> str:
        """A Hub id, or a folder's last part: where it lies on somebody's machine is nobody's business."""
        return self.path if self.revision else folder_name(self.path)


@dataclass(frozen=True)
class NamedTerms:
    """What a model or adapter says of itself. Attributes: the `name` that cards give it, and the `terms`."""

    name: str
    terms: Terms


@dataclass(frozen=True)
class PlaceCell:
    """A model or adapter in the table of sources.

    Attributes:
        name: What it is called.
        revision: Its commit; None for a folder.
        url: Its page on the Hub at that commit; None for a folder.
        licence: The licence that it names.
    """

    name: str
    revision: str | None
    url: str | None
    licence: str | None


@dataclass(frozen=True)
class SourceRow:
    """A row of the table of sources. Attributes: the `task`, None for the base; a model and maybe an adapter on it."""

    task: str | None
    places: tuple[PlaceCell, ...]


def places(source: SourceEntry) -> list[Place]:
    """Where a source's model lies, and the adapter on top of it, if any."""
    in_order = [Place(source.model, source.revision)]
    if source.adapter:
        path, _, revision = source.adapter.rpartition("@")
        # A folder's name may hold an @ as well.
        is_pinned = re.fullmatch("[0-9a-f]{40}", revision)
        in_order.append(Place(path, revision) if is_pinned else Place(source.adapter, None))
    return in_order


def folder_name(path: str) -> str:
    """The last part of a folder's path."""
    name = PurePosixPath(path).name
    return name if name.strip(".~") else "local folder"  # of `..` or `~` there is no name to show


def all_terms(record: Record) -> list[NamedTerms]:
    """What each model and adapter that a record names says of itself; the base first."""
    return named_terms(record.sources)


def named_terms(sources: Iterable[SourceEntry]) -> list[NamedTerms]:
    """As `all_terms`, for these sources."""
    named: list[NamedTerms] = []
    for source in sources:
        for place, terms in zip(places(source), _terms(source), strict=True):
            named.append(NamedTerms(place.name, terms))
    return named


def source_rows(record: Record) -> list[SourceRow]:
    """The sources as a table shows them, the base first."""
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
    """Whether any source names a licence, so that the table needs a column for it."""
    return any(place.licence for place in _all_places(rows))


def have_folders(rows: Sequence[SourceRow]) -> bool:
    """Whether any source is a local folder."""
    return any(not place.url for place in _all_places(rows))


def _all_places(rows: Sequence[SourceRow]) -> Iterator[PlaceCell]:
    for row in rows:
        yield from row.places


def provenance(record: Record, recipe: str, licence: Licence | None) -> dict[str, Any]:
    """What every card's header says of where the model comes from.

    Args:
        record: The output's record.
        recipe: The text of the recipe as it is published.
        licence: The one chosen; None for what follows from the sources.

    Returns:
        Keyword arguments of `huggingface_hub.ModelCardData`.
    """
    # As the keys of dictionaries: each once, in order.
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
    """Say which licence the model carries, and why; empty where no source names one."""
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
        sentence += " Built with Llama."  # these licences ask for the sentence
    return sentence


def base_name(rows: Sequence[SourceRow]) -> str:
    """The base model's name without its owner."""
    return PurePosixPath(rows[0].places[0].name).name


def _terms(source: SourceEntry) -> Sequence[Terms]:
    """One for each of a source's places; empty ones where nobody looked."""
    return source.terms or [Terms() for _ in places(source)]
