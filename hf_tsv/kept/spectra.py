"""The first pass of a compression: finds the tensors that each task changed, and the singular values of matrices.

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
NOISE_FLOOR = 1e-6  # relative to the largest singular value: float32 arithmetic turns zeros into values up to this


class SpectrumFacts(BaseModel):
    """The fields of a `Spectrum` except its values, which are stored as a tensor."""

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
    """The journal's notes on a task's tensor after this pass.

    Attributes:
        is_changed: True if the task changed the tensor.
        spectrum: Facts about the change's singular values; None for a tensor that is no matrix, is unchanged, or has
            only noise.
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
            # Read from the files, so that the bits are the same whichever start of the job found them.
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
    """Return the tensor, or each matrix of a stack by itself, as task matrices whatever the step's method is."""
    count = step.view.count if step.view else 1
    if count == 1:
        return [StoredTensor(plan, step, None, as_matrix=True)]
    return [StoredTensor(plan, step, (i, i + 1), as_matrix=True) for i in range(count)]


def _find_spectra_of(
    plan: Plan, tasks: Sequence[TaskAdapters], settings: AdapterSettings, findings: Findings, step: Step
) -> None:
    """Note for every task whether it changed a tensor and, for matrices, the singular values of the change."""
    matrices = matrices_of(plan, step)
    for task in tasks:
        if task.key(step) in findings:
            continue
        is_changed = any(matrix.is_changed(task.index) for matrix in matrices)
        spectrum = None
        if is_changed and step.view:
            with naming(step, "compress"):
                # The matrices of a stack have one common rank, so they compete for bytes as one matrix.
                spectrum = pooled([_spectrum(step, matrix, task.index, settings) for matrix in matrices])
        if spectrum is None or not spectrum.full_rank:  # unchanged, not a matrix, or only noise
            findings.put(task.key(step), None, SpectrumNotes(is_changed=is_changed))
            continue
        # The file has room for all singular values; a source adapter has fewer, so the rest are zeros.
        values = torch.zeros(min(spectrum.m, spectrum.n), dtype=torch.float64)
        values[: len(spectrum.values)] = spectrum.values
        facts = SpectrumFacts(**{name: getattr(spectrum, name) for name in SpectrumFacts.model_fields})
        findings.put(task.key(step), values, SpectrumNotes(is_changed=True, spectrum=facts))


def _spectrum(step: Step, matrix: StoredTensor, t: int, settings: AdapterSettings) -> Spectrum:
    """Compute the singular values of one task's change of a matrix, and what its triplets cost and are worth."""
    deltas = matrix.deltas()
    factors = deltas.factors(t)
    if factors:  # the source is an adapter: nothing has to be decomposed
        values = factors.s.double()
    else:
        delta = deltas[t]  # (m, n)
        with deltas.naming(t):
            values = singular_values(delta)
    item = step.info.nbytes // step.info.numel  # bytes per number
    factor_dtype = settings.dtype_of_factors
    m, n = deltas.shape
    largest = float(values[0]) if len(values) else 0.0
    # A change is measured relative to the layer's own weights; a base of zeros gives no unit, so 1 is used.
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
