"""The first pass of a compression: which tensors each task changed, and the singular values of those that are matrices.

Ranks are chosen from singular values alone, so that no singular vector is computed in vain.
"""

from collections.abc import Sequence
from functools import partial

import torch
from pydantic import BaseModel, ConfigDict

from hf_tsv.checkpoints.dtypes import DTYPES
from hf_tsv.checkpoints.protocol import TensorInfo
from hf_tsv.kept.settings import AdapterSettings
from hf_tsv.kept.task import TaskAdapters
from hf_tsv.kept.workplace import Workplace
from hf_tsv.linalg import singular_values
from hf_tsv.linalg.ranks import Spectrum, pooled
from hf_tsv.merging.plan import Plan, Step
from hf_tsv.merging.stored import StoredTensor
from hf_tsv.merging.surveys import naming
from hf_tsv.staging.findings import Findings

STAGE = "spectra"
NOISE_FLOOR = 1e-6  # of the largest singular value: what float32 arithmetic leaves of a zero


class SpectrumFacts(BaseModel):
    """A `Spectrum` without its values, which are a tensor."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    m: int
    n: int
    noise: float
    unit: float
    factor_item: int
    whole_item: int
    rank_numbers: int | None
    whole_numbers: int | None


class SpectrumNotes(BaseModel):
    """What the journal says of a task's tensor after this pass.

    Attributes:
        is_changed: Whether the task changed it.
        spectrum: Facts about its singular values, where it is a matrix.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    is_changed: bool
    spectrum: SpectrumFacts | None = None


def find_spectra(plan: Plan, tasks: Sequence[TaskAdapters], settings: AdapterSettings, work: Workplace) -> None:
    """Fill in `spectra` and `whole` of every task.

    Raises:
        MethodError: NaN or infinity in a change; names task and tensor.
    """
    infos = []
    for step in plan.merged:
        if step.view:
            shape = (min(step.view.m, step.view.n),)
            infos += [TensorInfo(task.key(step), shape, "F64") for task in tasks]
    with work.open_findings(STAGE, infos) as findings:
        steps_left = []
        for step in plan.merged:
            is_found = [task.key(step) in findings for task in tasks]
            if not all(is_found):
                steps_left.append(step)
        work.run(plan, steps_left, partial(_find_spectra_of, plan, tasks, settings, findings))
        for task in tasks:
            # From the files, and so the same bits whether or not this start of the job has found them.
            for step in plan.merged:
                notes = findings.notes(task.key(step), SpectrumNotes)
                if notes.spectrum:
                    values = findings.read(task.key(step))
                    task.spectra[step.name] = Spectrum(values, **notes.spectrum.model_dump())
                elif notes.is_changed:
                    task.whole[step.name] = step.info.nbytes
            for part in plan.parts:
                if part.task == task.name:
                    task.whole[part.info.name] = part.info.nbytes


def matrices_of(plan: Plan, step: Step) -> list[StoredTensor]:
    """The tensor, or each matrix of a stack by itself, whatever the step's method is."""
    count = step.view.count if step.view else 1
    if count == 1:
        return [StoredTensor(plan, step, None, as_matrix=True)]
    return [StoredTensor(plan, step, (i, i + 1), as_matrix=True) for i in range(count)]


def _find_spectra_of(
    plan: Plan, tasks: Sequence[TaskAdapters], settings: AdapterSettings, findings: Findings, step: Step
) -> None:
    """Note of one tensor, for every task, whether it changed and its singular values where it is a matrix."""
    matrices = matrices_of(plan, step)
    for task in tasks:
        if task.key(step) in findings:
            continue
        is_changed = any(matrix.is_changed(task.index) for matrix in matrices)
        spectrum = None
        if is_changed and step.view:
            with naming(step, "compress"):
                # The matrices of a stack have one rank, so they compete for bytes as one.
                spectrum = pooled([_spectrum(step, matrix, task.index, settings) for matrix in matrices])
        if spectrum is None or not spectrum.full_rank:  # not a matrix, or no more of it than noise
            findings.put(task.key(step), None, SpectrumNotes(is_changed=is_changed))
            continue
        # The file has room for all of them; an adapter among the sources has fewer, and zeros fill up.
        values = torch.zeros(min(spectrum.m, spectrum.n), dtype=torch.float64)
        values[: len(spectrum.values)] = spectrum.values
        facts = SpectrumFacts(**{name: getattr(spectrum, name) for name in SpectrumFacts.model_fields})
        findings.put(task.key(step), values, SpectrumNotes(is_changed=True, spectrum=facts))


def _spectrum(step: Step, matrix: StoredTensor, t: int, settings: AdapterSettings) -> Spectrum:
    """The singular values of one task's change of a matrix, and what its triplets cost and are worth."""
    deltas = matrix.deltas()
    factors = deltas.factors(t)
    if factors:  # of an adapter among the sources: nothing has to be decomposed
        values = factors.s.double()
    else:
        delta = deltas[t]  # (m, n)
        with deltas.naming(t):
            values = singular_values(delta)
    item = step.info.nbytes // step.info.numel  # bytes of one number
    factor_dtype = settings.dtype_of_factors
    m, n = deltas.shape
    largest = float(values[0]) if len(values) else 0.0
    # A change is worth what it is in units of the layer's own weights; a base of zeros has no such unit.
    base_rms = float(matrix.base.double().square().mean().sqrt())
    return Spectrum(
        values=values,
        m=m,
        n=n,
        noise=max(deltas.noise(t), NOISE_FLOOR * largest),
        unit=base_rms or 1.0,
        factor_item=DTYPES[factor_dtype].nbytes if factor_dtype else item,
        whole_item=item,
    )
