"""What a merge will do, tensor by tensor, decided from headers alone: no tensor data is read here."""

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
PIECE = 2**19  # entries merged at a time where each is merged by itself: few enough to stay near the processor
_RUN = 2**15  # entries that a sample takes side by side


@dataclass(frozen=True)
class Step:
    """One output tensor.

    Attributes:
        info: Its header in the base model.
        out: Its header in the output: the same but for the dtype.
        kind: What it is.
        method: The merge method, a key of METHODS; `base` copies.
        parameters: Keywords for the method.
        weights: One factor a task.
        view: How it is cut into task matrices; None when it isn't.
        base_weight: The base's own factor, where it counts as one of the models.
        why: Why the base's weight is kept; empty when it is merged.
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
        """Whether each task keeps a mask of it."""
        return METHODS[self.method].keeps == "mask"

    @property
    def is_in_adapters(self) -> bool:
        """Whether each task keeps its change of it in an adapter."""
        return METHODS[self.method].keeps == "adapter"

    @property
    def slices(self) -> list[tuple[int, int] | None]:
        """The rows [first, past-the-last) that are merged at a time; [None] when all of the tensor is."""
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
        """About that share of the rows, in evenly spaced runs: tables often are sorted by frequency."""
        if self.info.numel * share < _RUN:
            return [None]
        rows = self.info.shape[0]
        run = max(1, rows * _RUN // self.info.numel)  # rows
        return [(first, first + run) for first in range(0, rows - run + 1, int(run / share))]


@dataclass(frozen=True)
class TaskPart:
    """A tensor that belongs to one task alone: its fine-tuned model has it and the merged model can't hold it."""

    task: str
    info: TensorInfo


@dataclass(frozen=True)
class Plan:
    """Everything a run needs to know.

    Attributes:
        tasks: Names of the fine-tuned models, in recipe order.
        finetuned: Their checkpoints, under the base's names.
        steps: One an output tensor, in the base's order.
        parts: What belongs to single tasks.
        shards: The output's files.
        warnings: What a person should know before it starts.
        vocabulary: What the checkpoints' rows were matched by, where the models' vocabularies differ.
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
        """Whether the output is one adapter on the base, which holds what the merge changes."""
        return self.recipe.output is not None

    @cached_property
    def makes_task_adapters(self) -> bool:
        """Whether the output is an adapter of every task on the base: no tensor is shared that isn't the base's."""
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
        """Each task's checkpoint where it is an adapter; None where it is a whole model."""
        return tuple(c if isinstance(c, AdapterCheckpoint) else None for c in self.finetuned)

    @cached_property
    def bytes_in(self) -> int:
        """Bytes read at least once."""
        total = sum(step.info.nbytes for step in self.steps) + sum(part.info.nbytes for part in self.parts)
        for checkpoint in self.finetuned:
            for step in self.merged:
                if isinstance(checkpoint, AdapterCheckpoint):
                    total += checkpoint.nbytes(step.name)  # its factors, not the tensor that they change
                else:
                    total += checkpoint.info(step.name).nbytes
        return total

    @property
    def bytes_out(self) -> int:
        return sum(shard.nbytes for shard in self.shards) + sum(part.info.nbytes for part in self.parts)

    def groups(self) -> list["Group"]:
        """The steps by module type, method and parameters, for a summary."""
        alike: dict[tuple[Any, ...], list[Step]] = {}
        for step in self.steps:
            # Parameters by their text: they may be lists, which are no keys.
            key = (group_of(step.name), step.info.shape, step.method, repr(step.parameters), step.why)
            alike.setdefault(key, []).append(step)
        return [Group(key[0], tuple(steps)) for key, steps in alike.items()]


@dataclass(frozen=True)
class Group:
    """Steps of one module type that are treated alike."""

    name: str
    steps: tuple[Step, ...]


def check_on_base(plan: Plan, what: str) -> None:
    """Whether what is made of a plan can be put on the base itself, row by row.

    Raises:
        PlanError: it merges in another vocabulary than the base's.
    """
    if plan.vocabulary and not plan.vocabulary.is_bases:
        raise PlanError(
            f"{plan.recipe.source}: {what} the base model's rows, so the output needs the same rows. Write"
            " tokenizer_source: base, without pad_to_multiple_of"
        )


def leaves_masks(plan: Plan) -> bool:
    """Whether tasks have masks beside the merged model."""
    return any(step.is_masked for step in plan.merged)


def leaves_residuals(plan: Plan) -> bool:
    """Whether tasks keep something of their own in adapters on the merged model."""
    return plan.recipe.residuals is not None or any(step.is_in_adapters for step in plan.merged)


def plan_shards(tensors: Sequence[TensorInfo], max_shard_size: int | str, stem: str = "model") -> tuple[Shard, ...]:
    """Distribute tensors over files as huggingface_hub does, in their order."""
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
