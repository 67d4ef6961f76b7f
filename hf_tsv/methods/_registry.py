"""The one list of merge methods: functions whose keyword arguments are the recipe's parameters."""

import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import RLock
from typing import Any, Literal

import torch
from torch import Tensor

from hf_tsv.methods._deltas import Deltas
from hf_tsv.methods._parameters import Parameter, parameters_of, taken_by
from hf_tsv.methods._plugins import load_plugins
from hf_tsv.methods._policy import BaseRole, Condition, Inputs, Mask, Matrices, Survey, SurveyMaker, TaskDelta, never

READ_ONCE = "every model is read once"
ALIASES = {"lambda": "scale"}  # the papers' letter, which can't be the name of a Python keyword argument


@dataclass(frozen=True)
class MergeMethod:
    """A registered method.

    Attributes:
        name: The method's name in recipes, code, cards and messages.
        fn: The pure function `(deltas, **parameters) -> merged delta`, of the deltas' shape and dtype.
        paper: Address of the paper that defines it.
        cost: Cost of merging T models, in words.
        inputs: The method's inputs, and their meaning.
        matrices: The way it works on task matrices; None if it takes tensors as they are.
        elementwise: Returns True for parameters with which every entry is merged independently of the others (given
            the survey), so that a tensor may come in pieces.
        survey: Makes the survey of whole task vectors that the merge needs.
        keeps: Output for each task beside the merged model: nothing, an adapter that holds the task's change
            (its parameters are then a rank rule, see `hf_tsv.linalg.ranks`), or a mask.
        mask: The way that mask is built.
    """

    name: str
    fn: Callable[..., Tensor]
    paper: str
    cost: str = READ_ONCE
    inputs: Inputs = field(default_factory=Inputs)
    matrices: Matrices | None = None
    elementwise: Condition = never
    survey: SurveyMaker | None = None
    keeps: Literal["", "adapter", "mask"] = ""
    mask: Mask | None = None

    def __call__(self, deltas: Tensor | Sequence[Tensor], **parameters: Any) -> Tensor:
        given = deltas if isinstance(deltas, Deltas) else Deltas.of(deltas)
        return self.fn(given, **parameters)

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        return parameters_of(self.fn)

    @property
    def aliases(self) -> dict[str, str]:
        """Other names for parameters in recipes, with the parameter's own name."""
        return {alias: name for alias, name in ALIASES.items() if name in self.parameters}

    @property
    def base(self) -> BaseRole:
        """Role of the base model. See `Inputs`."""
        return self.inputs.base

    @property
    def min_tasks(self) -> int:
        """Minimum number of fine-tuned models."""
        return self.inputs.min_tasks

    @property
    def max_tasks(self) -> int | None:
        """Maximum number of fine-tuned models; None for any number."""
        return self.inputs.max_tasks

    @property
    def copies_base(self) -> bool:
        """True if the result is the base's tensor, so that nothing is merged."""
        return self.inputs.ignores_tasks

    @property
    def is_scaled(self) -> bool:
        """True if its `scale` is a factor on everything that it merges."""
        return "scale" in self.parameters and self.parameters["scale"].is_factor

    def is_as_paper(self, parameters: Mapping[str, Any]) -> bool:
        """True if, with these parameters, the authors' code decides what a matrix is. See `Matrices.as_paper`."""
        return self.matrices is not None and self.matrices.as_paper(parameters)

    @property
    def is_surveyed(self) -> bool:
        """True if the merge or the masks need a survey of whole task vectors, which includes unchanged tensors."""
        return self.survey is not None or (self.mask is not None and self.mask.survey is not None)

    def survey_parameters(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the given parameters, or their defaults, that its surveys depend on."""
        chosen: dict[str, Any] = {}
        for maker in (self.survey, self.mask.survey if self.mask else None):
            if maker:
                chosen |= taken_by(maker, parameters, self.parameters)
        return chosen

    def make_survey(self, dtype: torch.dtype, num_tasks: int, parameters: Mapping[str, Any]) -> Survey | None:
        """Make the survey that the merge needs with these parameters; None if it needs none."""
        return self._made(self.survey, dtype, num_tasks, parameters)

    def make_mask_survey(self, dtype: torch.dtype, num_tasks: int, parameters: Mapping[str, Any]) -> Survey | None:
        """Make the survey that the masks need with these parameters; None if they need none."""
        return self._made(self.mask.survey if self.mask else None, dtype, num_tasks, parameters)

    def mask_of(self, task: TaskDelta, merged: Tensor, parameters: Mapping[str, Any]) -> Tensor:
        """Build a task's mask of one tensor, or of a piece of it.

        Args:
            task: The task's change.
            merged: The merged change, of the same shape.
            parameters: The recipe's parameters; a per-task one is a number for all tasks, or one for each.

        Returns:
            A bool tensor of that shape.
        """
        if self.mask is None:
            raise TypeError(f"{self.name} keeps no masks")
        own = taken_by(self.mask.build, parameters, self.parameters)
        for name, value in own.items():
            # A mask belongs to one task: it needs only that task's number.
            if self.parameters[name].per_task and isinstance(value, Sequence):
                own[name] = value[task.task]
        return self.mask.build(task, merged, **own)

    @property
    def needs(self) -> str:
        """The models it needs, in words."""
        least, most = self.min_tasks, self.max_tasks
        if least == most:
            number = f"exactly {least}"
        elif most is None:
            number = f"{least} or more"
        else:
            number = f"{least} to {most}"
        of_base = {
            "reference": "the base model they were fine-tuned from",
            "model": "no base model; where it is listed among them it counts as one of them",
            "either": "the base model they were fine-tuned from; or none, and one of them stands in for it",
        }
        models = "fine-tuned model" if most == 1 else "fine-tuned models"
        return f"{number} {models}; {of_base[self.base]}. No data."

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.fn) or "").split("\n", 1)[0]

    def _made(
        self, maker: SurveyMaker | None, dtype: torch.dtype, num_tasks: int, parameters: Mapping[str, Any]
    ) -> Survey | None:
        if maker is None:
            return None
        own = taken_by(maker, parameters, self.parameters)
        return maker(dtype, num_tasks, **own)


class Registry(MutableMapping[str, MergeMethod]):
    """Merge methods by name: this package's and, from the first read on, those of the installed plug-ins."""

    def __init__(self) -> None:
        self._methods: dict[str, MergeMethod] = {}
        self._has_plugins = False
        self._loading = RLock()  # re-entrant, because a plug-in may read methods while it is loaded

    def __getitem__(self, name: str) -> MergeMethod:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __setitem__(self, name: str, method: MergeMethod) -> None:
        self._methods[name] = method

    def __delitem__(self, name: str) -> None:
        del self._methods[name]

    def register(self, method: MergeMethod) -> None:
        """Add a method.

        Raises:
            ValueError: a method of this name is already registered.
        """
        if method.name in self._methods:
            raise ValueError(f"merge method {method.name!r} is registered twice")
        self._methods[method.name] = method

    def _all(self) -> dict[str, MergeMethod]:
        with self._loading:
            if not self._has_plugins:
                self._has_plugins = True  # set before loading, or a plug-in that reads methods would load itself
                load_plugins(self._methods)
        return self._methods


METHODS = Registry()
ANY_FINETUNES = Inputs()  # one or more fine-tunes of a base


def merge_method(
    name: str,
    *,
    paper: str,
    cost: str = READ_ONCE,
    inputs: Inputs = ANY_FINETUNES,
    matrices: Matrices | None = None,
    elementwise: bool | Condition = False,
    survey: SurveyMaker | None = None,
    keeps: Literal["", "adapter"] | Mask = "",
) -> Callable[[Callable[..., Tensor]], MergeMethod]:
    """Register a function as the merge method `name`. Most methods give only name and paper.

    Args:
        name: The method's name in recipes.
        paper: Address of the paper that defines it, https.
        cost: Cost of merging T models, in words.
        inputs: The method's inputs, if other than one or more fine-tunes of a base.
        matrices: `Matrices()` for a method that works on task matrices.
        elementwise: True if every entry is merged independently of the others, so that a tensor may come in pieces; or
            a function that decides it from the parameters.
        survey: Makes a survey of whole task vectors before the merge. See `SurveyMaker`.
        keeps: Output for each task beside the merged model: a `Mask`, or the task's change in an adapter.
    """

    def register(fn: Callable[..., Tensor]) -> MergeMethod:
        method = MergeMethod(
            name=name,
            fn=fn,
            paper=paper,
            cost=cost,
            inputs=inputs,
            matrices=matrices,
            elementwise=elementwise if callable(elementwise) else lambda parameters: elementwise,
            survey=survey,
            keeps="mask" if isinstance(keeps, Mask) else keeps,
            mask=keeps if isinstance(keeps, Mask) else None,
        )
        METHODS.register(method)
        return method

    return register
