"""The meaning of a well-shaped recipe, or everything that is wrong with it."""

from pathlib import Path as Folder
from typing import Any, Literal

from hf_tsv.errors import MethodError
from hf_tsv.linalg.ranks import rank_choice
from hf_tsv.methods import METHODS, MergeMethod
from hf_tsv.recipe._messages import did_you_mean, shown
from hf_tsv.recipe._models import ModelReader, Models
from hf_tsv.recipe._parameters import WEIGHT, ParameterReader
from hf_tsv.recipe._recipe import Branch, Recipe
from hf_tsv.recipe._schema import Override, RecipeFile
from hf_tsv.recipe._settings import Chain, Filter
from hf_tsv.recipe._yaml import Document, Path

HALVES = ("bfloat16", "float16")


def read_meaning(document: Document, file: RecipeFile, text: str, folder: Folder | None) -> Recipe:
    """Read a recipe whose shape is checked.

    Raises:
        RecipeError: anything is wrong with it, in its shape or its meaning.
    """
    return _MeaningReader(document, file, folder).recipe(text)


class _MeaningReader:
    """Reads each part of a recipe as far as the mistakes in others let it.

    A place is where a method can be named: () for the recipe itself, ("overrides", i) for an override.
    """

    def __init__(self, document: Document, file: RecipeFile, folder: Folder | None) -> None:
        self._document = document
        self._file = file
        self._overrides: dict[Path, Override] = {("overrides", i): o for i, o in enumerate(file.overrides or [])}
        self._model_reader = ModelReader(document, file, folder)
        self._parameter_reader = ParameterReader(document)

    def recipe(self, text: str) -> Recipe:
        self._methods = self._read_methods()
        self._models = self._read_models()
        self._read_parameters()
        filters = {place: self._filter(place) for place in self._overrides}
        tokenizer = self._model_reader.tokenizer(self._models)
        dtype, out_dtype = self._dtypes()
        self._check_chat_template()
        self._check_residuals()
        self._document.raise_problems()
        assert self._models.base is not None, "its absence is a mistake"
        return Recipe(
            text=text,
            source=self._document.source,
            merge_method=self._methods[()].name,
            base=self._models.base,
            models=tuple(self._models.tasks.values()),
            dtype=dtype,
            out_dtype=out_dtype,
            tokenizer=tokenizer,
            chat_template=self._file.chat_template,
            svd=self._file.svd or "exact",
            residuals=self._residuals(),
            adapters=self._file.adapters.model_dump(exclude_none=True) if self._file.adapters else {},
            notes=tuple(self._document.notes),
            branches=tuple(self._branch(place, filters.get(place)) for place in (*filters, ())),
            layers=self._document.layers,
            filters=(tuple(filters.values()), *self._parameter_reader.filters.values()),
        )

    # Methods

    def _read_methods(self) -> dict[Path, MergeMethod]:
        """The method of each place where it is known."""
        if self._file.merge_method is None:
            self._document.tell_missing(("merge_method",), f"Known methods: {', '.join(sorted(METHODS))}.")
        names = {(): self._file.merge_method} | {place: o.merge_method for place, o in self._overrides.items()}
        for place, name in names.items():
            if name is not None and name not in METHODS:
                self._document.tell((*place, "merge_method"), _unknown_method(name))
        chosen = {place: self._file.merge_method if name is None else name for place, name in names.items()}
        return {place: METHODS[name] for place, name in chosen.items() if name is not None and name in METHODS}

    @property
    def _all_known(self) -> bool:
        return len(self._methods) == len(self._overrides) + 1

    @property
    def _used(self) -> list[tuple[Path, MergeMethod]]:
        """The known methods, each with the place that names it first."""
        first: dict[str, tuple[Path, MergeMethod]] = {}
        for place, method in self._methods.items():
            first.setdefault(method.name, (place, method))
        return list(first.values())

    # Models

    def _read_models(self) -> Models:
        is_missing = self._file.base_model is None and not self._document.told(("base_model",))
        needing = [(place, m) for place, m in self._used if is_missing and m.base == "reference"]
        for place, method in needing:
            problem = f"{method.name} needs the model that the others were fine-tuned from. Add base_model."
            self._document.tell((*place, "merge_method"), problem)
        models = self._model_reader.read(first_is_base=is_missing and self._all_known and not needing)
        for place, method in self._used:
            if problem := _wrong_count(method, len(models.tasks), base_is_model=is_missing):
                self._document.tell((*place, "merge_method"), problem)
        return models

    # Parameters

    def _read_parameters(self) -> None:
        used = [method for _, method in self._used]
        read = self._parameter_reader.read
        read(("parameters",), self._file.parameters, used, all_known=self._all_known)
        for place, override in self._overrides.items():
            methods = [self._methods[place]] if place in self._methods else []
            read((*place, "parameters"), override.parameters, methods, all_known=bool(methods))
        for i, entry in enumerate(self._file.models or []):
            read(("models", i, "parameters"), entry.parameters, used, all_known=self._all_known)

    def _filter(self, place: Path) -> Filter:
        written = self._overrides[place].filter
        if written is None:
            self._document.tell_missing((*place, "filter"), "Write which tensors it is for: '*' for all.")
        return self._parameter_reader.filter(place, written)

    def _branch(self, place: Path, tensors: Filter | None) -> Branch:
        method = self._methods[place]
        shared_places = [(*place, "parameters"), *([("parameters",)] if place else [])]

        def chain(name: str, entry: int | None = None) -> Chain:
            own: list[Path] = [] if entry is None else [("models", entry, "parameters")]
            return self._parameter_reader.chain(name, method, [*own, *shared_places])

        def chains(name: str) -> tuple[Chain, ...]:
            return tuple(chain(name, entry) for entry in self._models.tasks)

        parameters, as_model = method.parameters.values(), self._models.base_entries
        return Branch(
            filter=tensors,
            method=method.name,
            line=self._document.line((*place, "merge_method")),
            shared={p.name: chain(p.name) for p in parameters if not p.per_task},
            per_task={p.name: (p.default, chains(p.name)) for p in parameters if p.per_task},
            weights=chains(WEIGHT.name),
            base_weight=chain(WEIGHT.name, as_model[0]) if as_model and self._counts_base(method) else None,
        )

    def _counts_base(self, method: MergeMethod) -> bool:
        """Whether the base, where it is listed, is one of the models that are merged."""
        return method.base == "model" or (method.base == "either" and self._file.base_model is None)

    # The rest

    def _dtypes(self) -> tuple[Literal["float32", "float64"], str | None]:
        """Dtypes of the arithmetic and of the output; a half precision as the first is meant for the second."""
        dtype, out_dtype = self._file.dtype, self._file.out_dtype
        if dtype in HALVES:
            out_dtype = out_dtype or dtype
            self._document.note(("dtype",), f"arithmetic is in float32 whatever the output is, here {out_dtype}.")
        return "float64" if dtype == "float64" else "float32", out_dtype

    def _residuals(self) -> dict[str, Any] | None:
        return self._file.residuals.model_dump(exclude_none=True) if self._file.residuals else None

    def _check_residuals(self) -> None:
        if rule := self._residuals():
            try:
                rank_choice(rule, num_tasks=1, checkpoint_bytes=1)
            except MethodError as error:
                self._document.tell(("residuals",), f"{error}.")

    def _check_chat_template(self) -> None:
        template = self._file.chat_template
        if template is not None and template != "auto" and "{" not in template:
            problem = "'chat_template' has a wrong value, expected auto or a template's Jinja text"
            way_out = "Copy the text from the chat_template.jinja of a model that has it."
            self._document.tell(("chat_template",), f"{problem} but got {shown(template)}. {way_out}")


def _unknown_method(name: str) -> str:
    known = sorted(METHODS)
    return f"unknown merge method '{name}'.{did_you_mean(name, known)} Known methods: {', '.join(known)}."


def _wrong_count(method: MergeMethod, tasks: int, *, base_is_model: bool) -> str:
    """What is wrong with the number of models, empty when nothing is."""
    own = base_is_model and method.base == "either"
    least, most, got = method.min_tasks, method.max_tasks, tasks + own
    beside = "" if own else " besides the base"
    if most is not None and got > most:
        return f"too many models for {method.name}, expected at most {most}{beside} but got {got}."
    if tasks and got < least:
        return f"too few models for {method.name}, expected at least {least}{beside} but got {got}."
    return ""
