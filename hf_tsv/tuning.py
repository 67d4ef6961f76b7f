"""Choose the scale of a merge by scores on validation data, the merge itself computed once.

A method's `scale` is a factor on its merged delta. So the deltas are made once, at scale 1, and every choice of scales
that is tried costs a sum and an evaluation, but no singular value decomposition.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from hf_tsv.errors import PlanError
from hf_tsv.evaluation import MERGED, Contestant, Prepared, Results, Suite, score_all, summarize
from hf_tsv.loaders import MemoryCheckpoint
from hf_tsv.methods import METHODS
from hf_tsv.modules import group_of
from hf_tsv.planner import Plan, Step
from hf_tsv.recipe import Recipe, parse_recipe, read_yaml
from hf_tsv.run import Progress, Resources, Silent, run

By = Literal["all", "kind", "type"]
REST = "rest"  # of methods with a `rest_scale`: what is no matrix, whose factor that is
# Whose scale is a factor on all that they merge; CART's is one on what lies around the center.
SCALED = tuple(sorted(name for name, method in METHODS.items() if "scale" in method.parameters and name != "cart"))
Scales = dict[str, float]  # by group


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
        scales: By group: `all`, a kind of tensor, a module type's name with `*`, or `rest`.
        relative: The mean score relative to the fine-tuned models' with these.
        untuned: The same at scale 1.
        tried: How many choices were scored.
        text: The recipe with these scales.
    """

    scales: Mapping[str, float]
    relative: float
    untuned: float
    tried: int
    text: str


def at_scale_one(recipe: Recipe) -> Recipe:
    """The recipe whose deltas are scaled: in float32, with every scale 1.

    Raises:
        PlanError: its method has no scale, or overrides give some tensors other methods or parameters.
    """
    data = read_yaml(recipe.text, recipe.source).data
    if recipe.merge_method not in SCALED:
        raise PlanError(
            f"{recipe.source}: {recipe.merge_method} has no scale to tune, expected one of {', '.join(SCALED)}."
        )
    if data.get("overrides"):
        raise PlanError(f"{recipe.source}: a recipe with overrides can't be tuned. Leave them out, and add them after.")
    text = _with_scales(data, {"scale": 1.0, "rest_scale": 1.0})
    return replace(_parsed(text, recipe), svd=recipe.svd, out_dtype="float32")


def tune(
    plan: Plan,
    recipe: Recipe,
    suite: Suite,
    prepared: Sequence[Prepared],
    results: Results,
    *,
    by: By,
    grid: Sequence[float],
    device: str,
    resources: Resources,
    progress: Progress,
) -> Tuned:
    """Search one scale for all, then group by group with the others fixed, those that change most first.

    Args:
        plan: Of `at_scale_one(recipe)`.
        recipe: What the tuned recipe is made from.
        suite: Validation data: not what the merge is reported on.
        prepared: Its tasks with the base and the fine-tuned models.
        results: Where scores are kept.
        by: What has a scale of its own: `all` have one, a `kind` of tensor, or a module `type`.
        grid: The scales that are tried.
        device: Of torch.
        resources: For the merge.
        progress: Told of the evaluations.

    Raises:
        PlanError: a task of the suite has no fine-tuned model.
        HfTsvError: as merging and scoring do.
    """
    if without := [one.task.name for one in prepared if len(one.entrants) < 2]:
        raise PlanError(f"{suite.source}: no fine-tuned model to compare with, expected one for {', '.join(without)}.")
    held = _Held()
    run(plan, plan.merged, held, resources, Silent())
    search = _Search(plan, _Groups(plan.merged, by), held.tensors, suite, prepared, results, device)
    groups = sorted(search.groups.names, key=search.energy, reverse=True)
    progress.begin(len(grid) + (len(groups) * len(grid) if len(groups) > 1 else 0))
    untuned = search.score(dict.fromkeys(groups, 1.0))
    best = _best(search, [dict.fromkeys(groups, scale) for scale in grid], progress)
    for group in groups if len(groups) > 1 else ():
        best = _best(search, [best, *({**best, group: scale} for scale in grid)], progress)
    return Tuned(best, search.score(best), untuned, len(search.known), _tuned_text(recipe, best))


def _best(search: "_Search", choices: Iterable[Scales], progress: Progress) -> Scales:
    """The choice with the highest score; of equals the one nearest to 1."""
    found: list[tuple[float, float, Scales]] = []
    for choice in choices:
        is_new = search.key(choice) not in search.known
        found.append((search.score(choice), -sum(abs(scale - 1) for scale in choice.values()), choice))
        progress.advance(float(is_new), ", ".join(f"{group} {scale:g}" for group, scale in choice.items()))
    return max(found, key=lambda item: item[:2])[2]


class _Held:
    """Keeps merged tensors in memory."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def put(self, step: Step, tensor: Tensor, facts: Mapping[str, Any]) -> None:
        self.tensors[step.name] = tensor


class _Groups:
    """Which tensors share a scale."""

    def __init__(self, steps: Sequence[Step], by: By) -> None:
        self._by = by
        self.of = {step.name: self._group(step) for step in steps}
        self.names = tuple(dict.fromkeys(self.of.values()))

    def _group(self, step: Step) -> str:
        has_rest = "rest_scale" in METHODS[step.method].parameters and step.parameters.get("parity") != "paper"
        if has_rest and step.view is None:
            return REST
        return {"all": "all", "kind": step.kind, "type": group_of(step.name)}[self._by]


class _Search:
    """Scores choices of scales, each once."""

    def __init__(
        self,
        plan: Plan,
        groups: _Groups,
        merged: Mapping[str, Tensor],
        suite: Suite,
        prepared: Sequence[Prepared],
        results: Results,
        device: str,
    ) -> None:
        self.groups = groups
        self.known: dict[str, float] = {}
        self._suite, self._prepared, self._results, self._device = suite, prepared, results, device
        self._base = {name: plan.base.read(name) for name in plan.base.names()}
        self._deltas = {name: tensor - self._base[name].float() for name, tensor in merged.items()}
        sources = (plan.recipe.text, *(c.fingerprint() for c in (plan.base, *plan.finetuned)))
        self._identity = hashlib.sha256("\0".join(sources).encode()).hexdigest()

    def energy(self, group: str) -> float:
        """The squared norm of a group's merged deltas."""
        return sum(float(d.double().square().sum()) for n, d in self._deltas.items() if self.groups.of[n] == group)

    def key(self, scales: Scales) -> str:
        return json.dumps(scales, sort_keys=True)

    def score(self, scales: Scales) -> float:
        """The mean score over all tasks relative to the fine-tuned models'."""
        if self.key(scales) not in self.known:
            self.known[self.key(scales)] = self._score(scales)
        return self.known[self.key(scales)]

    def _score(self, scales: Scales) -> float:
        body = MemoryCheckpoint(self._scaled(scales), label=f"the merge at {self.key(scales)}")
        prepared = [
            replace(one, entrants=(*one.entrants[:2], self._candidate(one.entrants[0], body, scales)))
            for one in self._prepared
        ]
        score_all(self._suite, prepared, self._results, self._device, Silent())
        tasks = summarize(self._suite, prepared, self._results)["tasks"].values()
        return fmean(told["relative"][MERGED] for told in tasks)

    def _candidate(self, base: Contestant, body: MemoryCheckpoint, scales: Scales) -> Contestant:
        return replace(base, label=MERGED, identity=f"{self._identity} {base.identity} {self.key(scales)}", body=body)

    def _scaled(self, scales: Scales) -> dict[str, Tensor]:
        state = dict(self._base)
        for name, delta in self._deltas.items():
            base = self._base[name]
            state[name] = torch.add(base.float(), delta, alpha=scales[self.groups.of[name]]).to(base.dtype)
        return state


def _tuned_text(recipe: Recipe, scales: Mapping[str, float]) -> str:
    """The recipe with these scales, as mergekit's lists of filter and value. A glob matches longer names too, whose
    own filters therefore come first."""
    own = {group: scales[group] for group in sorted(scales, key=len, reverse=True) if group != REST}
    filters = [{"filter": _filter(group), "value": scale} for group, scale in own.items()]
    settings: dict[str, Any] = {"scale": own.get("all", [*filters, {"value": 1.0}])} if own else {}
    if REST in scales:
        settings["rest_scale"] = scales[REST]
    text = _with_scales(read_yaml(recipe.text, recipe.source).data, settings)
    _parsed(text, recipe)
    return text


def _filter(group: str) -> Any:
    return group if "." in group or "*" in group else {"kind": group}


def _with_scales(data: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    known = METHODS[data["merge_method"]].parameters
    taken = {key: value for key, value in settings.items() if key in known}
    return yaml.safe_dump({**data, "parameters": {**(data.get("parameters") or {}), **taken}}, sort_keys=False)


def _parsed(text: str, recipe: Recipe) -> Recipe:
    return parse_recipe(text, recipe.source, Path(recipe.source).parent)
