"""What the record and the lock file say about sources."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_tsv.hub import Hub, Pinned, facts_of_folder
from hf_tsv.recipe import Recipe, pinned_text
from hf_tsv.sources.models import Source


def described(sources: Sequence[Source], hub: Hub) -> list[dict[str, Any]]:
    """What the record says about each source; `terms` is what its model and its adapter state about themselves."""
    descriptions: list[dict[str, Any]] = []
    for source in sources:
        terms = [_terms(source.ref.path, source.pin, hub)]
        if source.ref.adapter:
            terms.append(_terms(source.ref.adapter, source.parts.adapter_pin, hub))
        descriptions.append(source.describe() | {"terms": terms})
    return descriptions


def _terms(path: str, pin: Pinned | None, hub: Hub) -> dict[str, Any]:
    """Licence, languages, datasets; for a model on the Hub also whether it is public (None: unknown offline)."""
    facts = hub.facts(pin) if pin else facts_of_folder(Path(path).expanduser())
    terms: dict[str, Any] = {
        "license": facts.license,
        "license_name": facts.license_name,
        "license_link": facts.license_link,
        "language": list(facts.languages),
        "datasets": list(facts.datasets),
    }
    if pin:
        terms |= {"private": facts.private, "gated": facts.gated}
    return terms


def lock_text(recipe: Recipe, sources: Sequence[Source]) -> str:
    """The recipe with every Hub model pinned to its commit: a recipe itself, which gives the same bytes."""
    return pinned_text(recipe, {source.ref.text: source.pinned for source in sources})
