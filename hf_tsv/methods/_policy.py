"""What a method tells the rest of the package about itself, in a few groups. Most methods need none of them.

The code that plans, tunes, masks or restores reads these, and never compares a method's name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

from torch import Tensor

BaseRole = Literal["reference", "model", "either"]
Condition = Callable[[Mapping[str, Any]], bool]  # a test of a method's parameters
Side = Callable[[int, int, int], int]  # (m, n, T) -> side


def never(parameters: Mapping[str, Any]) -> bool:
    """Return False for any parameters."""
    return False


def shorter_side(m: int, n: int, num_tasks: int) -> int:
    """Return the side of an (m, n) matrix's smaller Gram matrix."""
    return min(m, n)


class Survey(Protocol):
    """Exact statistics over whole task vectors, gathered tensor by tensor before the merge.

    While `share` isn't 0, `observe` is called for every task and tensor, from several threads, with pieces of
    a tensor or, if `share` is below 1, about that share of its rows; then `advance` is called. The result
    must not depend on the order of the calls.

    Attributes:
        scope: `model` for one survey of all tensors that are merged alike, `tensor` for one survey per tensor.
        share: Share of every tensor that the next pass has to see; 0 when no more passes are needed.
    """

    @property
    def scope(self) -> Literal["model", "tensor"]: ...

    @property
    def share(self) -> float: ...

    def observe(self, task: int, delta: Tensor) -> None: ...

    def advance(self) -> None: ...


# Makes a survey, `(dtype, num_tasks, **parameters) -> Survey | None`. Its keywords name the method's parameters that
# the survey depends on. It returns None if these need no survey.
SurveyMaker = Callable[..., Survey | None]


@dataclass(frozen=True)
class Inputs:
    """A method's inputs, and their meaning.

    Attributes:
        min_tasks: Minimum number of fine-tuned models.
        max_tasks: Maximum number of fine-tuned models; None for any number.
        base: Role of the base model. `reference`: the model the others were fine-tuned from. `model`: one of the
            merged models if the recipe lists it, and nothing more. `either`: the reference, but if the recipe names
            no base, the first model takes its place and is one of the merged models.
        weights: Meaning of a recipe's `weight`: a factor on the task's change, or a share of an average.
        unchanged: True if the method also needs tensors that no task changed, because it depends on the weights and
            not only on the change.
        ignores_tasks: True if the result is the base's tensor whatever the tasks are, so they aren't even read.
    """

    min_tasks: int = 1
    max_tasks: int | None = None
    base: BaseRole = "reference"
    weights: Literal["factors", "shares"] = "factors"
    unchanged: bool = False
    ignores_tasks: bool = False


@dataclass(frozen=True)
class Matrices:
    """The way a method works on task matrices: stacked experts one by one, convolution kernels flattened.

    Attributes:
        side: Returns the side of the largest square matrix it factors, from m, n and T, to estimate memory and time.
        divides_rank: True if tasks share the rank of a matrix, each getting at least 1. The plan warns if there
            are more tasks than rank.
        as_paper: Returns True for parameters with which the authors' code decides what a matrix is (no convolution
            kernel, no `text_projection`) and `scale` applies to everything.
    """

    side: Side = shorter_side
    divides_rank: bool = False
    as_paper: Condition = never


@dataclass(frozen=True)
class TaskDelta:
    """One task's change of a tensor, or of a piece of it, for which a mask is built.

    Attributes:
        task: The task's index in the recipe.
        delta: theta_t - theta_0, of any shape. Must not be changed.
        weight: The task's factor w_t from the recipe.
        survey: The mask's finished survey of the whole task vectors.
    """

    task: int
    delta: Tensor
    weight: float = 1.0
    survey: Any = None

    @property
    def weighted(self) -> Tensor:
        """w_t (theta_t - theta_0), as it was merged. Must not be changed."""
        return self.delta if self.weight == 1 else self.delta * self.weight


class Rescaler(Protocol):
    """A running computation of the factor on one task's masked change, from all masked tensors."""

    def add(self, delta: Tensor, merged: Tensor, mask: Tensor) -> None:
        """Add a tensor, or a piece of one: the task's weighted change, the merged change, and the task's mask."""

    def __add__(self, other: Self) -> Self: ...

    @property
    def value(self) -> float: ...


@dataclass(frozen=True)
class Mask:
    """A mask of the merged model's weights that belong to a task: one bit per weight, written beside the model.

    A task's model is restored from the base, the merged model and the mask alone:
    theta_0 + factor_t * m_t * (theta_merged - theta_0).

    Attributes:
        build: `(task, merged, **parameters) -> mask`: a bool tensor, from a `TaskDelta` and the merged change of the
            same shape. Its keywords name the method's parameters it depends on; a per-task one is this task's value.
        survey: Makes a survey that only the masks need.
        rescaler: Makes a `Rescaler`, which finds factor_t; None for masks that rescale nothing.
        tuned: The per-task parameter that `hf-tsv tune` can choose. The merged model must not depend on it. Empty for
            none.
    """

    build: Callable[..., Tensor]
    survey: SurveyMaker | None = None
    rescaler: Callable[[], Rescaler] | None = None
    tuned: str = ""

    def __post_init__(self) -> None:
        if self.tuned and self.rescaler:
            raise ValueError("a mask that rescales can't be tuned: its factor would have to be found for each choice")


__all__ = [
    "BaseRole",
    "Condition",
    "Inputs",
    "Mask",
    "Matrices",
    "Rescaler",
    "Side",
    "Survey",
    "SurveyMaker",
    "TaskDelta",
    "never",
]
