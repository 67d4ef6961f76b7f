"""The meaning of a recipe whose shape was checked, or all its mistakes."""

from pathlib import Path as Folder
from typing import Any

from hf_tsv.checkpoints.dtypes import BY_WORD
from hf_tsv.errors import MethodError
from hf_tsv.linalg.ranks import rank_choice
from hf_tsv.methods import METHODS, MergeMethod
from hf_tsv.recipe._document import Document, Path
from hf_tsv.recipe._messages import did_you_mean, shown
from hf_tsv.recipe._models import ModelReader, Models
from hf_tsv.recipe._parameters import WEIGHT, ParameterReader
from hf_tsv.recipe._recipe import Branch, Recipe, RecipeAdapters
from hf_tsv.recipe._schema import Adapters, Override, RecipeFile
from hf_tsv.recipe._settings import Chain, Filter


def read_meaning(document: Document, file: RecipeFile, text: str, folder: Folder | None) -> Recipe:
    """Read a recipe whose shape was checked.

    Raises:
        RecipeError: the recipe has mistakes, in its shape or its meaning.
    """
    return _MeaningReader(document, file, folder).recipe(text)


class _MeaningReader:
    """Reader of a recipe that reads each part as far as mistakes in the others allow.

    A place is a path at which a method can be named: () for the recipe itself, ("overrides", i) for an override.
    """

    def __init__(self, document: Document, file: RecipeFile, folder: Folder | None) -> None:
        self._document = document
        self._file = file
        self._folder = folder
        self._overrides: dict[Path, Override] = {("overrides", i): o for i, o in enumerate(file.overrides or [])}
        self._model_reader = ModelReader(document, file, folder)
        self._parameter_reader = ParameterReader(document)

    def recipe(self, text: str) -> Recipe:
        self._methods = self._read_methods()
        self._models = self._read_models()
        filters = self._read_parameters()
        tokenizer = self._model_reader.tokenizer(self._models)
        dtype, out_dtype = self._file.dtype, self._file.out_dtype
        if dtype is not None and BY_WORD[dtype].is_half:  # half precision can only be meant for the output
            out_dtype = out_dtype or dtype
            self._document.note(("dtype",), f"arithmetic is in float32 whatever the output is, here {out_dtype}.")
        residuals = None
        if self._file.residuals is not None:
            residuals = self._file.residuals.model_dump(exclude_none=True)
            self._check_rule("residuals", residuals)
        output = self._read_output()
        template = self._file.chat_template
        if template is not None and template != "auto" and "{" not in template:
            problem = "'chat_template' has a wrong value, expected auto or a template's Jinja text"
            way_out = "Copy the text from the chat_template.jinja of a model that has it."
            self._document.tell(("chat_template",), f"{problem} but got {shown(template)}. {way_out}")
        # Everything has been read: from here on, the recipe has no mistakes.
        self._document.raise_problems()
        assert self._models.base is not None, "its absence is a mistake"
        adapters = self._file.adapters or Adapters()
        branches = [self._branch(place, tensors) for place, tensors in filters.items()]
        branches.append(self._branch((), None))  # last: it takes the tensors that no override takes
        return Recipe(
            text=text,
            source=self._document.source,
            merge_method=self._methods[()].name,
            base=self._models.base,
            models=tuple(self._models.tasks.values()),
            dtype="float64" if dtype == "float64" else "float32",
            out_dtype=out_dtype,
            tokenizer=tokenizer,
            chat_template=template,
            svd=self._file.svd or "exact",
            residuals=residuals,
            adapters=RecipeAdapters(
                profiles=None if adapters.profiles is None else tuple(adapters.profiles),
                rank=adapters.rank,
                factor_dtype=adapters.factor_dtype,
                together=bool(adapters.together),
                verify=adapters.verify or "weights",
            ),
            output=output,
            notes=tuple(self._document.notes),
            branches=tuple(branches),
            filters=(tuple(filters.values()), *self._parameter_reader.filters.values()),
            layers=self._document.layers,
            folder=self._folder,
        )

    # Methods

    def _read_methods(self) -> dict[Path, MergeMethod]:
        """The method of each place, where it is known; an override without a method has the recipe's."""
        own = self._file.merge_method
        if own is None:
            self._document.tell_missing(("merge_method",), f"Known methods: {', '.join(sorted(METHODS))}.")
        written: dict[Path, str | None] = {(): own}
        for place, override in self._overrides.items():
            written[place] = override.merge_method
        methods: dict[Path, MergeMethod] = {}
        for place, name in written.items():
            if name is not None and name not in METHODS:
                known = sorted(METHODS)
                problem = f"unknown merge method '{name}'.{did_you_mean(name, known)}"
                self._document.tell((*place, "merge_method"), f"{problem} Known methods: {', '.join(known)}.")
            chosen = own if name is None else name
            if chosen is not None and chosen in METHODS:
                methods[place] = METHODS[chosen]
        return methods

    @property
    def _all_known(self) -> bool:
        return len(self._methods) == len(self._overrides) + 1

    @property
    def _used(self) -> list[tuple[Path, MergeMethod]]:
        """The known methods, each with the first place that uses it."""
        first: dict[str, tuple[Path, MergeMethod]] = {}
        for place, method in self._methods.items():
            first.setdefault(method.name, (place, method))
        return list(first.values())

    # Models

    def _read_models(self) -> Models:
        """Read the models, and check that each method gets as many as it takes, and a base if it needs one."""
        is_missing = self._file.base_model is None and not self._document.has_problem(("base_model",))
        first_is_base = is_missing and self._all_known
        for place, method in self._used:
            if is_missing and method.inputs.base == "reference":
                problem = f"{method.name} needs the model that the others were fine-tuned from."
                self._document.tell((*place, "merge_method"), f"{problem} Add base_model.")
                first_is_base = False
        models = self._model_reader.read(first_is_base=first_is_base)
        for place, method in self._used:
            least, most = method.inputs.min_tasks, method.inputs.max_tasks
            number, beside = len(models.tasks), " besides the base"
            if is_missing and method.inputs.base == "either":  # the base is one of the merged models
                number, beside = number + 1, ""
            problem = ""
            if most is not None and number > most:
                problem = f"too many models for {method.name}, expected at most {most}{beside} but got {number}."
            elif models.tasks and number < least:
                problem = f"too few models for {method.name}, expected at least {least}{beside} but got {number}."
            if problem:
                self._document.tell((*place, "merge_method"), problem)
        return models

    # Parameters

    def _read_parameters(self) -> dict[Path, Filter]:
        """Read the parameters in every place that has some. Return the filters of the overrides, by place."""
        used = [method for _, method in self._used]
        read = self._parameter_reader.read
        read(("parameters",), self._file.parameters, used, all_known=self._all_known)
        for place, override in self._overrides.items():
            methods = [self._methods[place]] if place in self._methods else []
            read((*place, "parameters"), override.parameters, methods, all_known=bool(methods))
        for i, entry in enumerate(self._file.models or []):
            read(("models", i, "parameters"), entry.parameters, used, all_known=self._all_known)
        filters: dict[Path, Filter] = {}
        for place, override in self._overrides.items():
            if override.filter is None:
                self._document.tell_missing((*place, "filter"), "Write which tensors it is for: '*' for all.")
            filters[place] = self._parameter_reader.filter(place, override.filter)
        return filters

    def _branch(self, place: Path, tensors: Filter | None) -> Branch:
        """The branch of one place. A model's own parameters precede the place's, and those precede the recipe's."""
        method = self._methods[place]
        shared_places: list[Path] = [(*place, "parameters")]
        if place:
            shared_places.append(("parameters",))

        def shared(name: str) -> Chain:
            return self._parameter_reader.chain(name, method, shared_places)

        def of_entry(name: str, entry: int) -> Chain:
            return self._parameter_reader.chain(name, method, [("models", entry, "parameters"), *shared_places])

        def of_tasks(name: str) -> tuple[Chain, ...]:
            return tuple(of_entry(name, entry) for entry in self._models.tasks)

        parameters = method.parameters.values()
        # The base may be one of the merged models if it is listed.
        counts_base = method.base == "model" or (method.base == "either" and self._file.base_model is None)
        base_weight = None
        if self._models.base_entries and counts_base:
            base_weight = of_entry(WEIGHT.name, self._models.base_entries[0])
        return Branch(
            filter=tensors,
            method=method.name,
            line=self._document.line((*place, "merge_method")),
            shared={p.name: shared(p.name) for p in parameters if not p.per_task},
            per_task={p.name: (p.default, of_tasks(p.name)) for p in parameters if p.per_task},
            weights=of_tasks(WEIGHT.name),
            base_weight=base_weight,
        )

    # The rest

    def _check_rule(self, key: str, rule: dict[str, Any]) -> None:
        """Check a rule for ranks, in the form that `tsv_c` takes."""
        try:
            rank_choice(rule, num_tasks=1, checkpoint_bytes=1)  # any numbers do to check the rule
        except MethodError as error:
            self._document.tell((key,), f"{error}.")

    def _read_output(self) -> dict[str, Any] | None:
        """The rule for ranks if the output is one adapter; None for another output."""
        section = self._file.output
        if section is None:
            return None
        rule = section.model_dump(exclude_none=True, exclude={"form"})
        if section.form == "model":
            if rule:
                self._document.tell(("output",), f"{', '.join(rule)} is for form: adapter. Leave it out.")
            return None
        self._check_rule("output", rule)
        keepers = [method.name for _, method in self._used if method.keeps]
        if self._file.residuals is not None:
            keepers.append("residuals")
        if keepers:
            problem = (
                f"one adapter can't hold what single tasks keep by {' and '.join(keepers)}. Leave one of the two out."
            )
            self._document.tell(("output",), problem)
        return rule
