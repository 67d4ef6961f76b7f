"""The plan of a merge, tensor by tensor. It is made from headers alone: no tensor data is read here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from huggingface_hub import split_state_dict_into_shards_factory

from hf_tsv.checkpoints.modules import Kind, MatrixView, group_of
from hf_tsv.checkpoints.protocol import AdapterCheckpoint, Checkpoint, Shard, TensorInfo
from hf_tsv.errors import PlanError
from hf_tsv.methods import METHODS
from hf_tsv.methods.base import base
from hf_tsv.recipe import Recipe
from hf_tsv.vocabulary.rows import Vocabulary

KEEP = base.name
ASKED_FOR = "the recipe says so"
ABSENT = "in no fine-tuned model"
DEFAULT_SHARD_SIZE = "5GB"
PIECE = 2**19  # entries per slice where each entry is merged by itself: few enough to stay near the processor
_RUN = 2**15  # entries in each run of rows of a sample


@dataclass(frozen=True)
class Step:
    """One output tensor.

    Attributes:
        info: The tensor's header in the base model.
        out: The tensor's header in the output. Only its dtype may differ from `info`.
        kind: The kind of tensor, such as embedding or head.
        method: The merge method, a key of METHODS; `base` copies the base's tensor.
        parameters: Keyword arguments for the method.
        weights: One factor per task.
        view: The tensor's division into task matrices; None when it isn't divided.
        base_weight: The base's own factor, where the base counts as one of the models.
        why: The reason why the base's weight is kept; empty when the tensor is merged.
    """

    info: TensorInfo
    out: TensorInfo
    kind: Kind
    method: str
    parameters: Mapping[str, Any]
    weights: tuple[float, ...]
    view: MatrixView | None
    base_weight: float = 0.0
    why: str = ""

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def is_merged(self) -> bool:
        return not METHODS[self.method].copies_base

    @property
    def is_masked(self) -> bool:
        """Whether each task keeps a mask of the tensor."""
        return METHODS[self.method].keeps == "mask"

    @property
    def is_in_adapters(self) -> bool:
        """Whether each task keeps its change of the tensor in an adapter."""
        return METHODS[self.method].keeps == "adapter"

    @property
    def slices(self) -> list[tuple[int, int] | None]:
        """The ranges of rows [first, past-the-last) that are merged one at a time; [None] for the whole tensor."""
        rows = self.info.shape[0] if self.info.shape else 1
        method = METHODS[self.method]
        if method.matrices and self.view and self.view.count > 1:
            at_once = 1  # stacked experts: each row is a task matrix of its own
        elif method.elementwise(self.parameters):
            at_once = max(1, PIECE * rows // max(1, self.info.numel))
        else:
            at_once = rows
        if at_once >= rows:
            return [None]
        return [(first, min(first + at_once, rows)) for first in range(0, rows, at_once)]

    def sample(self, share: float) -> list[tuple[int, int] | None]:
        """Return about `share` of the rows, in evenly spaced runs because tables are often sorted by frequency."""
        # A share of less than one run: the whole tensor is small enough to take.
        if self.info.numel * share < _RUN:
            return [None]
        rows = self.info.shape[0]
        run = max(1, rows * _RUN // self.info.numel)  # rows
        return [(first, first + run) for first in range(0, rows - run + 1, int(run / share))]


@dataclass(frozen=True)
class TaskPart:
    """A tensor that only one task's fine-tuned model has and that the merged model can't hold."""

    task: str
    info: TensorInfo


@dataclass(frozen=True)
class Plan:
    """The complete plan of a run.

    Attributes:
        tasks: Names of the fine-tuned models, in recipe order.
        finetuned: Checkpoints of the fine-tuned models, with the base's tensor names.
        steps: One step per output tensor, in the base's order.
        parts: The tensors that belong to single tasks.
        shards: The output's files.
        warnings: Messages for the user before the run starts.
        vocabulary: The vocabulary by which the checkpoints' rows were matched; None if the models' vocabularies don't
            differ.
    """

    recipe: Recipe
    tasks: tuple[str, ...]
    base: Checkpoint
    finetuned: tuple[Checkpoint, ...]
    steps: tuple[Step, ...]
    parts: tuple[TaskPart, ...]
    shards: tuple[Shard, ...]
    warnings: tuple[str, ...]
    vocabulary: Vocabulary | None = None

    @property
    def merged(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.is_merged)

    @property
    def makes_one_adapter(self) -> bool:
        """Whether the output is one adapter on the base, which holds the merge's changes."""
        return self.recipe.output is not None

    @cached_property
    def makes_task_adapters(self) -> bool:
        """Whether the output is one adapter per task on the base: every merged tensor is kept in adapters."""
        if self.makes_one_adapter or not self.merged:
            return False
        return all(step.is_in_adapters for step in self.merged)

    @property
    def puts_adapters_on_base(self) -> bool:
        return self.makes_one_adapter or self.makes_task_adapters

    @property
    def makes_model(self) -> bool:
        """Whether the output is a model of its own."""
        return not self.puts_adapters_on_base

    @cached_property
    def adapters(self) -> tuple[AdapterCheckpoint | None, ...]:
        """Each task's checkpoint if it is an adapter; None if it is a whole model."""
        return tuple(c if isinstance(c, AdapterCheckpoint) else None for c in self.finetuned)

    @cached_property
    def bytes_in(self) -> int:
        """The number of bytes that are read at least once."""
        total = sum(step.info.nbytes for step in self.steps) + sum(part.info.nbytes for part in self.parts)
        for checkpoint in self.finetuned:
            for step in self.merged:
                if isinstance(checkpoint, AdapterCheckpoint):
                    total += checkpoint.nbytes(step.name)  # the adapter's factors, not the tensor that they change
                else:
                    total += checkpoint.info(step.name).nbytes
        return total

    @property
    def bytes_out(self) -> int:
        return sum(shard.nbytes for shard in self.shards) + sum(part.info.nbytes for part in self.parts)

    def groups(self) -> list["Group"]:
        """Group the steps by module type, shape, method and parameters, for a summary."""
        alike: dict[tuple[Any, ...], list[Step]] = {}
        for step in self.steps:
            # Parameters are compared by their text because lists can't be keys.
            key = (group_of(step.name), step.info.shape, step.method, repr(step.parameters), step.why)
            alike.setdefault(key, []).append(step)
        return [Group(key[0], tuple(steps)) for key, steps in alike.items()]


@dataclass(frozen=True)
class Group:
    """Steps of one module type that are treated alike."""

    name: str
    steps: tuple[Step, ...]


def check_on_base(plan: Plan, what: str) -> None:
    """Check that a plan's output can be put on the base itself, row by row.

    Raises:
        PlanError: the plan merges in another vocabulary than the base's.
    """
    if plan.vocabulary and not plan.vocabulary.is_bases:
        raise PlanError(
            f"{plan.recipe.source}: {what} the base model's rows, so the output needs the same rows. Write"
            " tokenizer_source: base, without pad_to_multiple_of"
        )


def leaves_masks(plan: Plan) -> bool:
    """Return whether tasks have masks beside the merged model."""
    return any(step.is_masked for step in plan.merged)


def leaves_residuals(plan: Plan) -> bool:
    """Return whether tasks keep something of their own in adapters on the merged model."""
    return plan.recipe.residuals is not None or any(step.is_in_adapters for step in plan.merged)


def plan_shards(tensors: Sequence[TensorInfo], max_shard_size: int | str, stem: str = "model") -> tuple[Shard, ...]:
    """Distribute tensors over files as huggingface_hub does, in the given order."""
    by_name = {info.name: info for info in tensors}
    split = split_state_dict_into_shards_factory(
        by_name,
        get_storage_size=lambda info: info.nbytes,
        filename_pattern=stem + "{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    shards = []
    for file, names in split.filename_to_tensors.items():
        infos = tuple(by_name[name] for name in names)
        shards.append(Shard(file, infos))
    return tuple(shards)
