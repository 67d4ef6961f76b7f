"""Sources brought to this machine, and how many bytes that takes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from hf_tsv.checkpoints.folder import open_checkpoint
from hf_tsv.hub import Hub, Pinned
from hf_tsv.recipe import ModelRef
from hf_tsv.sources.models import Parts, Source, join, open_parts

Stream = Literal["none", "tasks", "all"]  # whose weights are read by byte range instead of downloaded


def open_model(ref: ModelRef, hub: Hub) -> Source:
    """One model by itself, on this machine, with the adapter that the reference puts on it.

    Raises:
        HfTsvError: it can't be downloaded or read.
    """
    named = [(ref, None)]
    sources = join(named, open_parts(named, hub), hub)
    return fetch(sources, hub)[0]


def fetch(
    sources: Sequence[Source], hub: Hub, *, stream: Stream = "none", progress: Callable[[int], None] | None = None
) -> list[Source]:
    """The same sources with their files on this machine, except for the weights of those that are streamed.

    Args:
        sources: What to fetch, the base first.
        hub: How to reach the Hub.
        stream: Whose weights stay on the Hub.
        progress: Called with the number of bytes received since the last call, from several threads.

    Raises:
        HubError: one can't be downloaded.
        ResourceError: the disk is full.
    """
    with_weights = _with_weights(sources, stream)
    folders = {pin: hub.download(pin, weights=whole, progress=progress) for pin, whole in with_weights.items()}
    fetched: dict[ModelRef, Parts] = {}
    for source in sources:
        parts, pin = source.parts, source.pin
        if pin is None:  # a local folder: there already
            fetched[source.ref] = parts
            continue
        model = parts.model
        if model and with_weights[pin]:
            model = open_checkpoint(folders[pin], label=model.label)
        fetched[source.ref] = replace(parts, folder=folders[pin], model=model)
    named = [(source.ref, source.task) for source in sources]
    return join(named, fetched, hub)


def bytes_to_download(sources: Sequence[Source], hub: Hub, *, stream: Stream = "none") -> int:
    """How many bytes `fetch` would download."""
    return sum(hub.bytes_to_download(pin, weights=whole) for pin, whole in _with_weights(sources, stream).items())


def bytes_to_stream(sources: Sequence[Source], hub: Hub, stream: Stream) -> int:
    """How many bytes of weights would be read by range."""
    total = 0
    for pin, whole in _with_weights(sources, stream).items():
        if not whole:
            sizes = hub.files(pin)
            total += sum(sizes[file] for file in hub.weights(pin).files)
    return total


def _with_weights(sources: Sequence[Source], stream: Stream) -> dict[Pinned, bool]:
    """Whether the weights are downloaded as well, for everything on the Hub."""
    with_weights: dict[Pinned, bool] = {}
    for source in sources:
        if source.pin:
            whole = stream == "none" or (stream == "tasks" and source.task is None)
            # The base may be a task as well: what one of them needs is downloaded.
            with_weights[source.pin] = with_weights.get(source.pin, False) or whole
    return with_weights
