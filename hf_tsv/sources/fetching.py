"""Fetch sources to this machine, and count the bytes that this takes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from hf_tsv.checkpoints.folder import open_checkpoint
from hf_tsv.hub import Hub, Pinned
from hf_tsv.recipe import ModelRef
from hf_tsv.sources.models import Parts, Source, join, open_parts

Stream = Literal["none", "tasks", "all"]  # the models whose weights are read by byte range instead of downloaded


def open_model(ref: ModelRef, hub: Hub) -> Source:
    """Fetch and open a single model, with the adapter that the reference puts on it.

    Raises:
        HfTsvError: the model or the adapter can't be downloaded or read.
    """
    named = [(ref, None)]
    sources = join(named, open_parts(named, hub), hub)
    return fetch(sources, hub)[0]


def fetch(
    sources: Sequence[Source], hub: Hub, *, stream: Stream = "none", progress: Callable[[int], None] | None = None
) -> list[Source]:
    """Download the sources' files, except for the weights of streamed models; return the same sources, on this machine.

    Args:
        sources: The sources to fetch, the base first.
        hub: The connection to the Hub.
        stream: The models whose weights stay on the Hub.
        progress: Called with the number of bytes received since the last call, from several threads.

    Raises:
        HubError: a source can't be downloaded.
        ResourceError: the disk is full.
    """
    with_weights = _with_weights(sources, stream)
    folders = {pin: hub.download(pin, weights=whole, progress=progress) for pin, whole in with_weights.items()}
    fetched: dict[ModelRef, Parts] = {}
    for source in sources:
        parts, pin = source.parts, source.pin
        if pin is None:  # a local folder: nothing to fetch
            fetched[source.ref] = parts
            continue
        model = parts.model
        if model and with_weights[pin]:
            model = open_checkpoint(folders[pin], label=model.label)
        fetched[source.ref] = replace(parts, folder=folders[pin], model=model)
    named = [(source.ref, source.task) for source in sources]
    return join(named, fetched, hub)


def bytes_to_download(sources: Sequence[Source], hub: Hub, *, stream: Stream = "none") -> int:
    """Return the number of bytes that `fetch` would download."""
    return sum(hub.bytes_to_download(pin, weights=whole) for pin, whole in _with_weights(sources, stream).items())


def bytes_to_stream(sources: Sequence[Source], hub: Hub, stream: Stream) -> int:
    """Return the number of bytes of weights that would be read by byte range."""
    total = 0
    for pin, whole in _with_weights(sources, stream).items():
        if not whole:
            sizes = hub.files(pin)
            total += sum(sizes[file] for file in hub.weights(pin).files)
    return total


def _with_weights(sources: Sequence[Source], stream: Stream) -> dict[Pinned, bool]:
    """Return everything to fetch from the Hub; True if its weights are downloaded as well."""
    with_weights: dict[Pinned, bool] = {}
    for source in sources:
        if source.pin:
            whole = stream == "none" or (stream == "tasks" and source.task is None)
            # The base may be a task as well: its weights are downloaded if either needs that.
            with_weights[source.pin] = with_weights.get(source.pin, False) or whole
    return with_weights
