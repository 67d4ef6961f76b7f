"""From a recipe and headers to a plan: every output tensor decided, every mistake told. No tensor data is read here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch

from hf_tsv.checkpoints.dtypes import BY_WORD
from hf_tsv.checkpoints.modules import Depths, Kind, MatrixView, kind_of, matrix_view, paper_matrix_view
from hf_tsv.checkpoints.protocol import AdapterCheckpoint, Checkpoint, TensorInfo
from hf_tsv.errors import MethodError, PlanError, some
from hf_tsv.merging.plan import (
    ASKED_FOR,
    DEFAULT_SHARD_SIZE,
    KEEP,
    Plan,
    Step,
    TaskPart,
    plan_shards,
)
from hf_tsv.methods import METHODS, Deltas
from hf_tsv.recipe import Recipe, Rule
from hf_tsv.vocabulary.rows import Vocabulary


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
    plan = Plan(
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
    if plan.makes_model:
        return plan
    # Adapters on the base need no copy of it.
    return replace(plan, shards=(), warnings=(*plan.warnings, *_without_effect(plan)))


def _without_effect(plan: Plan) -> list[str]:
    """What a recipe says of a model's files, where its output is adapters."""
    recipe = plan.recipe
    warnings = []
    if recipe.out_dtype and recipe.out_dtype != "float32":
        warnings.append(
            f"out_dtype: {recipe.out_dtype} has no effect, since no model is written. The factors' dtype is"
            " adapters: {factor_dtype: ...}"
        )
    if recipe.chat_template is not None:
        warnings.append("chat_template has no effect, since no model is written")
    if plan.makes_one_adapter and plan.parts:
        own = some([f"{part.info.name} of '{part.task}'" for part in plan.parts])
        warnings.append(f"an adapter of the merge can't hold what single tasks have alone, so it is left out: {own}")
    return warnings


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
        # The change that goes into an adapter must not be rounded to the base's dtype first.
        self._out_dtype = "float32" if recipe.output is not None else recipe.out_dtype

    def step(self, name: str) -> Step:
        info = self.base.info(name)
        kind = self.kinds[name] = kind_of(info)
        out = replace(info, dtype=BY_WORD[self._out_dtype].name) if self._out_dtype and info.is_float else info
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
        if method.inputs.max_tasks is not None and len(self.tasks) > method.inputs.max_tasks:
            self.problems.append(
                f"{name}: {method.name} takes at most {method.inputs.max_tasks} models, got {len(self.tasks)}"
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
                    f"'{task}': {label} is not a fine-tune of {self.base.label}: {len(problems)} of"
                    f" {len(self.kinds)} tensors don't fit. Check the model's name. The first: {problems[0]}"
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
    masked = _keeping(recipe, "mask")
    ways = [*masked, *_keeping(recipe, "adapter")]
    # One adapter holds what several methods and the residuals put into it.
    if len(ways) < 2 or not masked:
        return []
    return [f"{recipe.source}: {' and '.join(ways)} both keep what is a task's own. Use one of them in a recipe"]


def _kept_on_another_base(recipe: Recipe, vocabulary: Vocabulary | None) -> list[str]:
    """What a task keeps beside the merged model is restored on the base, row by row."""
    ways = [*_keeping(recipe, "mask"), *_keeping(recipe, "adapter")]
    if not ways or vocabulary is None or vocabulary.is_bases:
        return []
    return [
        f"{recipe.source}: {' and '.join(ways)} keep what is a task's own row by row of the base, so the output needs"
        " the base's rows. Write tokenizer_source: base, without pad_to_multiple_of"
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
