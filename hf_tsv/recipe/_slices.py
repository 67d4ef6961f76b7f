"""mergekit's `slices`, where they say no more than `models` does: one slice, of all layers of every model."""

from typing import Any

from hf_tsv.recipe._yaml import Document

_SOURCES = ("slices", 0, "sources")


def read_whole_slice(document: Document) -> None:
    """Write the sources of a recipe's only slice as its models, and note the layers that they are said to have.

    What isn't of that form stays as it is, to be refused with the other keys that aren't taken.
    """
    match document.data:
        case {"models": _}:
            return
        case {"slices": [{"sources": [_, *_] as sources, **others}]} if not others:
            ends = [_end(source) for source in sources]
        case _:
            return
    if ends[0] is None or any(end != ends[0] for end in ends):
        return
    models = [{key: value for key, value in source.items() if key != "layer_range"} for source in sources]
    document.layers = (ends[0], document.line((*_SOURCES, 0, "layer_range")))
    document.data = {"models" if key == "slices" else key: value for key, value in document.data.items()}
    document.data["models"] = models
    for path in [path for path in document.marks if path[:3] == _SOURCES]:
        document.marks["models", *path[3:]] = document.marks[path]


def _end(source: Any) -> int | None:
    """N of a source with layer_range: [0, N]."""
    match source:
        case {"layer_range": [0, int() as end]}:
            return end
    return None
