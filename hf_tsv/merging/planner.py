"""The planner: decides every output tensor from a recipe and headers, reports all mistakes, reads no tensor data."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import torch

from hf_tsv.checkpoints.dtypes import BY_WORD
from hf_tsv.checkpoints.modules import Depths, Kind, kind_of, matrix_view, paper_matrix_view
from hf_tsv.checkpoints.protocol import AdapterCheckpoint, Checkpoint, TensorInfo
from hf_tsv.errors import MethodError, PlanError, some
from hf_tsv.merging.plan import (
    ABSENT,
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
        recipe: The recipe to plan.
        base: The base model's checkpoint.
        finetuned: The fine-tuned models' checkpoints, one per task in recipe order, with the base's tensor names.
        max_shard_size: Largest size of an output file, in bytes or as `5GB`.
        vocabulary: The vocabulary by which the checkpoints' rows were matched; None if they weren't.
        clashes: Reasons why tensors can't be merged before their rows are matched, by tensor name.

    Raises:
        PlanError: recipe and checkpoints don't fit together; reports every mistake.
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
    problems += _kept_wrongly(recipe, vocabulary)
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
    # Adapters on the base need no copy of the base.
    return replace(plan, shards=(), warnings=(*plan.warnings, *_without_effect(plan)))


def _without_effect(plan: Plan) -> list[str]:
    """Return warnings about settings for a model's files, which have no effect because the output is adapters."""
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


MAX_LISTED_MISFITS = 8  # problems of a model that are reported one by one, however few tensors it has


class _Planner:
    """Makes the steps and collects all problems, so that they are reported at once."""

    def __init__(
        self, recipe: Recipe, base: Checkpoint, finetuned: Sequence[Checkpoint], row_conflicts: Mapping[str, str]
    ) -> None:
        self.recipe = recipe
        self.base = base
        self.tasks = tuple(model.name for model in recipe.models)
        self.finetuned = tuple(finetuned)
        self.problems: list[str] = []
        self._misfits: dict[str, list[str]] = {task: [] for task in self.tasks}
        self.kinds: dict[str, Kind] = {}
        self._row_conflicts = row_conflicts
        self._reported_conflicts: set[str] = set()
        self._checked: set[object] = set()
        self._depth = Depths(base.names())
        self._names_of_tasks = [frozenset(checkpoint.names()) for checkpoint in finetuned]
        # The change that goes into an adapter must not be rounded to the base's dtype first.
        self._out_dtype = "float32" if recipe.output is not None else recipe.out_dtype

    def step(self, name: str) -> Step:
        """Plan one tensor, and collect its problems."""
        info = self.base.info(name)
        kind = kind_of(info)
        self.kinds[name] = kind
        out = info
        if self._out_dtype and info.is_float:
            out = replace(info, dtype=BY_WORD[self._out_dtype].name)

        def keep(why: str) -> Step:
            return Step(info, out, kind, method=KEEP, parameters={}, weights=(), view=None, why=why)

        if not info.is_float:
            return keep(f"{info.dtype} is not merged")
        if not any(name in names for names in self._names_of_tasks):
            return keep(ABSENT)
        rule = self.recipe.rule_at(name, kind, self._depth(name))
        method = METHODS[rule.method]
        if method.copies_base:
            return keep(ASKED_FOR)
        if name not in self._row_conflicts:
            self._note_misfit(info)
        # An adapter's changed tensors are known without reading weights; a whole model's are not.
        may_change = any(not isinstance(c, AdapterCheckpoint) or c.is_changed(name) for c in self.finetuned)
        if not (method.inputs.unchanged or method.is_surveyed or may_change):
            return keep("no adapter changes it")
        self._note_row_conflict(name)
        if method.inputs.max_tasks is not None and len(self.tasks) > method.inputs.max_tasks:
            self.problems.append(
                f"{name}: {method.name} takes at most {method.inputs.max_tasks} models, got {len(self.tasks)}"
            )
        self._check_rule(rule)
        view = paper_matrix_view(info) if method.is_as_paper(rule.parameters) else matrix_view(info, kind)
        return Step(
            info,
            out,
            kind,
            method=method.name,
            parameters=dict(rule.parameters),
            weights=rule.weights,
            view=view,
            base_weight=rule.base_weight,
        )

    def _note_misfit(self, info: TensorInfo) -> None:
        """Note the first task whose tensor doesn't fit the base's: one misfit per tensor is enough."""
        for task, checkpoint, names in zip(self.tasks, self.finetuned, self._names_of_tasks, strict=True):
            misfit = _misfit(info, task, checkpoint, names)
            if misfit:
                self._misfits[task].append(misfit)
                return

    def _note_row_conflict(self, name: str) -> None:
        """Report each reason why rows don't match once, with the first tensor, however many tensors share it."""
        conflict = self._row_conflicts.get(name)
        if conflict and conflict not in self._reported_conflicts:
            self._reported_conflicts.add(conflict)
            self.problems.append(f"{name}: {conflict}")

    def wrong_layers(self) -> list[str]:
        return self.recipe.wrong_layers(self._depth.layers)

    def _check_rule(self, rule: Rule) -> None:
        """Try each rule's method once, on zeros: it rejects the same parameters and weights as on real deltas."""
        key = (rule.method, repr(rule.parameters), rule.weights, rule.base_weight)
        if key in self._checked:
            return
        self._checked.add(key)
        zeros = Deltas.of(torch.zeros(len(rule.weights), 1), weights=rule.weights)
        zeros.base_weight = rule.base_weight
        try:
            METHODS[rule.method](zeros, **rule.parameters)
        except MethodError as error:
            problem = f"{self.recipe.where(rule.line)}: {rule.method}: {error}"
            if problem not in self.problems:
                self.problems.append(problem)

    def misfits(self) -> Iterable[str]:
        """Report tensors that don't fit the base's, with a single line for a task that hardly fits anywhere."""
        for task, problems in self._misfits.items():
            # Where most tensors don't fit, it is probably a fine-tune of another model.
            if len(problems) > max(MAX_LISTED_MISFITS, len(self.kinds) // 2):
                label = self.finetuned[self.tasks.index(task)].label
                yield (
                    f"'{task}': {label} is not a fine-tune of {self.base.label}: {len(problems)} of"
                    f" {len(self.kinds)} tensors don't fit. Check the model's name. The first: {problems[0]}"
                )
            else:
                yield from problems

    def nothing_merges(self) -> str:
        ours = next(iter(self.base.names()), "nothing")
        names_of_tasks = chain.from_iterable(checkpoint.names() for checkpoint in self.finetuned)
        theirs = next(names_of_tasks, "nothing")
        return (
            f"{self.base.label}: nothing in it would be merged. Its tensors are named like {ours}, the fine-tuned"
            f" models' like {theirs}. Are these fine-tunes of this base?"
        )

    def parts(self, steps: Iterable[Step]) -> Iterable[TaskPart]:
        """Yield the tensors that a fine-tuned model has but the base doesn't, or has in another shape."""
        shapes = {step.name: step.info.shape for step in steps}
        for task, checkpoint in zip(self.tasks, self.finetuned, strict=True):
            for name in checkpoint.names():
                info = checkpoint.info(name)
                if shapes.get(name) != info.shape and info.numel:
                    yield TaskPart(task, info)

    def warnings(self, steps: Sequence[Step]) -> Iterable[str]:
        for task, checkpoint in zip(self.tasks, self.finetuned, strict=True):
            if isinstance(checkpoint, AdapterCheckpoint):
                for note in checkpoint.notes:
                    yield f"'{task}': {note}"
        absent = [step.name for step in steps if step.why == ABSENT]
        if absent:
            yield f"in no fine-tuned model, so they stay as the base has them: {some(absent)}"
        embeddings = {step.info.shape: step.name for step in steps if step.kind == "embedding"}
        for part in self.parts(steps):
            if kind_of(part.info) == "head" and (tied := embeddings.get(part.info.shape)):
                yield (
                    f"{part.info.name}: '{part.task}' has its own head, but the base ties its head to {tied};"
                    " the merged model stays tied"
                )
        small = []
        for step in steps:
            matrices, view = METHODS[step.method].matrices, step.view
            if matrices and matrices.divides_rank and view and min(view.m, view.n) < len(self.tasks):
                small.append(step.name)
        if small:
            yield (
                "these tensors have fewer rows or columns than there are tasks, so each task keeps only rank 1 of"
                f" them: {some(small)}"
            )


def _kept_wrongly(recipe: Recipe, vocabulary: Vocabulary | None) -> list[str]:
    """Return the reasons why single tasks couldn't be restored from what the recipe keeps for them."""
    methods = sorted(recipe.methods)
    masks = [name for name in methods if METHODS[name].keeps == "mask"]
    adapters = [name for name in methods if METHODS[name].keeps == "adapter"]
    if recipe.residuals is not None:
        adapters.append("residuals")
    ways = [*masks, *adapters]
    together = " and ".join(ways)
    problems = []
    # A task is restored from the masks of one method, or from one adapter, which several methods may write to.
    if masks and len(ways) > 1:
        problems.append(f"{recipe.source}: {together} both keep what is a task's own. Use one of them in a recipe")
    # Masks and adapters are both applied to the base row by row.
    if ways and vocabulary is not None and not vocabulary.is_bases:
        keep = "keep" if len(ways) > 1 else "keeps"
        problems.append(
            f"{recipe.source}: {together} {keep} what is a task's own by the base's rows, so the output needs the same"
            " rows. Write tokenizer_source: base, without pad_to_multiple_of"
        )
    return problems


def _misfit(info: TensorInfo, task: str, checkpoint: Checkpoint, held: frozenset[str]) -> str:
    """Return the reason why a task's tensor can't be merged with the base's; empty if it can be."""
    if info.name not in held:
        return (
            f"{info.name}: '{task}' doesn't have it, but others do. Keep the base's weight by an override"
            f" with merge_method: base, or leave '{task}' out"
        )
    theirs = checkpoint.info(info.name)
    if theirs.shape != info.shape:
        has_other_rows = len(info.shape) == len(theirs.shape) == 2 and info.shape[1:] == theirs.shape[1:]
        if has_other_rows:
            conflict = f"has {theirs.shape[0]} rows, the base has {info.shape[0]}"
        else:
            conflict = f"has shape {theirs.shape}, expected the base's {info.shape}"
        return (
            f"{info.name}: '{task}' {conflict}. Override it with merge_method: base;"
            f" '{task}' keeps its own as a task part."
        )
    if not theirs.is_float:
        return f"{info.name}: '{task}' stores it as {theirs.dtype}, expected a float. Is it quantized?"
    return ""
