"""The text of a recipe with every model pinned."""

from collections.abc import Mapping

from ruamel.yaml.comments import CommentedMap

from hf_tsv.recipe._edit import edited, models_of, own_value, put_key
from hf_tsv.recipe._recipe import Recipe
from hf_tsv.recipe._refs import ModelRef


def pinned_text(recipe: Recipe, pins: Mapping[str, str]) -> str:
    """Return a recipe's text in which each reference is replaced by its pinned one, so that its meaning stays fixed.

    Args:
        recipe: A parsed recipe.
        pins: The pinned references, by the text of the reference in the recipe.
    """
    refs = {model.entry: model.ref for model in recipe.models}

    def change(document: CommentedMap) -> None:
        if document.get("base_model") and recipe.base.text in pins:
            put_key(document, "base_model", pins[recipe.base.text])
        models = models_of(document)
        for i in range(len(models)):
            ref = refs.get(i, recipe.base)  # an entry that isn't a task is the base
            if ref.text in pins:
                put_key(own_value(models, i), "model", pins[ref.text])
        source = recipe.tokenizer.source
        if not isinstance(source, ModelRef) or source.text not in pins:
            return
        in_section = bool(document.get("tokenizer"))
        part = own_value(document, "tokenizer") if in_section else document
        key = "source" if in_section else "tokenizer_source"
        # The name of a task, or `base`, means the same model once the models are pinned.
        names = {"base", *(model.name for model in recipe.models)}
        if part[key] not in names:
            put_key(part, key, pins[source.text])

    return edited(recipe, change).text
