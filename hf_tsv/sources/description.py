"""Describe sources for the record and the lock file."""

from collections.abc import Sequence
from pathlib import Path

from hf_tsv.hub import Hub, facts_of_folder
from hf_tsv.recipe import Recipe, pinned_text
from hf_tsv.record import SourceEntry, Terms
from hf_tsv.sources.models import Source


def described(sources: Sequence[Source], hub: Hub) -> list[SourceEntry]:
    """Return each source's entry in the record, with the terms of its model and its adapter."""
    entries = []
    for source in sources:
        places = [(source.ref.path, source.pin)]
        if source.ref.adapter:
            places.append((source.ref.adapter, source.parts.adapter_pin))
        terms = []
        for path, pin in places:
            facts = hub.facts(pin) if pin else facts_of_folder(Path(path).expanduser())
            of_place = Terms(
                license=_text(facts.license),
                license_name=_text(facts.license_name),
                license_link=_text(facts.license_link),
                language=facts.languages,
                datasets=facts.datasets,
                # Only the Hub knows who can see a model; None if that isn't known offline.
                private=facts.private if pin else False,
                gated=facts.gated if pin else False,
            )
            terms.append(of_place)
        entries.append(source.describe().model_copy(update={"terms": tuple(terms)}))
    return entries


def _text(field: object) -> str | None:
    """Return a field of a stranger's card as text: YAML may have made a number or a date of it."""
    return None if field is None else str(field)


def lock_text(recipe: Recipe, sources: Sequence[Source]) -> str:
    """Return the recipe's text with every Hub model pinned to its commit: a recipe that gives the same bytes."""
    return pinned_text(recipe, {source.ref.text: source.pinned for source in sources})
