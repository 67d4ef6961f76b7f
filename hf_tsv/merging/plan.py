"""What a merge will do, tensor by tensor, decided from headers alone: no tensor data is read here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from hf_tsv.checkpoints.modules import Depths, Kind, MatrixView, group_of, kind_of, matrix_view, paper_matrix_view
from hf_tsv.checkpoints.protocol import AdapterCheckpoint, Checkpoint, Shard, TensorInfo
from hf_tsv.errors import MethodError, PlanError, some
from hf_tsv.methods import METHODS, Deltas
from hf_tsv.methods.base import base
from hf_tsv.recipe import Recipe, Rule
from hf_tsv.vocabulary.rows import Vocabulary

STORED = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
KEEP = base.name
ASKED_FOR = "the recipe says so"
DEFAULT_SHARD_SIZE = "5GB"
PIECE = 2**19  # entries merged at a time where each is merged by itself: few enough to stay near the processor
_RUN = 2**15  # entries that a sample takes side by side
TOUCHED = 300.0  # operations of a matrix product, in the time that an entry of a tensor is read, widened and added


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
        view: How it is cut into task matrices, None when it is none.
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
            at_once = 1
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
        run = max(1, rows * _RUN // self.info.numel)
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

    @cached_property
    def adapters(self) -> tuple[AdapterCheckpoint | None, ...]:
        """Each task's checkpoint where it is an adapter; None where it is a whole model."""
        return tuple(c if isinstance(c, AdapterCheckpoint) else None for c in self.finetuned)

    @cached_property
    def bytes_in(self) -> int:
        """Bytes read at least once."""
        own = sum(step.info.nbytes for step in self.steps)
        theirs = sum(_bytes_in(c, step.name) for step in self.merged for c in self.finetuned)
        return own + theirs + sum(part.info.nbytes for part in self.parts)

    @property
    def bytes_out(self) -> int:
        return sum(shard.nbytes for shard in self.shards) + sum(part.info.nbytes for part in self.parts)

    def working_bytes(self, step: Step) -> int:
        """Memory one step takes at most, estimated from shapes."""
        item = 8 if self.recipe.dtype == "float64" else 4
        stored = step.info.nbytes + step.out.nbytes
        if not step.is_merged:
            return stored
        stored += max(c.info(step.name).nbytes for c in self.finetuned)
        view = step.view if METHODS[step.method].matrices else None
        if view is None:
            return 2 * (stored // len(step.slices)) + step.out.nbytes + 9 * step.info.numel * item // len(step.slices)
        short, side = min(view.m, view.n), self._side(step, view)
        matrices = 3 * view.m * view.n * item + 3 * short * (view.m + view.n) * item + 4 * side * side * 8
        return stored + step.info.numel * item + matrices

    def work(self, step: Step) -> float:
        """A step's share of the whole work, in floating-point operations of a matrix product, the quickest ones."""
        touched = TOUCHED * step.info.numel * (len(self.tasks) + 1)
        view = step.view
        if view is None or not step.is_merged or not METHODS[step.method].matrices:
            return touched
        short, long = sorted((view.m, view.n))
        one_svd = 2.0 * short**2 * long + 9.0 * self._side(step, view) ** 3
        dense = self.adapters.count(None)
        return touched + view.count * (dense + 2 * bool(dense)) * one_svd

    def _side(self, step: Step, view: MatrixView) -> int:
        """The side of the largest square matrix that a step factors."""
        matrices = METHODS[step.method].matrices
        return matrices.side(view.m, view.n, len(self.tasks)) if matrices else 0

    def groups(self) -> list["Group"]:
        """The steps by module type, method and parameters, for a summary."""
        found: dict[tuple[Any, ...], list[Step]] = {}
        for step in self.steps:
            key = (group_of(step.name), step.info.shape, step.method, repr(step.parameters), step.why)
            found.setdefault(key, []).append(step)
        return [Group(key[0], tuple(steps)) for key, steps in found.items()]


@dataclass(frozen=True)
class Group:
    """Steps of one module type that are treated alike."""

    name: str
    steps: tuple[Step, ...]


def make_plan(
    recipe: Recipe,
    base: Checkpoint,
    finetuned: Sequence[Checkpoint],
    *,
    max_shard_size: int | str = DEFAULT_SHARD_SIZE,
    vocabulary: Vocabulary | None = None,
    clashes: Mapping[str, str] | None = None,
) -> Plan:
    """Decide every output tensor of a recipe.

    Args:
        recipe: What to do.
        base: The base model's checkpoint.
        finetuned: The fine-tuned models' checkpoints, one a task in recipe order, under the base's names.
        max_shard_size: Largest output file, in bytes or as `5GB`.
        vocabulary: What the checkpoints' rows were matched by, if they were.
        clashes: Why tensors can't be merged before their rows are matched, by name.

    Raises:
        PlanError: recipe and checkpoints don't fit together; every mistake is told.
    """
    planner = _Planner(recipe, base, finetuned, clashes or {})
    steps = [planner.step(name) for name in base.names()]
    problems = [
        *planner.misfits(),
        *planner.problems,
        *planner.wrong_layers(),
        *recipe.unmatched_filters(planner.kinds.items()),
    ]
    if not problems and not any(step.is_merged or step.why == ASKED_FOR for step in steps):
        problems.append(planner.nothing_merges())
    problems += [*_kept_in_two_ways(recipe), *_kept_on_another_base(recipe, vocabulary)]
    if problems:
        raise PlanError(problems)
    return Plan(
        recipe=recipe,
        tasks=planner.tasks,
        base=base,
        finetuned=tuple(finetuned),
        steps=tuple(steps),
        parts=tuple(planner.parts(steps)),
        shards=plan_shards([step.out for step in steps], max_shard_size),
        warnings=(*recipe.notes, *(vocabulary.notes if vocabulary else ()), *planner.warnings(steps)),
        vocabulary=vocabulary,
    )


def check_on_base(plan: Plan, what: str) -> None:
    """Whether what is made of a plan can be put on the base itself, row by row.

    Raises:
        PlanError: it merges in another vocabulary than the base's.
    """
    if plan.vocabulary and not plan.vocabulary.is_bases:
        raise PlanError(
            f"{plan.recipe.source}: {what} the base model's rows, expected these to be the output's. Write"
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
    split = split_state_dict_into_shards_factory(
        {info.name: info for info in tensors},
        get_storage_size=lambda info: info.nbytes,
        filename_pattern=stem + "{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    by_name = {info.name: info for info in tensors}
    return tuple(
        Shard(file, tuple(by_name[name] for name in names)) for file, names in split.filename_to_tensors.items()
    )


FEW = 8  # problems of a model that are told one by one however few tensors it has


class _Planner:
    """Collects what is wrong on the way, so that all of it is told at once."""

    def __init__(
        self, recipe: Recipe, base: Checkpoint, finetuned: Sequence[Checkpoint], clashes: Mapping[str, str]
    ) -> None:
        self.recipe = recipe
        self.base = base
        self.tasks = tuple(model.name for model in recipe.models)
        self.finetuned = tuple(finetuned)
        self.problems: list[str] = []
        self._misfits: dict[str, list[str]] = {task: [] for task in self.tasks}
        self.kinds: dict[str, Kind] = {}
        self._clashes = clashes
        self._checked: set[object] = set()
        self._depth = Depths(base.names())
        self._held = [frozenset(checkpoint.names()) for checkpoint in finetuned]

    def step(self, name: str) -> Step:
        info = self.base.info(name)
        kind = self.kinds[name] = kind_of(info)
        out = replace(info, dtype=STORED[self.recipe.out_dtype]) if self.recipe.out_dtype and info.is_float else info
        if why := self._why_kept(info):
            return Step(info, out, kind, KEEP, {}, (), None, why=why)
        rule = self.recipe.rule_at(name, kind, self._depth(name))
        if METHODS[rule.method].copies_base:
            return Step(info, out, kind, KEEP, {}, (), None, why=ASKED_FOR)
        if name not in self._clashes:
            self._check_fit(info)
        method, parameters = METHODS[rule.method], dict(rule.parameters)
        may_change = any(_may_change(checkpoint, name) for checkpoint in self.finetuned)
        if not (method.inputs.unchanged or method.is_surveyed or may_change):
            return Step(info, out, kind, KEEP, {}, (), None, why="no adapter changes it")
        self._tell_clash(name)
        if method.max_tasks is not None and len(self.tasks) > method.max_tasks:
            self.problems.append(
                f"{name}: {method.name} takes at most {method.max_tasks} models, got {len(self.tasks)}"
            )
        self._check_rule(rule)
        view = _view(info, kind, rule)
        return Step(info, out, kind, method.name, parameters, rule.weights, view, rule.base_weight)

    def _tell_clash(self, name: str) -> None:
        """Once for all tensors that it is one of."""
        clash = self._clashes.get(name)
        if clash and not any(problem.endswith(clash) for problem in self.problems):
            self.problems.append(f"{name}: {clash}")

    def wrong_layers(self) -> list[str]:
        return self.recipe.wrong_layers(self._depth.layers)

    def _check_rule(self, rule: Rule) -> None:
        key = (rule.method, repr(rule.parameters), rule.weights, rule.base_weight)
        if key in self._checked:
            return
        self._checked.add(key)
        try:
            _merge_nothing(rule)
        except MethodError as error:
            problem = f"{self.recipe.where(rule.line)}: {rule.method}: {error}"
            if problem not in self.problems:
                self.problems.append(problem)

    def _why_kept(self, info: TensorInfo) -> str:
        if not info.is_float:
            return f"{info.dtype} is not merged"
        return "" if any(info.name in held for held in self._held) else "in no fine-tuned model"

    def _check_fit(self, info: TensorInfo) -> None:
        """Note what keeps a tensor from being merged, of the first task at fault."""
        for task, checkpoint, held in zip(self.tasks, self.finetuned, self._held, strict=True):
            if problem := _misfit(info, task, checkpoint, held):
                self._misfits[task].append(problem)
                return

    def misfits(self) -> Iterable[str]:
        """What doesn't fit; of a task that fits hardly anywhere one line."""
        for task, problems in self._misfits.items():
            if len(problems) > max(FEW, len(self.kinds) // 2):
                label = self.finetuned[self.tasks.index(task)].label
                yield (
                    f"'{task}': {label} doesn't fit {len(problems)} of the {len(self.kinds)} tensors of"
                    f" {self.base.label}, expected a fine-tune of it. Check the model's name. The first: {problems[0]}"
                )
            else:
                yield from problems

    def nothing_merges(self) -> str:
        ours = next(iter(self.base.names()), "nothing")
        theirs = next((name for checkpoint in self.finetuned for name in checkpoint.names()), "nothing")
        return (
            f"{self.base.label}: nothing in it would be merged. Its tensors are named like {ours}, the fine-tuned"
            f" models' like {theirs}. Are these fine-tunes of this base?"
        )

    def parts(self, steps: Iterable[Step]) -> Iterable[TaskPart]:
        """What only some fine-tuned models have, or have in another shape where the recipe keeps the base's."""
        shapes = {step.name: step.info.shape for step in steps}
        for task, checkpoint in zip(self.tasks, self.finetuned, strict=True):
            for name in checkpoint.names():
                info = checkpoint.info(name)
                if shapes.get(name) != info.shape and info.numel:
                    yield TaskPart(task, info)

    def warnings(self, steps: Sequence[Step]) -> Iterable[str]:
        for task, checkpoint in zip(self.tasks, self.finetuned, strict=True):
            if isinstance(checkpoint, AdapterCheckpoint):
                yield from (f"'{task}': {note}" for note in checkpoint.notes)
        absent = [step.name for step in steps if step.why == "in no fine-tuned model"]
        if absent:
            yield f"in no fine-tuned model, so they stay as the base has them: {some(absent)}"
        embeddings = {step.info.shape: step.name for step in steps if step.kind == "embedding"}
        for part in self.parts(steps):
            if kind_of(part.info) == "head" and (tied := embeddings.get(part.info.shape)):
                yield (
                    f"{part.info.name}: '{part.task}' has a head of its own, where the base's is {tied}: so is the"
                    " merged model's"
                )
        small = [step.name for step in steps if _is_shared_out(step, len(self.tasks))]
        if small:
            yield (f"each task keeps rank 1 of what has fewer rows or columns than there are tasks: {some(small)}")


def _kept_in_two_ways(recipe: Recipe) -> list[str]:
    """A task is restored from masks of one method, or from an adapter."""
    masked, in_adapters = _keeping(recipe, "mask"), _keeping(recipe, "adapter")
    ways = [*masked, *in_adapters]
    if len(ways) < 2 or not masked:  # one adapter holds what several methods and the residuals put into it
        return []
    return [f"{recipe.source}: {' and '.join(ways)} both keep what is a task's own. Use one of them in a recipe"]


def _kept_on_another_base(recipe: Recipe, vocabulary: Vocabulary | None) -> list[str]:
    """What a task keeps beside the merged model is restored on the base, row by row."""
    ways = [*_keeping(recipe, "mask"), *_keeping(recipe, "adapter")]
    if not ways or vocabulary is None or vocabulary.is_bases:
        return []
    return [
        f"{recipe.source}: {' and '.join(ways)} keep what is a task's own by the base's rows, expected these in the"
        " output. Write tokenizer_source: base, without pad_to_multiple_of"
    ]


def _keeping(recipe: Recipe, what: Literal["adapter", "mask"]) -> list[str]:
    """What of a recipe keeps masks, or adapters, for its tasks."""
    ways = [name for name in sorted(recipe.methods) if METHODS[name].keeps == what]
    if what == "adapter" and recipe.residuals is not None:
        ways.append("residuals")
    return ways


def _merge_nothing(rule: Rule) -> None:
    """Whatever a method has against parameters or weights it says where nothing is changed, too."""
    deltas = Deltas.of(torch.zeros(len(rule.weights), 1), weights=rule.weights)
    deltas.base_weight = rule.base_weight
    METHODS[rule.method](deltas, **rule.parameters)


def _view(info: TensorInfo, kind: Kind, rule: Rule) -> MatrixView | None:
    as_paper = METHODS[rule.method].is_as_paper(rule.parameters)
    return paper_matrix_view(info) if as_paper else matrix_view(info, kind)


def _is_shared_out(step: Step, num_tasks: int) -> bool:
    matrices, view = METHODS[step.method].matrices, step.view
    if matrices is None or view is None:
        return False
    return matrices.divides_rank and min(view.m, view.n) < num_tasks


def _may_change(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a fine-tuned model may have another tensor than the base, as far as its header says."""
    return not isinstance(checkpoint, AdapterCheckpoint) or checkpoint.is_changed(name)


def _bytes_in(checkpoint: Checkpoint, name: str) -> int:
    """What is read of a fine-tuned model to know one tensor's change."""
    return checkpoint.nbytes(name) if isinstance(checkpoint, AdapterCheckpoint) else checkpoint.info(name).nbytes


def _misfit(info: TensorInfo, task: str, checkpoint: Checkpoint, held: frozenset[str]) -> str:
    """What keeps a task's tensor from being merged with the base's, empty when nothing does."""
    if info.name not in held:
        return (
            f"{info.name}: '{task}' doesn't have it, but others do. Keep the base's weight by an override"
            f" with merge_method: base, or leave '{task}' out"
        )
    theirs = checkpoint.info(info.name)
    if theirs.shape != info.shape:
        return _shape_conflict(info, theirs, task)
    return (
        ""
        if theirs.is_float
        else f"{info.name}: '{task}' stores it as {theirs.dtype}, expected a float. Is it quantized?"
    )


def _shape_conflict(info: TensorInfo, theirs: TensorInfo, task: str) -> str:
    way_out = "Override it with merge_method: base"
    if len(info.shape) == len(theirs.shape) == 2 and info.shape[1:] == theirs.shape[1:]:
        return (
            f"{info.name}: '{task}' has {theirs.shape[0]} rows, the base has {info.shape[0]}. {way_out};"
            f" '{task}' keeps its own as a task part."
        )
    return (
        f"{info.name}: '{task}' has shape {theirs.shape}, expected the base's {info.shape}. {way_out};"
        f" '{task}' keeps its own as a task part."
    )
