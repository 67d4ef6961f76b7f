"""What a method tells the rest of the package about itself, in a few groups. Most methods need none of them.

Whoever plans, tunes, masks or restores asks these, and never a method's name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

from torch import Tensor

BaseRole = Literal["reference", "model", "either"]
Condition = Callable[[Mapping[str, Any]], bool]  # of a method's parameters
Side = Callable[[int, int, int], int]  # from m, n and T


def never(parameters: Mapping[str, Any]) -> bool:
    """Whatever the parameters, no."""
    return False


def shorter_side(m: int, n: int, num_tasks: int) -> int:
    """The side of an (m, n) matrix's Gram matrix."""
    return min(m, n)


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


# Makes a survey, `(dtype, num_tasks, **parameters) -> Survey | None`: its keywords name the method's parameters that it
# depends on, and it yields None where these need no survey.
SurveyMaker = Callable[..., Survey | None]


@dataclass(frozen=True)
class Inputs:
    """What a method is given, and what that means to it.

    Attributes:
        min_tasks: Fewest fine-tuned models it takes.
        max_tasks: Most fine-tuned models it takes, None for any number.
        base: What the base model is to it. `reference`: what the others were fine-tuned from. `model`: one of the
            models it merges where the recipe lists it, and no more than that. `either`: the reference, but where
            the recipe names none the first model stands in as one of those it merges.
        weights: What a recipe's `weight` is to it: a factor on the task's change, or a share of an average.
        unchanged: Whether it has to see tensors that no task changed, too, because it depends on the weights and not
            only on the change.
        ignores_tasks: Whether the base's tensor is the result whatever the tasks are, so that they aren't even read.
    """

    min_tasks: int = 1
    max_tasks: int | None = None
    base: BaseRole = "reference"
    weights: Literal["factors", "shares"] = "factors"
    unchanged: bool = False
    ignores_tasks: bool = False


@dataclass(frozen=True)
class Matrices:
    """How a method works on task matrices: stacked experts come one by one, convolution kernels flattened.

    Attributes:
        side: The side of the largest square matrix that it factors, from m, n and T, for estimates of memory and time.
        divides_rank: Whether tasks share the rank of a matrix, each getting 1 at least. The plan warns where there
            are more tasks than that.
        as_paper: Whether, with these parameters, the authors' code is followed in what a matrix is (no convolution
            kernel, no `text_projection`) and `scale` is on everything.
    """

    side: Side = shorter_side
    divides_rank: bool = False
    as_paper: Condition = never


@dataclass(frozen=True)
class TaskDelta:
    """One task's change of a tensor, or of a piece of it, for which a mask is built.

    Attributes:
        task: The task's place in the recipe.
        delta: theta_t - theta_0, of any shape. Not to be changed.
        weight: The factor w_t that the recipe puts on it.
        survey: What the mask's survey found over the whole task vectors.
    """

    task: int
    delta: Tensor
    weight: float = 1.0
    survey: Any = None

    @property
    def weighted(self) -> Tensor:
        """w_t (theta_t - theta_0), as it went into the merge. Not to be changed."""
        return self.delta if self.weight == 1 else self.delta * self.weight


class Rescaler(Protocol):
    """Finds the factor on one task's masked change, from all tensors that are masked."""

    def add(self, delta: Tensor, merged: Tensor, mask: Tensor) -> None:
        """Count a tensor, or a piece: the task's weighted change, the merged change, and the task's mask."""

    def __add__(self, other: Self) -> Self: ...

    @property
    def value(self) -> float: ...


@dataclass(frozen=True)
class Mask:
    """Which of the merged model's weights are a task's own: one bit each, written beside the model.

    A task's model is restored from the base, the merged model and the mask alone:
    theta_0 + factor_t * m_t * (theta_merged - theta_0).

    Attributes:
        build: `(task, merged, **parameters) -> mask`, from a `TaskDelta` and the merged change a bool tensor of their
            shape. Its keywords name the method's parameters that it depends on; a per-task one comes as this task's.
        survey: Makes statistics that only the masks need.
        rescaler: Makes what finds factor_t; None for masks that rescale nothing.
        tuned: The per-task parameter that `hf-tsv tune` can choose. What is merged must not depend on it. Empty for
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
