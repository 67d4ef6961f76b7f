"""Compress every fine-tune of a recipe into an adapter (TSV-Compress, https://arxiv.org/abs/2412.00081).

Three passes over the tensors, each holding a few of them: singular values, from which the ranks are chosen; then
factors, written in place; then, adapter by adapter, PEFT's reading is compared with what was meant.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import torch
from torch import Tensor

from hf_tsv.adapters import (
    AdapterPlan,
    AdapterWriter,
    Architecture,
    BaseRef,
    Change,
    LowRankChange,
    Misfits,
    WholeChange,
    plan_adapter,
    plan_serving,
    read_architecture,
    verify_adapter,
)
from hf_tsv.companions import copy_config
from hf_tsv.compression import (
    DENSE,
    Budget,
    Compression,
    Dense,
    Energy,
    Error,
    FixedRank,
    Fraction,
    RankChoice,
    Spectrum,
    choose_ranks,
    pooled,
    summarize,
)
from hf_tsv.errors import MethodError, some
from hf_tsv.linalg import Factors, singular_values, truncated_svd
from hf_tsv.loaders import TORCH_DTYPES
from hf_tsv.outputs import ADAPTERS, Profile
from hf_tsv.planner import Plan, Step, TaskPart
from hf_tsv.recipe import Recipe
from hf_tsv.run import Progress, Resources, each_step, one_thread_each
from hf_tsv.stored import StoredTensor

RULES = {Budget: "budget", FixedRank: "rank", Fraction: "fraction", Energy: "energy", Error: "error"}
ATTEMPTS = 6  # to meet a budget: what PEFT makes of the ranks is known only once it is planned


@dataclass(frozen=True)
class Compressing:
    """How fine-tunes are compressed.

    Attributes:
        how: The rule for the ranks, or that of each tensor by name. One budget at most is among them, and all share it.
        factor_dtype: Of the factors, as safetensors names it; None for bf16 under a budget, else each tensor's own.
        profiles: `faithful` holds all that PEFT can, `serving` what servers of many adapters read.
        serving_rank: Of all factors in the serving profile.
        verify: How far PEFT's reading of each adapter is compared with what was meant.
        together: Whether tasks share their budgets, so that one that changed more of the model gets more bytes.
    """

    how: RankChoice | Mapping[str, RankChoice]
    factor_dtype: str | None = None
    profiles: tuple[Profile, ...] = ("faithful",)
    serving_rank: int = 64
    verify: Literal["weights", "forward"] = "weights"
    together: bool = False

    @property
    def dtype_of_factors(self) -> str | None:
        """bf16 gives twice the rank at equal bytes, which is worth more than the digits."""
        return self.factor_dtype or ("BF16" if self.budget is not None else None)

    @property
    def budget(self) -> int | None:
        """Bytes of one adapter."""
        return next((rule.nbytes for rule in self.rules if isinstance(rule, Budget)), None)

    @property
    def rules(self) -> list[RankChoice]:
        """Every rule once, the budget last: it takes what the others leave."""
        every = dict.fromkeys(self.how.values() if isinstance(self.how, Mapping) else [self.how])
        return sorted(every, key=lambda rule: isinstance(rule, Budget))

    def rule_of(self, name: str) -> RankChoice:
        return self.how[name] if isinstance(self.how, Mapping) else self.how

    @property
    def flags(self) -> list[str]:
        """The command line's words for it."""
        rule = [word for rule in self.rules for word in (f"--{RULES[type(rule)]}", *map(str, astuple(rule)))]
        serving = ["--serving-rank", str(self.serving_rank)] if "serving" in self.profiles else []
        dtype = [f"--factor-dtype={name}" for name, stored in STORED_AS.items() if stored == self.factor_dtype]
        together = ["--together"] if self.together else []
        profile = "both" if len(self.profiles) > 1 else self.profiles[0]
        return [*rule, *together, "--profile", profile, *serving, *dtype]


STORED_AS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def compressing(
    recipe: Recipe,
    how: RankChoice | Mapping[str, RankChoice],
    *,
    profiles: tuple[Profile, ...] | None = None,
    serving_rank: int | None = None,
    factor_dtype: str | None = None,
    verify: Literal["weights", "forward"] = "weights",
    together: bool = False,
) -> Compressing:
    """How to compress: as the arguments say, else as the recipe's `adapters` do.

    Args:
        recipe: The recipe.
        how: As in `Compressing`.
        profiles: As in `Compressing`.
        serving_rank: As in `Compressing`.
        factor_dtype: `float32`, `bfloat16` or `float16`.
        verify: As in `Compressing`.
        together: As in `Compressing`.
    """
    said = recipe.adapters
    dtype = factor_dtype or said.get("factor_dtype")
    return Compressing(
        how,
        factor_dtype=STORED_AS[dtype] if dtype else None,
        profiles=profiles or tuple(said.get("profiles", ("faithful",))),
        serving_rank=serving_rank or said.get("rank", 64),
        verify=verify,
        together=together,
    )


@dataclass
class _Task:
    """What is known of one task on the way.

    Attributes:
        spectra: Its changed matrices, by tensor.
        whole: Tensors that are stored whole: changed and no matrix, or its own alone.
        whole_bytes: Bytes of these.
        ranks: What is kept of every changed tensor.
    """

    name: str
    spectra: dict[str, Spectrum] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    whole_bytes: int = 0
    ranks: dict[str, int | Dense] = field(default_factory=dict)
    plans: dict[Profile, AdapterPlan] = field(default_factory=dict)


def compress_tasks(
    plan: Plan,
    folders: Mapping[str | None, Path],
    out: Path,
    base: BaseRef,
    options: Compressing,
    resources: Resources,
    progress: Progress,
    *,
    in_order: bool = False,
) -> dict[str, dict[str, Any]]:
    """Write an adapter of every task, and have PEFT read it.

    Args:
        plan: Which tensors take part: those that it merges.
        folders: Where the base (None) and the fine-tuned models lie.
        out: Where `adapters/TASK` and `adapters-serving/TASK` come to lie.
        base: What the adapters call their base.
        options: How to compress.
        resources: What may be used of the machine.
        progress: Told of the work done.
        in_order: Whether to take the tensors as their files hold them, for sources that are read over a network,
            instead of the largest first.

    Returns:
        By task and profile: bytes, energy kept, what is left out, largest errors.

    Raises:
        MethodError: a budget too small for what is stored whole, or NaN.
        CheckpointError: transformers and PEFT can't make anything of the base, or PEFT reads an adapter otherwise
            than it was meant; names the modules.
    """
    tasks = [_Task(name) for name in plan.tasks]
    work = 2 * sum(map(plan.work, plan.merged))
    progress.begin(work)
    with one_thread_each():
        survey = _Survey(plan, tasks, options)
        each_step(plan.merged, survey, plan, resources, progress, plan.work, in_order=in_order)
        survey.add_parts()
        architectures = [_architecture(plan, task.name, folders) for task in tasks]
        sharing = [tasks] if options.together else [[task] for task in tasks]
        for group in sharing:
            _choose(group, [architectures[tasks.index(task)] for task in group], base, options)
        reports = _write(plan, tasks, out, resources, progress, in_order=in_order)
        _copy_configs(plan, tasks, folders, out)
        for task, architecture in zip(tasks, architectures, strict=True):
            for profile in task.plans:
                folder = out / ADAPTERS[profile] / task.name
                expected = partial(_expected, plan, task, task.plans[profile])
                checked = verify_adapter(folder, architecture, expected, forward=options.verify == "forward")
                reports[task.name][profile]["verified"] = {
                    "tensors": checked.tensors,
                    "largest_error": checked.largest_error,
                    "logits_error": checked.logits_error,
                }
    return reports


class _Survey:
    """The first pass: which tensors each task changed, and the singular values of those that are matrices."""

    def __init__(self, plan: Plan, tasks: Sequence[_Task], options: Compressing) -> None:
        self._plan = plan
        self._tasks = tasks
        dtype = options.dtype_of_factors
        self._factor_item = torch.empty(0, dtype=TORCH_DTYPES[dtype]).element_size() if dtype else None
        self._lock = Lock()

    def __call__(self, step: Step) -> None:
        slices = _slices(self._plan, step)
        for t, task in enumerate(self._tasks):
            if not any(stored.is_changed(t) for stored in slices):
                continue
            spectrum = pooled([self._spectrum(step, s, t) for s in slices]) if step.view else None
            with self._lock:
                if spectrum is not None and spectrum.full_rank:
                    task.spectra[step.name] = spectrum
                else:
                    task.whole.add(step.name)
                    task.whole_bytes += step.info.nbytes

    def add_parts(self) -> None:
        """A head that only one task has is stored whole."""
        for part in self._plan.parts:
            task = next(task for task in self._tasks if task.name == part.task)
            task.whole.add(part.info.name)
            task.whole_bytes += part.info.nbytes

    def _spectrum(self, step: Step, stored: StoredTensor, t: int) -> Spectrum:
        deltas = stored.deltas()
        known = deltas.factors(t)
        values = known.s.double() if known else singular_values(deltas[t])
        item = step.info.nbytes // step.info.numel
        m, n = deltas.shape
        return Spectrum(
            values=values,
            m=m,
            n=n,
            noise=max(deltas.noise(t), 1e-6 * float(values[0]) if len(values) else 0.0),
            unit=float(stored.base.double().square().mean().sqrt()) or 1.0,
            factor_item=self._factor_item or item,
            whole_item=item,
        )


def _slices(plan: Plan, step: Step) -> list[StoredTensor]:
    """The tensor, or each matrix of a stack by itself; whatever the step's method is."""
    count = step.view.count if step.view else 1
    rows = [(i, i + 1) for i in range(count)] if count > 1 else [None]
    return [StoredTensor(plan, step, r, as_matrix=True) for r in rows]


def _architecture(plan: Plan, task: str, folders: Mapping[str | None, Path]) -> Architecture:
    base = folders[None]
    parts = {part.info.name: part.info for part in plan.parts if part.task == task}
    headers = {name: plan.base.info(name) for name in plan.base.names()} | parts
    return read_architecture(headers, base, config_folder=folders[task] if parts else None)


def _choose(tasks: Sequence[_Task], architectures: Sequence[Architecture], base: BaseRef, options: Compressing) -> None:
    """Choose the ranks and plan the adapters of tasks that share their budgets; until the faithful ones fit."""
    fixed = sum(task.whole_bytes for task in tasks)
    budget = None if options.budget is None else options.budget * len(tasks)
    misfits: Misfits = "whole" if budget is None else "sidecar"
    dtype = options.dtype_of_factors
    for attempt in range(ATTEMPTS):
        _choose_ranks(tasks, options, fixed)
        planned = [
            plan_adapter(architecture, task.ranks, base=base, factor_dtype=dtype, misfits=misfits)
            for task, architecture in zip(tasks, architectures, strict=True)
        ]
        nbytes = sum(plan.nbytes for plan in planned)
        if budget is None or nbytes <= budget:
            break
        fixed += (nbytes - budget) << attempt  # other ranks may need a longer header
    else:
        names = some([task.name for task in tasks])
        raise MethodError(f"{names}: expected {budget} bytes but it takes {nbytes}, most of it stored whole. Raise it")
    for task, architecture, faithful in zip(tasks, architectures, planned, strict=True):
        if "faithful" in options.profiles:
            task.plans["faithful"] = faithful
        if "serving" in options.profiles:
            task.plans["serving"] = plan_serving(
                architecture, task.ranks, base=base, rank=options.serving_rank, factor_dtype=dtype
            )


def _choose_ranks(tasks: Sequence[_Task], options: Compressing, fixed_bytes: int) -> None:
    spectra = {(task.name, name): spectrum for task in tasks for name, spectrum in task.spectra.items()}
    chosen: dict[tuple[str, str], int | Dense] = {}
    for rule in options.rules:
        own = {key: spectrum for key, spectrum in spectra.items() if options.rule_of(key[1]) == rule}
        before = fixed_bytes + sum(spectra[key].bytes_at(rank) for key, rank in chosen.items())
        shared = Budget(rule.nbytes * len(tasks)) if isinstance(rule, Budget) else rule
        chosen |= choose_ranks(own, shared, fixed_bytes=before)
    for task in tasks:
        kept = {name: rank for (owner, name), rank in chosen.items() if owner == task.name and rank}
        task.ranks = {**kept, **dict.fromkeys(task.whole, DENSE)}


def _write(
    plan: Plan, tasks: Sequence[_Task], out: Path, resources: Resources, progress: Progress, *, in_order: bool
) -> dict[str, dict[str, Any]]:
    """The second pass: factors of every changed tensor, into every adapter that holds them."""
    with ExitStack() as open_files:
        writers = {
            (t, profile): open_files.enter_context(
                AdapterWriter(out / ADAPTERS[profile] / task.name, planned, plan.base)
            )
            for t, task in enumerate(tasks)
            for profile, planned in task.plans.items()
        }
        put = partial(_put, plan, tasks, writers)
        each_step(plan.merged, put, plan, resources, progress, plan.work, in_order=in_order)
        for part in plan.parts:
            for (t, _), writer in writers.items():
                if tasks[t].name == part.task:
                    writer.put(part.info.name, WholeChange(_part(plan, part)))
        reports: dict[str, dict[str, Any]] = {task.name: {} for task in tasks}
        for (t, profile), writer in writers.items():
            report = writer.finish()
            reports[tasks[t].name][profile] = {
                "bytes": report.nbytes,
                "tensors": report.held,
                "left_out": dict(report.left_out),
                "in_sidecar": list(report.in_sidecar),
                "left_out_share": report.left_out_share,
                **_facts(tasks[t]),
            }
    return reports


def _copy_configs(plan: Plan, tasks: Sequence[_Task], folders: Mapping[str | None, Path], out: Path) -> None:
    """A task with a head of its own needs its own configuration to be restored."""
    with_parts = {part.task for part in plan.parts}
    for task in (task for task in tasks if task.name in with_parts):
        for profile in task.plans:
            copy_config(folders[task.name], out / ADAPTERS[profile] / task.name)


def _facts(task: _Task) -> dict[str, Any]:
    summary: Compression[str] = summarize(task.spectra, {name: task.ranks.get(name, 0) for name in task.spectra})
    return {"energy": summary.energy, "errors": dict(summary.errors), "ranks": _plain(task.ranks)}


def _plain(ranks: Mapping[str, int | Dense]) -> dict[str, int | str]:
    return {name: rank.value if isinstance(rank, Dense) else rank for name, rank in sorted(ranks.items())}


def _put(plan: Plan, tasks: Sequence[_Task], writers: Mapping[tuple[int, Profile], AdapterWriter], step: Step) -> None:
    for t, task in enumerate(tasks):
        if step.name not in task.ranks and step.name not in task.spectra:
            continue
        change = _change(plan, task, step, t, _largest_rank(task, step.name))
        for (owner, _), writer in writers.items():
            if owner == t:
                writer.put(step.name, change)


def _largest_rank(task: _Task, name: str) -> int | Dense:
    """Enough for every profile: the serving one may ask for more triplets than were chosen."""
    rank = task.ranks.get(name, 0)
    serving = task.plans.get("serving")
    return max(rank, int(serving.config["r"])) if serving and not isinstance(rank, Dense) else rank


def _change(plan: Plan, task: _Task, step: Step, t: int, rank: int | Dense) -> Change:
    slices = _slices(plan, step)
    if isinstance(rank, Dense) or step.name in task.whole:
        values = [stored.value(t) for stored in slices]
        return WholeChange((torch.cat(values) if len(values) > 1 else values[0]).to(TORCH_DTYPES[step.info.dtype]))
    return LowRankChange([_factors(stored, t, rank) for stored in slices])


def _factors(stored: StoredTensor, t: int, rank: int) -> Factors:
    deltas = stored.deltas()
    if known := deltas.factors(t):
        return Factors(known.u[:, :rank], known.s[:rank], known.vh[:rank], energy=known.energy)
    return truncated_svd(deltas[t], rank, floor=deltas.noise(t))


def _part(plan: Plan, part: TaskPart) -> Tensor:
    return plan.finetuned[plan.tasks.index(part.task)].read(part.info.name)


def _expected(plan: Plan, task: _Task, planned: AdapterPlan, name: str) -> Tensor:
    """What the adapter should make of one tensor, computed again, in float32."""
    t = plan.tasks.index(task.name)
    for part in plan.parts:
        if (part.task, part.info.name) == (task.name, name):
            return _part(plan, part)
    step = next(step for step in plan.steps if step.name == name)
    base = plan.base.read(name)
    if name not in planned.held or not step.is_merged:
        return base
    rank = int(planned.config["r"]) if planned.profile == "serving" else task.ranks.get(name, 0)
    change = _change(plan, task, step, t, rank)
    if isinstance(change, WholeChange):
        return change.value
    deltas = [(f.u * f.s) @ f.vh for f in change.matrices]
    return base.float() + torch.stack(deltas).reshape(base.shape)
