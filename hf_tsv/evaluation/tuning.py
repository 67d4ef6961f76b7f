"""Choose a merge's scales, and its masks' lambdas, by scores on validation data, the merge itself computed once.

A method's `scale` is a factor on its merged delta, and a mask's lambda compares deltas that are known. So the deltas
are made once, at scale 1, and each choice that is tried costs a sum and an evaluation, but no decomposition.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from hf_tsv.checkpoints.dtypes import BY_WORD
from hf_tsv.checkpoints.memory import MemoryCheckpoint
from hf_tsv.errors import PlanError
from hf_tsv.evaluation import MERGED, RESTORED, Contestant, Prepared, Results, Suite, score_all, summarize
from hf_tsv.evaluation.tunable import By, Choice, Group, chosen_text, groups_of, tuned_of_mask
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
    """What tuning found.

    Attributes:
        scales: By group: `all`, a kind of tensor, a module type's name with `*`, or `rest`; of an override after its
            filter and a colon.
        lambdas: TALL-masks' lambda, by task.
        relative: The mean score relative to the fine-tuned models' with these.
        untuned: The same at scale 1, with the recipe's lambdas.
        tried: How many choices were scored.
        text: The recipe with these.
    """

    scales: Mapping[str, float]
    lambdas: Mapping[str, float]
    relative: float
    untuned: float
    tried: int
    text: str


def tune(
    plan: Plan,
    recipe: Recipe,
    suite: Suite,
    prepared: Sequence[Prepared],
    results: Results,
    *,
    by: By,
    grid: Sequence[float],
    lambdas: Sequence[float],
    device: str,
    resources: Resources,
    progress: Progress,
) -> Tuned:
    """Search each task's lambda, then one scale for all, then group by group, those that change most first.

    With TALL-masks a task's score is that of its own model, which its mask makes of the merged one, and its lambda has
    no part in the other tasks' scores. Of lambdas with the same score the first counts, as in the authors' code.

    Args:
        plan: Of `at_scale_one(recipe)`.
        recipe: What the tuned recipe is made from.
        suite: Validation data: not what the merge is reported on.
        prepared: Its tasks with the base and the fine-tuned models.
        results: Where scores are kept.
        by: What has a scale of its own: `all` have one, a `kind` of tensor, or a module `type`.
        grid: The scales that are tried.
        lambdas: The masks' lambdas that are tried.
        device: Of torch.
        resources: For the merge.
        progress: Told of the evaluations.

    Raises:
        PlanError: a task of the suite has no fine-tuned model, or a task with a mask has no data.
        HfTsvError: as merging and scoring do.
    """
    search = _Search(plan, recipe, by, suite, prepared, results, device)
    _check_tasks(suite, prepared, search.masked)
    search.merge(resources)
    groups = sorted(search.groups, key=search.energy, reverse=True)
    looks = 1 + len(search.masked) * len(lambdas) + bool(groups) * len(grid)
    progress.begin(looks + (len(groups) * (1 + len(grid)) if len(groups) > 1 else 0))
    best = Choice(dict.fromkeys(groups, 1.0))
    untuned = search.score(best, progress)
    for task in search.masked:
        tried = [replace(best, lambdas={**best.lambdas, task: lam}) for lam in lambdas]
        best = max(tried, key=partial(search.score, progress=progress, task=task))
    if groups:
        best = _best(search, [replace(best, scales=dict.fromkeys(groups, scale)) for scale in grid], progress)
    for group in groups if len(groups) > 1 else ():
        best = _best(search, [best, *(replace(best, scales={**best.scales, group: s}) for s in grid)], progress)
    return Tuned(
        scales={str(group): scale for group, scale in best.scales.items()},
        lambdas=best.lambdas,
        relative=search.score(best, progress),
        untuned=untuned,
        tried=len(search.tried),
        text=chosen_text(recipe, best),
    )


def _check_tasks(suite: Suite, prepared: Sequence[Prepared], masked: Sequence[str]) -> None:
    if without := [one.task.name for one in prepared if len(one.entrants) < 2]:
        raise PlanError(f"{suite.source}: no fine-tuned model to compare with, expected one for {', '.join(without)}.")
    if without := sorted(set(masked) - {one.finetuned for one in prepared}):
        raise PlanError(
            f"{suite.source}: no data to choose a mask's lambda on, expected a task of the suite for"
            f" {', '.join(without)}."
        )


def _best(search: "_Search", choices: Iterable[Choice], progress: Progress) -> Choice:
    """The choice with the highest score; of equals the one nearest to scale 1."""
    found = [(search.score(c, progress), -sum(abs(scale - 1) for scale in c.scales.values()), c) for c in choices]
    return max(found, key=lambda item: item[:2])[2]


class _Search:
    """Scores choices on tasks, each once.

    Attributes:
        masked: The recipe's tasks, where each has a mask.
        groups: What has a scale of its own.
        tried: All choices that were looked at.
    """

    def __init__(
        self,
        plan: Plan,
        recipe: Recipe,
        by: By,
        suite: Suite,
        prepared: Sequence[Prepared],
        results: Results,
        device: str,
    ) -> None:
        self._localized = [step for step in plan.merged if tuned_of_mask(step.method)]
        self.masked = plan.tasks if self._localized else ()
        self._group_of = groups_of(plan.recipe, plan.merged, by)
        self.groups = tuple(dict.fromkeys(self._group_of.values()))
        self.tried: set[str] = set()
        self._known: dict[tuple[str, str], float] = {}
        self._plan, self._suite, self._prepared, self._results = plan, suite, prepared, results
        self._device = device
        self._out = BY_WORD[recipe.out_dtype].torch if recipe.out_dtype else None
        self._base: dict[str, Tensor] = {}
        self._merged: dict[str, Tensor] = {}
        self._surveys = Surveys(plan, self._localized, for_masks=True)
        self._changes: tuple[str, dict[str, TaskDelta]] = ("", {})
        sources = (plan.recipe.text, str(recipe.out_dtype), *(c.fingerprint() for c in (plan.base, *plan.finetuned)))
        self._identity = hashlib.sha256("\0".join(sources).encode()).hexdigest()

    def merge(self, resources: Resources) -> None:
        """Make the deltas that every choice is made of."""
        self._base = {name: self._plan.base.read(name) for name in self._plan.base.names()}
        run(self._plan, self._plan.merged, self, resources, Silent())
        self._surveys = run_surveys(self._plan, self._localized, resources, Silent(), for_masks=True)

    def put(self, step: Step, tensor: Tensor, facts: Mapping[str, Any]) -> None:
        """Keep a merged tensor in memory."""
        self._merged[step.name] = tensor

    def energy(self, group: Group) -> float:
        """The squared norm of a group's merged deltas."""
        names = [name for name in self._merged if self._group_of.get(name) == group]
        return sum(float((self._merged[n].double() - self._base[n].double()).square().sum()) for n in names)

    def score(self, choice: Choice, progress: Progress, task: str | None = None) -> float:
        """The mean score relative to the fine-tuned models', over all tasks of the suite or those of one model."""
        asked = [one for one in self._prepared if task in (None, one.finetuned)]
        new = [one for one in asked if (one.task.name, _key(choice, one.finetuned)) not in self._known]
        # One model a task where masks make it; else one for all.
        for together in [[one] for one in new] if self.masked else [new] if new else []:
            self._score(together, choice)
        self.tried.add(_key(choice))
        progress.advance(1, _shown(choice, task))
        return fmean(self._known[one.task.name, _key(choice, one.finetuned)] for one in asked)

    def _score(self, together: Sequence[Prepared], choice: Choice) -> None:
        task = together[0].finetuned
        label, key = RESTORED if self.masked else MERGED, _key(choice, task)
        body = MemoryCheckpoint(self._state(choice, task), label=f"the merge at {key}")
        prepared = [
            replace(one, entrants=(*one.entrants[:2], self._candidate(one.entrants[0], body, f"{label} {key}", label)))
            for one in together
        ]
        score_all(self._suite, prepared, self._results, self._device, Silent())
        for name, scores in summarize(self._suite, prepared, self._results).tasks.items():
            self._known[name, key] = scores.relative[label]

    def _candidate(self, base: Contestant, body: MemoryCheckpoint, key: str, label: str) -> Contestant:
        return replace(base, label=label, identity=f"{self._identity} {base.identity} {key}", body=body)

    def _state(self, choice: Choice, task: str | None) -> dict[str, Tensor]:
        """A task's model with a choice, as merging writes it and, where there are masks, restoring."""
        state = {name: self._stored(tensor, tensor) for name, tensor in self._base.items()}
        for name, merged in self._merged.items():
            scale = choice.scales[self._group_of[name]] if name in self._group_of else 1.0
            if scale != 1:
                base = self._base[name].to(merged.dtype)
                merged = torch.add(base, merged - base, alpha=scale)
            state[name] = self._stored(merged, self._base[name])
        for step in self._localized if task else ():
            state[step.name] = self._masked(step, state[step.name], str(task), choice.lambdas.get(str(task)))
        return state

    def _stored(self, tensor: Tensor, base: Tensor) -> Tensor:
        return tensor.to(self._out or base.dtype) if base.is_floating_point() else tensor

    def _masked(self, step: Step, merged: Tensor, task: str, lam: float | None) -> Tensor:
        """What a task's mask leaves of a merged tensor, with this lambda or the recipe's."""
        own, base = self._change(task)[step.name], self._base[step.name]
        method, parameters = METHODS[step.method], dict(step.parameters)
        if lam is not None:
            parameters[tuned_of_mask(step.method)] = lam
        mask = method.mask_of(own, merged.to(own.delta.dtype, copy=True).sub_(base), parameters)
        return torch.where(mask, merged, base.to(merged.dtype))

    def _change(self, task: str) -> dict[str, TaskDelta]:
        """A task's own deltas where there are masks; those of the last task that was asked for are kept."""
        if self._changes[0] != task:
            t = self._plan.tasks.index(task)
            self._changes = (task, {})  # the last one's go before these come
            for step in self._localized:
                deltas = StoredTensor(self._plan, step, None).deltas()
                self._changes[1][step.name] = TaskDelta(t, deltas[t], deltas.weights[t], self._surveys.of(step))
        return self._changes[1]


def _key(choice: Choice, task: str | None = None) -> str:
    """What a task's score depends on of a choice; without a task, all of it."""
    scales = {str(group): scale for group, scale in choice.scales.items()}
    lambdas = {name: lam for name, lam in choice.lambdas.items() if task in (None, name)}
    return json.dumps([scales, lambdas], sort_keys=True)


def _shown(choice: Choice, task: str | None) -> str:
    scales = [f"{group} {scale:g}" for group, scale in choice.scales.items()]
    return f"{task} {choice.lambdas[task]:g}" if task else ", ".join(scales)
