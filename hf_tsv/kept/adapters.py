"""Compress every fine-tune of a recipe into an adapter (TSV-Compress, https://arxiv.org/abs/2412.00081).

Two passes over the tensors, each holding a few of them: singular values, from which the ranks are chosen; then
factors. Both are kept on the disk as they are found. Of what is there the adapters are made, and PEFT's reading of
each is compared with it.
"""

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_tsv.checkpoints.protocol import ITEM_BYTES, TensorInfo
from hf_tsv.checkpoints.safetensors import TORCH_DTYPES
from hf_tsv.errors import MethodError, some
from hf_tsv.files.names import Profile
from hf_tsv.kept.options import Compressing
from hf_tsv.linalg import Factors, singular_values, truncated_svd
from hf_tsv.linalg.ranks import DENSE, Budget, Compression, Dense, Spectrum, choose_ranks, pooled, summarize
from hf_tsv.lora.architecture import Architecture, read_architecture
from hf_tsv.lora.check.verify import verify_adapter
from hf_tsv.lora.formats import ADAPTERS, DEFAULT, FORMATS
from hf_tsv.lora.write.changes import Change, LowRankChange, WholeChange
from hf_tsv.lora.write.plan import AdapterPlan, AdapterRequest, BaseRef
from hf_tsv.lora.write.writer import AdapterWriter
from hf_tsv.merging.engine import each_step, naming, one_thread_each
from hf_tsv.merging.plan import STORED, Plan, Step, TaskPart
from hf_tsv.merging.progress import Progress, Silent
from hf_tsv.merging.resources import Resources
from hf_tsv.merging.stored import StoredTensor
from hf_tsv.methods import Deltas
from hf_tsv.sources.companions import copy_config
from hf_tsv.staging.findings import Findings, packed, unpacked
from hf_tsv.staging.folder import Staging
from hf_tsv.staging.journal import Journal

SPECTRA, FACTORS = "spectra", "factors"  # the stages of a run
ATTEMPTS = 6  # to meet a budget: what PEFT makes of the ranks is known only once it is planned


@dataclass
class _Task:
    """What is known of one task on the way.

    Attributes:
        spectra: Its changed matrices, by tensor, in the plan's order.
        whole: Bytes of each tensor that is stored whole: changed and no matrix, or its own alone.
        ranks: What was chosen to be kept of every changed tensor.
        plans: Of its adapters.
    """

    name: str
    spectra: dict[str, Spectrum] = field(default_factory=dict)
    whole: dict[str, int] = field(default_factory=dict)
    ranks: dict[str, int | Dense] = field(default_factory=dict)
    plans: dict[Profile, AdapterPlan] = field(default_factory=dict)

    def key(self, step: Step) -> str:
        """What findings about a tensor go by; a task's name has no slash."""
        return f"{self.name}/{step.name}"

    def rank_in(self, profile: Profile, name: str) -> int | Dense:
        """What an adapter gets of a changed tensor: other than was chosen where PEFT, or a server, takes no such."""
        return DENSE if name in self.whole else self.plans[profile].ranks.get(name, 0)

    def kept_in(self, profile: Profile) -> dict[str, int | Dense]:
        """What an adapter holds of each tensor, in its sidecar as well; without what fills up factors with zeros."""
        most = {name: spectrum.full_rank for name, spectrum in self.spectra.items()}
        return {
            name: rank if isinstance(rank, Dense) else min(rank, most.get(name, rank))
            for name, rank in self.plans[profile].ranks.items()
        }

    def factored(self, step: Step) -> int | None:
        """Triplets that have to be computed of a tensor, so many that they do for every profile; None for none."""
        ranks = [self.rank_in(profile, step.name) for profile in self.plans if step.name in self.spectra]
        return max((rank for rank in ranks if not isinstance(rank, Dense)), default=None)


def compress_tasks(
    plan: Plan,
    folders: Mapping[str | None, Path],
    staging: Staging,
    identity: Mapping[str, str],
    base: BaseRef,
    options: Compressing,
    resources: Resources,
    progress: Progress,
    *,
    in_order: bool = False,
) -> dict[str, dict[str, Any]]:
    """Write an adapter of every task, and have PEFT read it.

    What an earlier start of the run has found is not computed again. While it works, the factors take room in float32
    beside the adapters.

    Args:
        plan: Which tensors take part: those that it merges.
        folders: Where the base (None) and the fine-tuned models lie.
        staging: The run's working folder; `adapters/TASK` and `adapters-serving/TASK` come to lie in what it publishes.
        identity: What the run is, for its journal.
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
        OutputError, ResourceError: the working folder can't be written.
    """
    tasks = [_Task(name) for name in plan.tasks]
    architectures = [_architecture(plan, task.name, folders) for task in tasks]
    progress.begin(sum(_work_left(plan, Journal.read_done(staging, stage)) for stage in (SPECTRA, FACTORS)))
    with one_thread_each():
        with Findings(staging, identity, SPECTRA, _spectra_infos(plan, tasks)) as spectra:
            _survey(plan, tasks, spectra, options, resources, progress, in_order=in_order)
        sharing = [tasks] if options.together else [[task] for task in tasks]
        for group in sharing:
            _choose(group, [architectures[tasks.index(task)] for task in group], base, options)
        with Findings(staging, identity, FACTORS, _factor_infos(plan, tasks)) as factors:
            _factor(plan, tasks, factors, resources, progress, in_order=in_order)
            reports = _write(plan, tasks, factors, staging.out, resources, in_order=in_order)
            _copy_configs(plan, tasks, folders, staging.out)
            _verify(plan, tasks, factors, architectures, staging.out, options, reports)
    return reports


def _work_left(plan: Plan, done: Set[str]) -> float:
    """A tensor counts as done in a stage once it is for one of the tasks: they go together."""
    tasks = [_Task(name) for name in plan.tasks]
    return sum(plan.work(step) for step in plan.merged if not any(task.key(step) in done for task in tasks))


def _spectra_infos(plan: Plan, tasks: Sequence[_Task]) -> list[TensorInfo]:
    matrices = [(step, step.view) for step in plan.merged if step.view]
    return [TensorInfo(task.key(step), (min(view.m, view.n),), "F64") for step, view in matrices for task in tasks]


def _survey(
    plan: Plan,
    tasks: Sequence[_Task],
    found: Findings,
    options: Compressing,
    resources: Resources,
    progress: Progress,
    *,
    in_order: bool,
) -> None:
    """The first pass: which tensors each task changed, and the singular values of those that are matrices."""
    left = [step for step in plan.merged if any(task.key(step) not in found.done for task in tasks)]
    observe = partial(_observe, plan, tasks, found, options)
    each_step(left, observe, plan, resources, progress, plan.work, in_order=in_order)
    for task in tasks:
        for step in plan.merged:
            facts = found.done[task.key(step)]
            if "spectrum" in facts:
                task.spectra[step.name] = Spectrum(found.read(task.key(step)), **facts["spectrum"])
            elif facts["changed"]:
                task.whole[step.name] = step.info.nbytes
        task.whole |= {part.info.name: part.info.nbytes for part in plan.parts if part.task == task.name}


def _observe(plan: Plan, tasks: Sequence[_Task], found: Findings, options: Compressing, step: Step) -> None:
    slices = _slices(plan, step)
    for t, task in enumerate(tasks):
        if task.key(step) in found.done:
            continue
        changed = any(stored.is_changed(t) for stored in slices)
        with naming(step, "compress"):
            spectrum = pooled([_spectrum(step, s, t, options) for s in slices]) if changed and step.view else None
        if spectrum is None or not spectrum.full_rank:
            found.put(task.key(step), None, changed=changed)
            continue
        values = torch.zeros(min(spectrum.m, spectrum.n), dtype=torch.float64)
        values[: len(spectrum.values)] = spectrum.values
        facts = {f.name: getattr(spectrum, f.name) for f in fields(spectrum) if f.name != "values"}
        found.put(task.key(step), values, spectrum=facts)


def _spectrum(step: Step, stored: StoredTensor, t: int, options: Compressing) -> Spectrum:
    deltas = stored.deltas()
    known = deltas.factors(t)
    values = known.s.double() if known else _values(deltas, t)
    item = step.info.nbytes // step.info.numel
    dtype = options.dtype_of_factors
    m, n = deltas.shape
    return Spectrum(
        values=values,
        m=m,
        n=n,
        noise=max(deltas.noise(t), 1e-6 * float(values[0]) if len(values) else 0.0),
        unit=float(stored.base.double().square().mean().sqrt()) or 1.0,
        factor_item=ITEM_BYTES[dtype] if dtype else item,
        whole_item=item,
    )


def _values(deltas: Deltas, t: int) -> Tensor:
    delta = deltas[t]
    with deltas.naming(t):
        return singular_values(delta)


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
    """Choose the ranks and plan the adapters of tasks that share their budgets.

    A budget is met by the default format, which takes the ranks as they are chosen; for the others it is a limit.
    """
    fixed = sum(sum(task.whole.values()) for task in tasks)
    budget = None if options.budget is None else options.budget * len(tasks)
    request = AdapterRequest(base, options.dtype_of_factors, options.serving_rank, options.budget)
    by_task = {task.name: architecture for task, architecture in zip(tasks, architectures, strict=True)}
    for attempt in range(ATTEMPTS):
        _choose_ranks(tasks, by_task, options, fixed)
        planned = [
            FORMATS[DEFAULT].plan(architecture, task.ranks, request)
            for task, architecture in zip(tasks, architectures, strict=True)
        ]
        nbytes = sum(plan.nbytes for plan in planned)
        if budget is None or nbytes <= budget:
            break
        fixed += (nbytes - budget) << attempt  # other ranks may need a longer header
    else:
        names = some([task.name for task in tasks])
        raise MethodError(f"{names}: expected {budget} bytes but it takes {nbytes}, most of it stored whole. Raise it")
    for task, architecture, default in zip(tasks, architectures, planned, strict=True):
        ranks = {**dict.fromkeys(task.spectra, 0), **task.ranks}
        for profile in options.profiles:
            is_planned = profile == DEFAULT
            task.plans[profile] = default if is_planned else FORMATS[profile].plan(architecture, ranks, request)


def _choose_ranks(
    tasks: Sequence[_Task], architectures: Mapping[str, Architecture], options: Compressing, fixed_bytes: int
) -> None:
    spectra = {(task.name, name): spectrum for task in tasks for name, spectrum in task.spectra.items()}
    chosen: dict[tuple[str, str], int | Dense] = {}
    for rule in options.rules:
        own = {key: spectrum for key, spectrum in spectra.items() if options.rule_of(key[1]) == rule}
        if isinstance(rule, Budget):
            before = fixed_bytes + sum(spectra[key].bytes_at(rank) for key, rank in chosen.items())
            chosen |= _choose_within(Budget(rule.nbytes * len(tasks)), own, architectures, before)
        else:
            chosen |= choose_ranks(own, rule)
    for task in tasks:
        kept = {name: rank for (owner, name), rank in chosen.items() if owner == task.name and rank}
        task.ranks = {**kept, **dict.fromkeys(task.whole, DENSE)}


def _choose_within(
    budget: Budget,
    spectra: Mapping[tuple[str, str], Spectrum],
    architectures: Mapping[str, Architecture],
    fixed_bytes: int,
) -> dict[tuple[str, str], int | Dense]:
    """Ranks under a budget at PEFT's prices, and one rank for what PEFT gives one: experts of a layer."""
    groups: defaultdict[tuple[str, str], dict[tuple[str, str], Spectrum]] = defaultdict(dict)
    for (task, name), spectrum in spectra.items():
        place = architectures[task].place(name)
        priced = replace(spectrum, rank_numbers=place.rank_numbers) if place.low_rank else spectrum
        groups[task, place.group][task, name] = priced
    sums = {group: pooled(list(members.values())) for group, members in groups.items()}
    ranks = choose_ranks(sums, budget, fixed_bytes=fixed_bytes)
    return {
        key: rank if isinstance(rank := ranks[group], Dense) else min(rank, spectrum.full_rank)
        for group, members in groups.items()
        for key, spectrum in members.items()
    }


def _factor_infos(plan: Plan, tasks: Sequence[_Task]) -> list[TensorInfo]:
    return [
        TensorInfo(task.key(step), (step.view.count, rank, step.view.m + 1 + step.view.n), STORED[plan.recipe.dtype])
        for task in tasks
        for step in plan.merged
        if step.view and (rank := task.factored(step)) is not None
    ]


def _factor(
    plan: Plan,
    tasks: Sequence[_Task],
    found: Findings,
    resources: Resources,
    progress: Progress,
    *,
    in_order: bool,
) -> None:
    """The second pass: factors of every changed matrix that isn't stored whole."""

    def left(step: Step) -> list[tuple[int, _Task, int]]:
        ranks = ((t, task, task.factored(step)) for t, task in enumerate(tasks) if task.key(step) not in found.done)
        return [(t, task, rank) for t, task, rank in ranks if rank is not None]

    def do(step: Step) -> None:
        slices = _slices(plan, step)
        for t, task, rank in left(step):
            with naming(step, "compress"):
                made = [_factors(stored, t, rank) for stored in slices]
            facts = {"kept": [len(f.s) for f in made], "energies": [f.energy for f in made]}
            found.put(task.key(step), packed(made, rank), **facts, fell_back=sum(f.fell_back for f in made))

    each_step(list(filter(left, plan.merged)), do, plan, resources, progress, plan.work, in_order=in_order)
    found.sync()


def _write(
    plan: Plan, tasks: Sequence[_Task], found: Findings, out: Path, resources: Resources, *, in_order: bool
) -> dict[str, dict[str, Any]]:
    """Put every changed tensor into every adapter that holds it."""
    with ExitStack() as open_files:
        writers: dict[tuple[int, Profile], AdapterWriter] = {}
        for t, task in enumerate(tasks):
            for profile, planned in task.plans.items():
                folder = out / ADAPTERS[profile] / task.name
                shutil.rmtree(folder, ignore_errors=True)  # of an earlier start, perhaps with another PEFT
                writers[t, profile] = open_files.enter_context(AdapterWriter(folder, planned, plan.base))
        put = partial(_put, plan, tasks, found, writers)
        each_step(plan.merged, put, plan, resources, Silent(), plan.work, in_order=in_order)
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
                **_facts(plan, tasks[t], profile, found),
            }
    return reports


def _verify(
    plan: Plan,
    tasks: Sequence[_Task],
    found: Findings,
    architectures: Sequence[Architecture],
    out: Path,
    options: Compressing,
    reports: Mapping[str, dict[str, Any]],
) -> None:
    """Compare PEFT's reading of every adapter with what was meant, and report how near it comes."""
    for task, architecture in zip(tasks, architectures, strict=True):
        for profile, planned in task.plans.items():
            expected = partial(_expected, plan, task, planned, found)
            if not FORMATS[profile].is_read_by_peft:
                continue
            folder = out / ADAPTERS[profile] / task.name
            checked = verify_adapter(folder, architecture, expected, forward=options.verify == "forward")
            reports[task.name][profile]["verified"] = {
                "tensors": checked.tensors,
                "largest_error": checked.largest_error,
                "logits_error": checked.logits_error,
            }


def _copy_configs(plan: Plan, tasks: Sequence[_Task], folders: Mapping[str | None, Path], out: Path) -> None:
    """A task with a head of its own needs its own configuration to be restored."""
    with_parts = {part.task for part in plan.parts}
    for task in (task for task in tasks if task.name in with_parts):
        for profile in task.plans:
            copy_config(folders[task.name], out / ADAPTERS[profile] / task.name)


def _facts(plan: Plan, task: _Task, profile: Profile, found: Findings) -> dict[str, Any]:
    kept = task.kept_in(profile)
    summary: Compression[str] = summarize(task.spectra, {name: kept.get(name, 0) for name in task.spectra})
    is_complete = FORMATS[profile].is_complete  # of others only what they hold is reported
    errors = {name: error for name, error in summary.errors.items() if is_complete or name in kept}
    fell_back = sum(found.done.get(task.key(step), {}).get("fell_back", 0) for step in plan.merged)
    return {
        "energy": summary.energy,
        "errors": errors,
        "ranks": _plain(kept),
        **({"fell_back": fell_back} if fell_back else {}),
    }


def _plain(ranks: Mapping[str, int | Dense]) -> dict[str, int | str]:
    return {name: rank.value if isinstance(rank, Dense) else rank for name, rank in sorted(ranks.items())}


def _put(
    plan: Plan,
    tasks: Sequence[_Task],
    found: Findings,
    writers: Mapping[tuple[int, Profile], AdapterWriter],
    step: Step,
) -> None:
    for (t, profile), writer in writers.items():
        if step.name in tasks[t].ranks or step.name in tasks[t].spectra:
            writer.put(step.name, _change(plan, tasks[t], profile, found, step))


def _change(plan: Plan, task: _Task, profile: Profile, found: Findings, step: Step) -> Change:
    rank = task.rank_in(profile, step.name)
    if isinstance(rank, Dense) or step.view is None:
        t = plan.tasks.index(task.name)
        values = [stored.value(t) for stored in _slices(plan, step)]
        return WholeChange((torch.cat(values) if len(values) > 1 else values[0]).to(TORCH_DTYPES[step.info.dtype]))
    key = task.key(step)
    facts = found.done[key]
    matrices = unpacked(found.read(key)[:, :rank], step.view.m, facts["kept"], facts["energies"])
    return LowRankChange(matrices)


def _factors(stored: StoredTensor, t: int, rank: int) -> Factors:
    deltas = stored.deltas()
    if known := deltas.factors(t):
        return Factors(known.u[:, :rank], known.s[:rank], known.vh[:rank], energy=known.energy)
    delta = deltas[t]
    with deltas.naming(t):
        return truncated_svd(delta, rank, floor=deltas.noise(t))


def _part(plan: Plan, part: TaskPart) -> Tensor:
    return plan.finetuned[plan.tasks.index(part.task)].read(part.info.name)


def _expected(plan: Plan, task: _Task, planned: AdapterPlan, found: Findings, name: str) -> Tensor:
    """What the adapter should make of one tensor, in float32."""
    for part in plan.parts:
        if (part.task, part.info.name) == (task.name, name):
            return _part(plan, part)
    step = next(step for step in plan.steps if step.name == name)
    base = plan.base.read(name)
    if name not in planned.held or not step.is_merged:
        return base
    change = _change(plan, task, planned.profile, found, step)
    if isinstance(change, WholeChange):
        return change.value
    deltas = [(f.u * f.s) @ f.vh for f in change.matrices]
    return base.float() + torch.stack(deltas).reshape(base.shape)
