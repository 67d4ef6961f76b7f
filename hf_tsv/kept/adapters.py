"""Compression of every task's change into an adapter (TSV-Compress, https://arxiv.org/abs/2412.00081).

Two passes over the tensors, each holding a few of them at a time: `spectra.py` finds singular values, from which
`choice.py` chooses the ranks; `factors.py` then computes the factors. These findings are kept on the disk, so that a
stopped job can resume. The adapters are written from them, and PEFT's reading of each is compared with the intended
values.
"""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from hf_tsv.files.names import Profile
from hf_tsv.kept import factors, spectra
from hf_tsv.kept.choice import choose_adapters
from hf_tsv.kept.factors import change_of, factor_infos, find_factors
from hf_tsv.kept.settings import AdapterSettings
from hf_tsv.kept.spectra import find_spectra
from hf_tsv.kept.task import TaskAdapters
from hf_tsv.kept.workplace import Workplace
from hf_tsv.linalg.ranks import Compression, Dense, summarize
from hf_tsv.lora.architecture import read_architecture
from hf_tsv.lora.check.verify import verify_adapter
from hf_tsv.lora.formats import ADAPTERS, FORMATS
from hf_tsv.lora.write.changes import WholeChange
from hf_tsv.lora.write.plan import BaseRef
from hf_tsv.lora.write.writer import AdapterWriter
from hf_tsv.merging.cost import total_work
from hf_tsv.merging.plan import Plan, Step, TaskPart
from hf_tsv.merging.pool import one_thread_each
from hf_tsv.merging.resources import check_disk
from hf_tsv.record import AdapterReport, AdapterReports, VerifiedReport
from hf_tsv.sources.companions import copy_config
from hf_tsv.staging.findings import Findings
from hf_tsv.staging.journal import Journal


def compress_tasks(plan: Plan, base: BaseRef, settings: AdapterSettings, work: Workplace) -> AdapterReports:
    """Write an adapter for every task, and check how PEFT reads it.

    Findings of an earlier start of the job are not computed again. During the job, the factors take disk space beside
    the adapters, in the recipe's dtype.

    Args:
        plan: The plan. The tensors that it merges are compressed.
        base: The base model's name in the adapters.
        settings: The settings of the compression.
        work: The workplace. `adapters/TASK` and the like are written to its output.

    Returns:
        The record's report on each adapter, by task and profile.

    Raises:
        MethodError: a budget is too small for what is stored whole, or a change holds NaN or infinity.
        CheckpointError: transformers and PEFT can't load the base, or PEFT reads an adapter differently from the
            intended values; names the modules.
        OutputError, ResourceError: the working folder can't be written.
    """
    headers = {name: plan.base.info(name) for name in plan.base.names()}
    tasks = []
    for t, name in enumerate(plan.tasks):
        own_parts = {part.info.name: part.info for part in plan.parts if part.task == name}
        # A task with a head of its own is a model of its own configuration, for example with other labels.
        own_config = work.folders[name] if own_parts else None
        architecture = read_architecture(headers | own_parts, work.folders[None], config_folder=own_config)
        tasks.append(TaskAdapters(name, t, architecture))
    work_left = 0.0
    for stage in (spectra.STAGE, factors.STAGE):
        # The journal has one line per task and tensor; a tensor is done for all tasks together.
        done_steps = {key.partition("/")[2] for key in Journal.read_done(work.staging, stage)}
        work_left += total_work(plan, (step for step in plan.merged if step.name not in done_steps))
    work.progress.begin(work_left)
    with one_thread_each():
        find_spectra(plan, tasks, settings, work)
        sharing_tasks = [tasks] if settings.together else [[task] for task in tasks]
        for sharers in sharing_tasks:
            choose_adapters(sharers, base, settings)
        # The sizes are known now, before any factor is computed.
        nbytes = 0
        for task in tasks:
            nbytes += sum(planned.nbytes for planned in task.plans.values())
        check_disk(work.out, nbytes)
        with work.open_findings(factors.STAGE, factor_infos(plan, tasks)) as findings:
            find_factors(plan, tasks, findings, work)
            reports = _write_adapters(plan, tasks, findings, work)
            # The configuration of a task with a head of its own is needed to restore the task.
            tasks_with_parts = {part.task for part in plan.parts}
            for task in tasks:
                if task.name in tasks_with_parts:
                    for profile in task.plans:
                        copy_config(work.folders[task.name], work.out / ADAPTERS[profile] / task.name)
            _verify_adapters(plan, tasks, findings, settings, reports, work.out)
    return reports


def _write_adapters(plan: Plan, tasks: Sequence[TaskAdapters], findings: Findings, work: Workplace) -> AdapterReports:
    """Write every changed tensor to every adapter that holds it, and return the reports."""
    with ExitStack() as open_writers:
        writers: list[tuple[TaskAdapters, Profile, AdapterWriter]] = []
        for task in tasks:
            for profile, planned in task.plans.items():
                folder = work.out / ADAPTERS[profile] / task.name
                # An earlier start of the job may have left files, perhaps with another version of PEFT.
                shutil.rmtree(folder, ignore_errors=True)
                writer = open_writers.enter_context(AdapterWriter(folder, planned, plan.base))
                writers.append((task, profile, writer))

        def put(step: Step) -> None:
            for task, profile, writer in writers:
                if step.name in task.ranks or step.name in task.spectra:
                    writer.put(step.name, change_of(plan, task, profile, findings, step))

        work.run(plan, plan.merged, put, quiet=True)
        for part in plan.parts:
            for task, _, writer in writers:
                if task.name == part.task:
                    writer.put(part.info.name, WholeChange(_part_value(plan, part)))
        reports: AdapterReports = {task.name: {} for task in tasks}
        for task, profile, writer in writers:
            reports[task.name][profile] = _report(task, profile, writer)
    return reports


def _report(task: TaskAdapters, profile: Profile, writer: AdapterWriter) -> AdapterReport:
    """Finish an adapter, and report its contents and its distance from the task's change."""
    written = writer.finish()
    ranks = task.ranks_in(profile)
    ranks_of_matrices = {name: ranks.get(name, 0) for name in task.spectra}
    summary: Compression[str] = summarize(task.spectra, ranks_of_matrices)
    # A format that leaves out kinds of module by design is judged only by the tensors that it holds.
    is_complete = FORMATS[profile].is_complete
    errors = {name: error for name, error in summary.errors.items() if is_complete or name in ranks}
    plain_ranks: dict[str, int | Literal["dense"]] = {}
    for name, rank in sorted(ranks.items()):
        plain_ranks[name] = rank.value if isinstance(rank, Dense) else rank
    return AdapterReport(
        bytes=written.nbytes,
        tensors=written.held,
        left_out=dict(written.left_out),
        in_sidecar=tuple(written.in_sidecar),
        left_out_share=written.left_out_share,
        energy=summary.energy,
        errors=errors,
        ranks=plain_ranks,
    )


def _verify_adapters(
    plan: Plan,
    tasks: Sequence[TaskAdapters],
    findings: Findings,
    settings: AdapterSettings,
    reports: AdapterReports,
    out: Path,
) -> None:
    """Compare PEFT's reading of every adapter with the intended values, and add the errors to `reports`."""
    for task in tasks:
        for profile in task.plans:
            if not FORMATS[profile].is_read_by_peft:
                continue
            folder = out / ADAPTERS[profile] / task.name
            expected = partial(_expected_value, plan, task, profile, findings)
            checked = verify_adapter(folder, task.architecture, expected, forward=settings.verify == "forward")
            verified = VerifiedReport(
                tensors=checked.tensors, largest_error=checked.largest_error, logits_error=checked.logits_error
            )
            report = reports[task.name][profile]
            reports[task.name][profile] = report.model_copy(update={"verified": verified})


def _expected_value(plan: Plan, task: TaskAdapters, profile: Profile, findings: Findings, name: str) -> Tensor:
    """Return the value that the adapter should give one tensor; in float32 where it is factored."""
    for part in plan.parts:
        if (part.task, part.info.name) == (task.name, name):
            return _part_value(plan, part)
    step = next(step for step in plan.steps if step.name == name)
    base = plan.base.read(name)
    if name not in task.plans[profile].held or not step.is_merged:
        return base
    change = change_of(plan, task, profile, findings, step)
    if isinstance(change, WholeChange):
        return change.value
    # u (m, r), s (r), vh (r, n)
    deltas = [(f.u * f.s) @ f.vh for f in change.matrices]  # (m, n) each
    delta = torch.stack(deltas).reshape(base.shape)  # one matrix, or a stack of matrices
    return base.float() + delta


def _part_value(plan: Plan, part: TaskPart) -> Tensor:
    """Read a tensor that only one task has, as its model stores it."""
    finetuned = plan.finetuned[plan.tasks.index(part.task)]
    return finetuned.read(part.info.name)
