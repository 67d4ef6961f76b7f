"""What a source states about itself: licence, access, tags."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, ModelInfo
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import CardData

from hf_tsv.errors import RecipeError
from hf_tsv.hub._repository import CARD
from hf_tsv.recipe import Document, read_yaml


@dataclass(frozen=True)
class SourceFacts:
    """What a model card has to know about a source. None and () where the source doesn't state it.

    Attributes:
        license: The Hub's word for it, such as `apache-2.0`, `llama3.1` or `other`.
        license_name: Its name when it is `other`.
        license_link: Where it can be read.
        gated: Whether one has to request access. None when offline.
        private: Whether only its owners see it. None when offline.
        tags: All its tags.
        pipeline_tag: Its task on the Hub.
        library_name: The library that loads it.
        base_models: What it states it was made from.
        languages: Languages it states it handles.
        datasets: Datasets it states it was trained on.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    gated: bool | None = None
    private: bool | None = None
    tags: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    library_name: str | None = None
    base_models: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()


def facts_of_info(info: ModelInfo) -> SourceFacts:
    """What the Hub knows of a repository: its card's header, access, and what the Hub derived from its files."""
    of_card = facts_of_card(info.card_data or CardData())
    return replace(
        of_card,
        gated=bool(info.gated),
        private=bool(info.private),
        tags=tuple(info.tags or ()),  # with those that the Hub adds, such as the library
        pipeline_tag=info.pipeline_tag or of_card.pipeline_tag,
        library_name=info.library_name or of_card.library_name,
    )


def facts_of_folder(folder: Path) -> SourceFacts:
    """What the card in a folder says; nothing if there isn't one, or its header isn't YAML."""
    try:
        card = (folder / CARD).read_text("utf-8")
        header = header_of_card(card).data
        # A malformed `model-index` costs only itself, not the rest of the header.
        fields = {**header, "ignore_metadata_errors": True}
        return facts_of_card(ModelCardData(**fields))
    except (OSError, ValueError, RecipeError):
        return SourceFacts()


def header_of_card(card: str) -> Document:
    """The YAML header of a model card, with what is wrong with it; empty if the card has none.

    Raises:
        RecipeError: it isn't YAML, or isn't a mapping.
    """
    match = REGEX_YAML_BLOCK.search(card)
    if match is None or not match[2].strip():
        return Document("header", data={})
    return read_yaml(match[2], "header", keys="what describes the model", example="license: mit")


def facts_of_card(card: CardData) -> SourceFacts:
    """What the YAML header of a model card states."""
    licenses = _several(card.get("license"))  # a few cards list more than one
    return SourceFacts(
        license=", ".join(licenses) or None,
        license_name=card.get("license_name"),
        license_link=card.get("license_link"),
        tags=_several(card.get("tags")),
        pipeline_tag=card.get("pipeline_tag"),
        library_name=card.get("library_name"),
        base_models=_several(card.get("base_model")),
        languages=_several(card.get("language")),
        datasets=_several(card.get("datasets")),
    )


def _several(value: Any) -> tuple[str, ...]:
    """A field of a card that may hold nothing, one value or a list."""
    if isinstance(value, list):
        return tuple(map(str, value))
    return (str(value),) if value else ()
