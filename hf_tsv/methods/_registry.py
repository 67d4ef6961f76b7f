"""The one list of merge methods: functions whose keyword arguments are the recipe's parameters."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from pydantic import TypeAdapter
from torch import Tensor

from hf_tsv.methods._deltas import Deltas

BaseRole = Literal["reference", "model", "either"]
READ_ONCE = "every model is read once"
Side = Callable[[int, int, int], int]


def always(parameters: Mapping[str, Any]) -> bool:
    """Whatever the parameters."""
    return True


def _shorter(m: int, n: int, num_tasks: int) -> int:
    return min(m, n)


def _never(parameters: Mapping[str, Any]) -> bool:
    return False


@dataclass(frozen=True)
class PerTask:
    """Marks a parameter that may differ from task to task.

    `Annotated[float | Sequence[float], PerTask(), Ge(0)]`: one number for all tasks, or one for each.
    """


class Survey(Protocol):
    """Exact statistics over whole task vectors, gathered tensor by tensor before the merge.

    As long as `share` isn't 0, `observe` is called for every task and tensor, from several threads and with pieces of
    a tensor or, where `share` is below 1, about that share of its rows; and then `advance`. What comes out
    must not depend on the order of the calls.

    Attributes:
        scope: Whether it is one for all tensors of the `model` that are merged alike, or one for each `tensor`.
        share: What part of every tensor the next pass has to see; 0 when none is needed any more.
    """

    @property
    def scope(self) -> Literal["model", "tensor"]: ...

    @property
    def share(self) -> float: ...

    def observe(self, task: int, delta: Tensor) -> None: ...

    def advance(self) -> None: ...


@dataclass(frozen=True)
class Parameter:
    """One keyword of a method, as its signature declares it."""

    name: str
    annotation: Any
    default: Any
    per_task: bool

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        """Checks one value as a recipe gives it (for a per-task parameter: one task's value)."""
        return TypeAdapter(self.annotation)

    @property
    def type_name(self) -> str:
        return _type_name(self.annotation)

    @property
    def range(self) -> str:
        """The numbers that it may be, in words; empty for what is no number or may be any."""
        schema = self.adapter.json_schema()
        bounds = {key: value for part in (schema, *schema.get("anyOf", ())) for key, value in part.items()}
        words = {
            "minimum": "at least {}",
            "exclusiveMinimum": "above {}",
            "maximum": "at most {}",
            "exclusiveMaximum": "below {}",
        }
        return ", ".join(text.format(f"{bounds[key]:g}") for key, text in words.items() if key in bounds)


@dataclass(frozen=True)
class MergeMethod:
    """A registered method.

    Attributes:
        name: Its word in recipes, code, cards and messages.
        fn: The pure function `(deltas, **parameters) -> merged delta`, of the deltas' shape and dtype.
        paper: Where it is defined.
        matrices: Whether it works on task matrices: stacked experts come one by one, conv kernels flattened.
        survey: Makes the first pass's statistics, `(dtype, num_tasks, **parameters) -> Survey | None`; its keywords
            name the parameters that it depends on.
        survey_is_for_masks: Whether not the merge itself needs the survey, but the masks that are written after it.
        elementwise: Whether, with these parameters, every entry is merged by itself (and what the survey found), so
            that a tensor may come in pieces.
        of_weights: Whether it depends on the weights and not only on the change, so that it also has to look
            at tensors that no task changed.
        aliases: Other words a recipe may use for a parameter.
        max_tasks: Most fine-tuned models it takes, None for any number.
        min_tasks: Fewest fine-tuned models it takes.
        base: What the base model is to it. `reference`: what the others were fine-tuned from. `model`: one of the
            models it merges where the recipe lists it, and no more than that. `either`: the reference, but where
            the recipe names none the first model stands in as one of those it merges.
        cost: What it takes, in words, where T models are merged.
        side: The side of the largest square matrix that it factors, from m, n and T.
    """

    name: str
    fn: Callable[..., Tensor]
    paper: str
    matrices: bool = False
    survey: Callable[..., Survey | None] | None = None
    survey_is_for_masks: bool = False
    elementwise: Callable[[Mapping[str, Any]], bool] = _never
    of_weights: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)
    max_tasks: int | None = None
    min_tasks: int = 1
    base: BaseRole = "reference"
    cost: str = READ_ONCE
    side: Side = _shorter

    def __call__(self, deltas: Tensor | Sequence[Tensor], **parameters: Any) -> Tensor:
        return self.fn(deltas if isinstance(deltas, Deltas) else Deltas.of(deltas), **parameters)

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        hints = typing.get_type_hints(self.fn, include_extras=True)
        keywords = inspect.signature(self.fn).parameters.values()
        return {p.name: _parameter(p, hints[p.name]) for p in keywords if p.kind is p.KEYWORD_ONLY}

    def survey_parameters(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the given parameters, or their defaults, that the survey depends on."""
        if self.survey is None:
            return {}
        keywords = [p.name for p in inspect.signature(self.survey).parameters.values() if p.kind is p.KEYWORD_ONLY]
        return {name: parameters.get(name, self.parameters[name].default) for name in keywords}

    def make_survey(self, dtype: torch.dtype, num_tasks: int, parameters: Mapping[str, Any]) -> Survey | None:
        """The first pass's statistics for these parameters, None when none are needed."""
        return self.survey(dtype, num_tasks, **self.survey_parameters(parameters)) if self.survey else None

    @property
    def needs(self) -> str:
        """What it has to be given, in words."""
        least, most = self.min_tasks, self.max_tasks
        number = f"exactly {least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"
        base = {
            "reference": "the base model they were fine-tuned from",
            "model": "no base model; where it is listed among them it counts as one of them",
            "either": "the base model they were fine-tuned from; or none, and one of them stands in for it",
        }[self.base]
        return f"{number} fine-tuned model{'s' * (most != 1)}; {base}. No data."

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.fn) or "").split("\n", 1)[0]


METHODS: dict[str, MergeMethod] = {}


def merge_method(
    name: str,
    *,
    paper: str,
    matrices: bool = False,
    survey: Callable[..., Survey | None] | None = None,
    survey_is_for_masks: bool = False,
    elementwise: Callable[[Mapping[str, Any]], bool] = _never,
    of_weights: bool = False,
    aliases: Mapping[str, str] = types.MappingProxyType({"lambda": "scale"}),
    max_tasks: int | None = None,
    min_tasks: int = 1,
    base: BaseRole = "reference",
    cost: str = READ_ONCE,
    side: Side = _shorter,
) -> Callable[[Callable[..., Tensor]], MergeMethod]:
    """Register a function as the merge method `name`. See `MergeMethod` for the arguments."""

    def register(fn: Callable[..., Tensor]) -> MergeMethod:
        if name in METHODS:
            raise ValueError(f"merge method {name!r} is registered twice")
        keywords = inspect.signature(fn).parameters
        known = {alias: target for alias, target in aliases.items() if target in keywords}
        METHODS[name] = MergeMethod(
            name=name,
            fn=fn,
            paper=paper,
            matrices=matrices,
            survey=survey,
            survey_is_for_masks=survey_is_for_masks,
            elementwise=elementwise,
            of_weights=of_weights,
            aliases=known,
            max_tasks=max_tasks,
            min_tasks=min_tasks,
            base=base,
            cost=cost,
            side=side,
        )
        return METHODS[name]

    return register


def _parameter(p: inspect.Parameter, hint: Any) -> Parameter:
    metadata = getattr(hint, "__metadata__", ())
    per_task = any(isinstance(m, PerTask) for m in metadata)
    if per_task:
        rest = tuple(m for m in metadata if not isinstance(m, PerTask))
        hint = typing.Annotated[(float, *rest)] if rest else float
    return Parameter(p.name, hint, p.default, per_task)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Annotated:
        return _type_name(typing.get_args(hint)[0])
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(_type_name(a) for a in typing.get_args(hint))
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))
