"""mergekit's `slices`, if they are equivalent to `models`: one slice with all layers of every model."""

from hf_tsv.recipe._document import Document

SOURCES = ("slices", 0, "sources")  # the path of the models in such a recipe


def read_whole_slice(document: Document) -> None:
    """Move the sources of a recipe's only slice to `models`, and note the number of layers that they give.

    Slices of any other form stay, and are refused later with the other unknown keys.
    """
    match document.data:
        case {"models": _}:
            return
        case {"slices": [{"sources": [_, *_] as sources, **others}]} if not others:
            pass
        case _:
            return
    ends: list[int] = []
    for source in sources:
        match source:
            case {"layer_range": [0, int() as end]}:
                ends.append(end)
            case _:
                return
    if any(end != ends[0] for end in ends):
        return
    document.layers = (ends[0], document.line((*SOURCES, 0, "layer_range")))
    models = [dict(source) for source in sources]
    for model in models:
        del model["layer_range"]
    document.data = {**document.data, "models": models}
    del document.data["slices"]
    # The models keep the lines of the sources.
    for path in list(document.marks):
        if path[: len(SOURCES)] == SOURCES:
            document.marks["models", *path[len(SOURCES) :]] = document.marks[path]
