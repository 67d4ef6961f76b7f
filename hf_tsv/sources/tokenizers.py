"""Find the tokenizers of sources, and compare them before they are downloaded."""

from collections.abc import Sequence
from pathlib import Path

from hf_tsv.hub import Hub, Pinned
from hf_tsv.sources.companions import Companions, companions
from hf_tsv.sources.models import Source
from hf_tsv.vocabulary.tokenizer import VOCABULARY_FILES, has_tokenizer


def tokenizer_folder(source: Source, hub: Hub) -> Path | None:
    """Find the folder of a model's tokenizer, first beside its adapter; None if it has none. May download it."""
    beside_adapter = source.parts.adapter_folder
    if beside_adapter and has_tokenizer(beside_adapter):
        return beside_adapter
    folder = source.folder
    if folder is None and source.pin:
        folder = hub.download(source.pin, weights=False)
    return folder if folder and has_tokenizer(folder) else None


def tokenizer_companions(source: Source, hub: Hub) -> Companions:
    """Return the side files with a fetched source's tokenizer: the adapter's if it has one, else the model's."""
    beside_adapter = source.parts.adapter_folder
    if beside_adapter and has_tokenizer(beside_adapter):
        return Companions.of(beside_adapter)
    return companions(source, hub)


def tokenizers_look_alike(sources: Sequence[Source], hub: Hub) -> bool:
    """Return True if every model's tokenizer looks like that of a base on the Hub, by the sizes of its files.

    False if that can't be seen without a download, or if a tokenizer is on this machine and can be read.
    """
    base = sources[0]
    if base.folder or base.pin is None:
        return False
    base_sizes = _vocabulary_sizes(base.pin, hub)
    for source in sources:
        on_this_machine = source.parts.adapter_folder or source.folder
        if on_this_machine and has_tokenizer(on_this_machine):
            return False
        if source.parts.model is None:
            continue  # an adapter without a tokenizer has the base's
        if source.folder or source.pin is None:
            return False
        if source.pin != base.pin and _vocabulary_sizes(source.pin, hub) != base_sizes:
            return False
    return True


def _vocabulary_sizes(pin: Pinned, hub: Hub) -> dict[str, int]:
    return {file: size for file, size in hub.files(pin).items() if file in VOCABULARY_FILES}
