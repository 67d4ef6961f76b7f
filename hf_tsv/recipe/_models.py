"""Reading the models that a recipe names, and which of them is the base."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Literal

from hf_tsv.errors import RecipeError
from hf_tsv.recipe import _schema as schema
from hf_tsv.recipe._document import Document, Path
from hf_tsv.recipe._messages import did_you_mean, joined
from hf_tsv.recipe._recipe import UNION, RecipeModel, TokenizerChoice
from hf_tsv.recipe._refs import ModelRef

_TASK_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Models:
    """The models of a recipe, as far as they could be read.

    Attributes:
        refs: One reference per entry of `models`, None if the entry is wrong.
        base: The base model, None if it is wrong or missing.
        base_entries: Indices of the entries that are the base.
        tasks: The tasks of the other entries, by the entry's index.
    """

    refs: tuple[ModelRef | None, ...]
    base: ModelRef | None
    base_entries: tuple[int, ...]
    tasks: dict[int, RecipeModel]


class ModelReader:
    """Reader of model references that notes mistakes in the document."""

    def __init__(self, document: Document, file: schema.RecipeFile, folder: Folder | None) -> None:
        self._document = document
        self._file = file
        self._entries = file.models or []
        self._folder = folder

    def read(self, *, first_is_base: bool) -> Models:
        """Read all models; with `first_is_base`, the first is the base if none is named."""
        refs = tuple(self._ref(("models", i, "model"), entry.model) for i, entry in enumerate(self._entries))
        base = None
        if self._file.base_model:
            base = self._ref(("base_model",), self._file.base_model)
        if first_is_base and refs and refs[0]:
            self._document.note(("models", 0), f"there is no base_model: {refs[0]} stands in for it.")
            base = refs[0]
        base_entries = tuple(i for i, ref in enumerate(refs) if ref and ref == base)
        # At least one model has to be listed besides the base, and the base at most once.
        if self._file.models == []:
            self._document.tell(("models",), "'models' is empty. List at least one fine-tuned model.")
        elif not self._entries:
            if not self._document.has_problem(("slices",)):  # if `slices` is wrong, the models are probably in it
                self._document.tell_missing(("models",), "List at least one fine-tuned model.")
        elif len(base_entries) == len(self._entries):
            self._document.tell(("models",), "only the base model is listed. List at least one fine-tuned model.")
        for i in base_entries[1:]:
            first = self._document.line(("models", base_entries[0]))
            self._document.tell(("models", i), f"the base model is listed on line {first} already. Keep one of them.")
        return Models(refs, base, base_entries, self._tasks(refs, base_entries))

    def tokenizer(self, models: Models) -> TokenizerChoice:
        """Read the model whose vocabulary and tokenizer the output gets."""
        section = self._file.tokenizer
        if section is None:
            source = self._tokenizer_source(("tokenizer_source",), self._file.tokenizer_source, models)
            return TokenizerChoice(source)
        if self._file.tokenizer_source is not None:
            self._document.tell(("tokenizer_source",), "'tokenizer' says this too. Keep one of them.")
        written = section.source or UNION  # as in mergekit
        source = self._tokenizer_source(("tokenizer", "source"), written, models)
        return TokenizerChoice(source, section.pad_to_multiple_of)

    def _tokenizer_source(
        self, path: Path, written: schema.Reference | str | None, models: Models
    ) -> ModelRef | Literal["union"] | None:
        if written is None:
            return None
        text = written.text if isinstance(written, schema.Reference) else written
        if text == "base":
            return models.base
        by_name = {task.name: task.ref for task in models.tasks.values()}
        if text in by_name:
            return by_name[text]
        # The text may be a reference to a model of the recipe.
        with suppress(RecipeError):
            meant = ModelRef.parse(text, self._folder)
            for ref in (models.base, *models.refs):
                if ref == meant:  # in the spelling of `models`, by which the lock looks it up
                    return ref
        if text == UNION:
            return UNION
        # If a model is wrong, the source may name that one, whose own mistake is noted already.
        if models.base and all(models.refs):
            words = ["base", UNION, *by_name]
            problem = f"tokenizer source '{text}' is none of the models, expected {joined(words, 'or')}."
            self._document.tell(path, problem + did_you_mean(text, words))
        return None

    def _ref(self, path: Path, written: schema.Reference | str | None) -> ModelRef | None:
        if written is None:
            self._document.tell_missing(path, "Write a Hub id such as org/name, or a folder.")
            return None
        text = written.text if isinstance(written, schema.Reference) else written
        try:
            return ModelRef.parse(text, self._folder)
        except RecipeError as error:
            self._document.tell(path, str(error))
            return None

    def _tasks(self, refs: tuple[ModelRef | None, ...], base_entries: tuple[int, ...]) -> dict[int, RecipeModel]:
        """The tasks with a valid model and name, by the entry's index."""
        tasks: dict[int, RecipeModel] = {}
        by_lower_case: dict[str, RecipeModel] = {}
        for i, ref in enumerate(refs):
            if ref is None or i in base_entries:
                continue
            name = self._entries[i].name
            if name is None:
                name = ref.default_name
            path: Path = ("models", i, "name")
            if self._document.has_problem(path):
                continue
            # Names become file names, and some file systems don't distinguish upper and lower case.
            same = by_lower_case.get(name.lower())
            problem = ""
            if not _TASK_NAME.fullmatch(name):
                problem = (
                    f"'{name}' can't be a task's name, expected letters, digits, '.', '_' and '-',"
                    " not starting with '.'. Give it another name."
                )
            elif same is not None and same.name == name:
                problem = f"line {same.line} has a task '{name}' already. Give this one another name."
            elif same is not None:
                problem = (
                    f"line {same.line} has a task '{same.name}', which some file systems don't tell from '{name}'."
                    " Give this one another name."
                )
            if problem:
                self._document.tell(path, problem)
                continue
            tasks[i] = RecipeModel(ref, name, self._document.line(("models", i)), entry=i)
            by_lower_case[name.lower()] = tasks[i]
        return tasks
