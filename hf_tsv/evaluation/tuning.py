"""Choose a merge's scales, and its masks' lambdas, by scores on validation data; the merge itself is computed once.

A method's `scale` is a factor on its merged delta, and a mask's lambda compares known deltas. So the deltas are
computed once, at scale 1, and each choice costs a sum and an evaluation, but no decomposition.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from hf_tsv.checkpoints.dtypes import BY_WORD
from hf_tsv.checkpoints.memory import MemoryCheckpoint
from hf_tsv.errors import PlanError
from hf_tsv.evaluation import MERGED, RESTORED, Prepared, Results, Suite, score_all, summarize
from hf_tsv.evaluation.options import By, Search
from hf_tsv.evaluation.tunable import Choice, Group, chosen_text, groups_of, tuned_of_mask
from hf_tsv.merging.engine import run
from hf_tsv.merging.plan import Plan, Step
from hf_tsv.merging.progress import Progress, Silent
from hf_tsv.merging.resources import Resources
from hf_tsv.merging.stored import StoredTensor
from hf_tsv.merging.surveys import Surveys, run_surveys
from hf_tsv.methods import METHODS, TaskDelta
from hf_tsv.recipe import Recipe


@dataclass(frozen=True)
class Tuned:
    """The outcome of a search.

    Attributes:
        scales: The chosen scale by group: `all`, a kind of tensor, a module type's name with `*`, or `rest`; for a
            group within an override, its filter and a colon come first.
        lambdas: The chosen TALL-masks lambda, by task.
        relative: The mean score relative to the fine-tuned models', with these scales and lambdas.
        untuned: The same mean at scale 1, with the recipe's lambdas.
        tried: The number of choices that were scored.
        text: The recipe with these scales and lambdas.
    """

    scales: Mapping[str, float]
    lambdas: Mapping[str, float]
    relative: float
    untuned: float
    tried: int
    text: str


@dataclass(frozen=True)
class Validation:
    """The validation data and models that choices are scored with.

    Attributes:
        suite: The suite of validation data, which must not be the data that the merge is reported on.
        prepared: The suite's tasks with the base and the fine-tuned models.
        results: The file of known scores.
        device: The torch device to score on.
    """

    suite: Suite
    prepared: Sequence[Prepared]
    results: Results
    device: str


def tune(
    plan: Plan,
    recipe: Recipe,
    validation: Validation,
    search: Search,
    *,
    resources: Resources,
    progress: Progress,
) -> Tuned:
    """Search each task's lambda, then one scale for all, then group by group, those that change most first.

    With TALL-masks, a task's score is that of its own model, the merged one under its mask, and its lambda has no
    effect on the other tasks' scores. If lambdas have the same score, the first wins, as in the authors' code.

    Args:
        plan: The plan of `at_scale_one(recipe)`.
        recipe: The recipe to tune.
        validation: The data and models to score choices with.
        search: The scales and lambdas to try.
        resources: The workers, memory and device for the merge.
        progress: The display of finished evaluations.

    Raises:
        PlanError: a task of the suite has no fine-tuned model, or a task with a mask has no data.
        HfTsvError: merging or scoring failed.
    """
    candidates = _Candidates(plan, recipe, validation, search.by)
    source, prepared = validation.suite.source, validation.prepared
    without_model = [one.task.name for one in prepared if len(one.entrants) < 2]
    if without_model:
        raise PlanError(
            f"{source}: tasks without a fine-tuned model to compare with: {', '.join(without_model)}."
            " Name one by 'finetuned', or remove them."
        )
    without_data = sorted(set(candidates.masked) - {one.finetuned for one in prepared})
    if without_data:
        raise PlanError(
            f"{source}: no data to choose a mask's lambda on for {', '.join(without_data)}. Add a task for each."
        )
    candidates.merge(resources)
    groups = sorted(candidates.groups, key=candidates.energy, reverse=True)
    # The untuned choice and, at the end, the best one; refining a group also scores the best choice so far.
    evaluations = 2 + len(candidates.masked) * len(search.lambdas)
    if groups:
        evaluations += len(search.scales)
    if len(groups) > 1:
        evaluations += len(groups) * (1 + len(search.scales))
    progress.begin(evaluations)

    best = Choice(dict.fromkeys(groups, 1.0))
    untuned = candidates.score(best, progress)
    for task in candidates.masked:
        choices = [replace(best, lambdas={**best.lambdas, task: lam}) for lam in search.lambdas]
        # The best of those tried, even if the recipe's own lambda would score better.
        best = max(choices, key=partial(candidates.score, progress=progress, task=task))
    if groups:
        choices = [replace(best, scales=dict.fromkeys(groups, scale)) for scale in search.scales]
        best = _best(candidates, choices, progress)
    # A single group was searched above. Several are each refined once, given the choices made so far.
    if len(groups) > 1:
        for group in groups:
            others = [replace(best, scales={**best.scales, group: scale}) for scale in search.scales]
            best = _best(candidates, [best, *others], progress)
    return Tuned(
        scales={str(group): scale for group, scale in best.scales.items()},
        lambdas=best.lambdas,
        relative=candidates.score(best, progress),
        untuned=untuned,
        tried=len(candidates.tried),
        text=chosen_text(recipe, best),
    )


def _best(candidates: "_Candidates", choices: Sequence[Choice], progress: Progress) -> Choice:
    """Return the choice with the highest score; on a tie, the one nearest to scale 1."""

    def rank(choice: Choice) -> tuple[float, float]:
        distance = sum(abs(scale - 1) for scale in choice.scales.values())
        return candidates.score(choice, progress), -distance

    return max(choices, key=rank)


class _Candidates:
    """Scores choices on tasks, each once.

    Attributes:
        masked: The recipe's tasks if each has a mask; else empty.
        groups: The groups of tensors that each have their own scale.
        tried: The keys of all choices that were scored.
    """

    def __init__(self, plan: Plan, recipe: Recipe, validation: Validation, by: By) -> None:
        self._localized = [step for step in plan.merged if tuned_of_mask(step.method)]
        self.masked = plan.tasks if self._localized else ()
        self._group_of = groups_of(plan.recipe, plan.merged, by)
        self.groups = tuple(dict.fromkeys(self._group_of.values()))
        self.tried: set[str] = set()
        self._known: dict[tuple[str, str], float] = {}  # relative scores, by task and `_key`
        self._plan, self._validation = plan, validation
        self._out = BY_WORD[recipe.out_dtype].torch if recipe.out_dtype else None
        self._base: dict[str, Tensor] = {}  # all tensors of the base
        self._merged: dict[str, Tensor] = {}  # the merged tensors, at scale 1
        self._surveys = Surveys(plan, self._localized, for_masks=True)
        # One task's own deltas at a time, in the order in which tasks are scored: not all fit in memory.
        self._changes: tuple[str, dict[str, TaskDelta]] = ("", {})
        # Hash of what all candidates' weights depend on, apart from the choice: part of their scores' keys.
        weights = [checkpoint.fingerprint() for checkpoint in (plan.base, *plan.finetuned)]
        sources = (plan.recipe.text, str(recipe.out_dtype), *weights)
        self._identity = hashlib.sha256("\0".join(sources).encode()).hexdigest()

    def merge(self, resources: Resources) -> None:
        """Compute the deltas that every choice scales."""
        self._base = {name: self._plan.base.read(name) for name in self._plan.base.names()}
        run(self._plan, self._plan.merged, self, resources, Silent())
        self._surveys = run_surveys(self._plan, self._localized, resources, Silent(), for_masks=True)

    def put(self, step: Step, tensor: Tensor, facts: Mapping[str, Any]) -> None:
        """Keep a merged tensor in memory."""
        self._merged[step.name] = tensor

    def energy(self, group: Group) -> float:
        """Compute the squared norm of a group's merged deltas."""
        total = 0.0
        for name, merged in self._merged.items():
            if self._group_of.get(name) == group:
                delta = merged.double() - self._base[name].double()
                total += float(delta.square().sum())
        return total

    def score(self, choice: Choice, progress: Progress, task: str | None = None) -> float:
        """Compute the mean score relative to the fine-tuned models', over all tasks or those of one model."""
        wanted = [one for one in self._validation.prepared if task in (None, one.finetuned)]
        keys = [(one.task.name, _key(choice, one.finetuned)) for one in wanted]
        new = [one for one, key in zip(wanted, keys, strict=True) if key not in self._known]
        if self.masked:  # with masks, each task has its own model
            for one in new:
                self._score([one], choice)
        elif new:
            self._score(new, choice)
        self.tried.add(_key(choice))
        if task:
            shown = f"{task} {choice.lambdas[task]:g}"
        else:
            shown = ", ".join(f"{group} {scale:g}" for group, scale in choice.scales.items())
        progress.advance(1, shown)
        return fmean(self._known[key] for key in keys)

    def _score(self, together: Sequence[Prepared], choice: Choice) -> None:
        """Score one model of a choice on these tasks; with masks, they belong to one fine-tuned model."""
        validation = self._validation
        task = together[0].finetuned
        key = _key(choice, task)
        label = RESTORED if self.masked else MERGED
        body = MemoryCheckpoint(self._state(choice, task), label=f"the merge at {key}")
        prepared: list[Prepared] = []
        for one in together:
            base, finetuned = one.entrants[:2]
            identity = f"{self._identity} {base.identity} {label} {key}"
            candidate = replace(base, label=label, identity=identity, body=body)
            prepared.append(replace(one, entrants=(base, finetuned, candidate)))
        score_all(validation.suite, prepared, validation.results, validation.device, Silent())
        evaluation = summarize(validation.suite, prepared, validation.results)
        for name, scores in evaluation.tasks.items():
            self._known[name, key] = scores.relative[label]

    def _state(self, choice: Choice, task: str | None) -> dict[str, Tensor]:
        """Return a task's model for a choice, as merging writes it; with masks, as restoring writes it."""
        state = {name: self._stored(tensor, tensor) for name, tensor in self._base.items()}
        for name, merged in self._merged.items():
            scale = choice.scales[self._group_of[name]] if name in self._group_of else 1.0
            if scale != 1:  # 1 leaves the merged tensor exact: base + (merged - base) would round
                base = self._base[name].to(merged.dtype)
                merged = torch.add(base, merged - base, alpha=scale)
            state[name] = self._stored(merged, self._base[name])
        if task is None or not self._localized:
            return state
        changes = self._changes_of(task)
        for step in self._localized:
            merged = state[step.name]
            base = self._base[step.name]
            own = changes[step.name]
            parameters = dict(step.parameters)
            if task in choice.lambdas:
                parameters[tuned_of_mask(step.method)] = choice.lambdas[task]
            delta = merged.to(own.delta.dtype, copy=True).sub_(base)
            mask = METHODS[step.method].mask_of(own, delta, parameters)
            state[step.name] = torch.where(mask, merged, base.to(merged.dtype))
        return state

    def _stored(self, tensor: Tensor, base: Tensor) -> Tensor:
        """Round the tensor as the merge writes it."""
        return tensor.to(self._out or base.dtype) if base.is_floating_point() else tensor

    def _changes_of(self, task: str) -> dict[str, TaskDelta]:
        """Return a task's own deltas for masked tensors, by name; the last task's are cached."""
        if self._changes[0] != task:
            t = self._plan.tasks.index(task)
            changes: dict[str, TaskDelta] = {}
            self._changes = (task, changes)  # frees the last task's deltas before these are computed
            for step in self._localized:
                deltas = StoredTensor(self._plan, step, None).deltas()  # of all tasks, each read when it is used
                changes[step.name] = TaskDelta(t, deltas[t], deltas.weights[t], self._surveys.of(step))
        return self._changes[1]


def _key(choice: Choice, task: str | None = None) -> str:
    """Return the part of a choice that a task's score depends on, as JSON; without a task, all of it."""
    scales = {str(group): scale for group, scale in choice.scales.items()}
    lambdas = {name: lam for name, lam in choice.lambdas.items() if task in (None, name)}
    return json.dumps([scales, lambdas], sort_keys=True)
