"""A source's statements about itself: licence, access, tags."""

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
    """The facts about a source that a model card needs. None and () if the source doesn't state them.

    Attributes:
        license: The Hub's identifier of the licence, such as `apache-2.0`, `llama3.1` or `other`.
        license_name: Name of the licence if `license` is `other`.
        license_link: Link to the text of the licence.
        gated: True if access has to be requested; None when offline.
        private: True if only its owners can see the source; None when offline.
        tags: All tags of the source.
        pipeline_tag: The source's task on the Hub.
        library_name: The library that loads the source.
        base_models: The stated models that the source was made from.
        languages: The stated languages of the source.
        datasets: The stated datasets that the source was trained on.
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
    """The Hub's facts about a repository: its card's header, its access, and what the Hub derived from its files."""
    of_card = facts_of_card(info.card_data or CardData())
    return replace(
        of_card,
        gated=bool(info.gated),
        private=bool(info.private),
        tags=tuple(info.tags or ()),  # including those that the Hub adds, such as the library
        pipeline_tag=info.pipeline_tag or of_card.pipeline_tag,
        library_name=info.library_name or of_card.library_name,
    )


def facts_of_folder(folder: Path) -> SourceFacts:
    """The facts in the card of a folder; none if there is no card, or its header isn't YAML."""
    try:
        card = (folder / CARD).read_text("utf-8")
        header = header_of_card(card).data
        # With this, a malformed `model-index` doesn't prevent reading the rest of the header.
        fields = {**header, "ignore_metadata_errors": True}
        return facts_of_card(ModelCardData(**fields))
    except (OSError, ValueError, RecipeError):
        return SourceFacts()


def header_of_card(card: str) -> Document:
    """The YAML header of a model card, with its mistakes; empty if the card has none.

    Raises:
        RecipeError: the header isn't YAML, or isn't a mapping.
    """
    match = REGEX_YAML_BLOCK.search(card)
    if match is None or not match[2].strip():
        return Document("header", data={})
    return read_yaml(match[2], "header", keys="what describes the model", example="license: mit")


def facts_of_card(card: CardData) -> SourceFacts:
    """The facts in the YAML header of a model card."""
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
    """The values of a card's field, which is empty, one value or a list."""
    if isinstance(value, list):
        return tuple(map(str, value))
    return (str(value),) if value else ()
