"""Reads which models a recipe names, and which of them is the base."""

import re
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Literal

from hf_tsv.errors import RecipeError
from hf_tsv.recipe import _schema as schema
from hf_tsv.recipe._messages import did_you_mean, joined
from hf_tsv.recipe._recipe import UNION, RecipeModel, TokenizerChoice
from hf_tsv.recipe._refs import ModelRef
from hf_tsv.recipe._yaml import Document, Path

_TASK_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Models:
    """The models of a recipe, as far as they could be read.

    Attributes:
        refs: One an entry of `models`, None where it is wrong.
        base: The base model, None where it is wrong or missing.
        base_entries: Which entries are the base.
        tasks: The other entries' tasks, by the entry's index.
    """

    refs: tuple[ModelRef | None, ...]
    base: ModelRef | None
    base_entries: tuple[int, ...]
    tasks: dict[int, RecipeModel]


class ModelReader:
    """Reads references, and notes what is wrong in the document."""

    def __init__(self, document: Document, file: schema.RecipeFile, folder: Folder | None) -> None:
        self._document = document
        self._file = file
        self._entries = file.models or []
        self._folder = folder

    def read(self, *, first_is_base: bool) -> Models:
        """Read all models; whether the first is the base where none is named."""
        refs = tuple(self._ref(("models", i, "model"), entry.model) for i, entry in enumerate(self._entries))
        base = self._ref(("base_model",), self._file.base_model) if self._file.base_model else None
        if first_is_base and refs and refs[0]:
            self._document.note(("models", 0), f"there is no base_model: {refs[0]} stands in for it.")
            base = refs[0]
        is_base = tuple(i for i, ref in enumerate(refs) if ref and ref == base)
        self._check_count(is_base)
        return Models(refs, base, is_base, self._tasks({i: r for i, r in enumerate(refs) if r and i not in is_base}))

    def tokenizer(self, models: Models) -> TokenizerChoice:
        """Whose vocabulary and tokenizer the output gets."""
        section = self._file.tokenizer
        if section is None:
            path: Path = ("tokenizer_source",)
            return TokenizerChoice(self._tokenizer_source(path, self._file.tokenizer_source, models))
        if self._file.tokenizer_source is not None:
            self._document.tell(("tokenizer_source",), "'tokenizer' says this too. Keep one of them.")
        source = self._tokenizer_source(("tokenizer", "source"), section.source or UNION, models)  # as in mergekit
        return TokenizerChoice(source, section.pad_to_multiple_of)

    def _tokenizer_source(
        self, path: Path, written: schema.Reference | str | None, models: Models
    ) -> ModelRef | Literal["union"] | None:
        text = written.text if isinstance(written, schema.Reference) else written
        if text is None or text == "base":
            return models.base if text else None
        by_name = {task.name: task.ref for task in models.tasks.values()}
        same = by_name.get(text) or self._same(text, models)
        if same or text == UNION:
            return same or UNION
        if models.base and all(models.refs):
            words = ["base", UNION, *by_name]
            problem = f"tokenizer source '{text}' is none of the models, expected {joined(words, 'or')}."
            self._document.tell(path, problem + did_you_mean(text, words))
        return None

    def _ref(self, path: Path, written: schema.Reference | str | None) -> ModelRef | None:
        if written is None:
            self._document.tell_missing(path, "Write a Hub id such as org/name, or a folder.")
            return None
        try:
            return ModelRef.parse(written if isinstance(written, str) else written.text, self._folder)
        except RecipeError as error:
            self._document.tell(path, str(error))
            return None

    def _check_count(self, is_base: tuple[int, ...]) -> None:
        if self._file.models == []:
            self._document.tell(("models",), "'models' is empty. List at least one fine-tuned model.")
        elif not self._entries:
            if not self._document.told(("slices",)):  # which is where they are, then
                self._document.tell_missing(("models",), "List at least one fine-tuned model.")
        elif len(is_base) == len(self._entries):
            self._document.tell(("models",), "only the base model is listed. List at least one fine-tuned model.")
        for i in is_base[1:]:
            first = self._document.line(("models", is_base[0]))
            self._document.tell(("models", i), f"the base model is listed on line {first} already. Keep one of them.")

    def _tasks(self, refs: dict[int, ModelRef]) -> dict[int, RecipeModel]:
        tasks: dict[int, RecipeModel] = {}
        for i, ref in refs.items():
            name = self._entries[i].name
            name = ref.default_name if name is None else name
            if self._is_good_name(("models", i, "name"), name, list(tasks.values())):
                tasks[i] = RecipeModel(ref, name, self._document.line(("models", i)))
        return tasks

    def _is_good_name(self, path: Path, name: str, others: list[RecipeModel]) -> bool:
        """Whether a task's name can be a file's, on file systems that don't know upper from lower case too."""
        same = next((task for task in others if task.name.lower() == name.lower()), None)
        if self._document.told(path):
            return False
        if not _TASK_NAME.fullmatch(name):
            problem = f"'{name}' can't be a task's name, expected letters, digits, '.', '_' and '-', and no '.' first."
            self._document.tell(path, f"{problem} Write another as its name.")
        elif same:
            like = f"'{name}'" if same.name == name else f"'{same.name}', which some file systems take for '{name}',"
            self._document.tell(path, f"line {same.line} has a task {like} already. Write another as this one's name.")
        return bool(_TASK_NAME.fullmatch(name)) and not same

    def _same(self, text: str, models: Models) -> ModelRef | None:
        """The model of the recipe that a reference means."""
        try:
            meant = ModelRef.parse(text, self._folder)
        except RecipeError:
            return None
        return next((ref for ref in (models.base, *models.refs) if ref == meant), None)
