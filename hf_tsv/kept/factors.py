"""The second pass of a compression: the leading singular triplets of every changed matrix that isn't stored whole."""

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict

from hf_tsv.checkpoints.dtypes import BY_WORD
from hf_tsv.checkpoints.protocol import TensorInfo
from hf_tsv.files.names import Profile
from hf_tsv.kept.spectra import matrices_of
from hf_tsv.kept.task import TaskAdapters
from hf_tsv.kept.workplace import Workplace
from hf_tsv.linalg import Factors, truncated_svd
from hf_tsv.linalg.ranks import Dense
from hf_tsv.lora.write.changes import Change, LowRankChange, WholeChange
from hf_tsv.merging.plan import Plan, Step
from hf_tsv.merging.stored import StoredTensor
from hf_tsv.merging.surveys import naming
from hf_tsv.staging.findings import Findings, packed, unpacked

STAGE = "factors"


class FactorNotes(BaseModel):
    """The journal's notes on a task's tensor after this pass.

    Attributes:
        counts: Number of triplets of each of the tensor's matrices.
        energies: Squared Frobenius norm of each matrix's change; None where it isn't known.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    counts: list[int]
    energies: list[float | None]


def factor_infos(plan: Plan, tasks: Sequence[TaskAdapters]) -> list[TensorInfo]:
    """Return the headers of the second pass's tensors: (matrices, rank, m + 1 + n) for each task and tensor."""
    infos = []
    for task in tasks:
        for step in plan.merged:
            rank = task.factored_rank(step)
            if step.view and rank is not None:
                shape = (step.view.count, rank, step.view.m + 1 + step.view.n)
                infos.append(TensorInfo(task.key(step), shape, BY_WORD[plan.recipe.dtype].name))
    return infos


def find_factors(plan: Plan, tasks: Sequence[TaskAdapters], findings: Findings, work: Workplace) -> None:
    """Compute the factors that the planned adapters need, except those that an earlier start of the job computed.

    Raises:
        MethodError: a decomposition fails; names task and tensor.
    """

    def find(step: Step) -> None:
        matrices = matrices_of(plan, step)
        for task, rank in _ranks_left(tasks, findings, step):
            with naming(step, "compress"):
                factors = [_leading_factors(matrix, task.index, rank) for matrix in matrices]
            notes = FactorNotes(
                counts=[len(f.s) for f in factors],  # may be less than the rank; `packed` fills up the rows
                energies=[f.energy for f in factors],
            )
            findings.put(task.key(step), packed(factors, rank), notes)

    steps_left = [step for step in plan.merged if _ranks_left(tasks, findings, step)]
    work.run(plan, steps_left, find)
    # From here on, a later start of the job computes no factors again.
    findings.sync()


def change_of(plan: Plan, task: TaskAdapters, profile: Profile, findings: Findings, step: Step) -> Change:
    """Return one tensor's change for an adapter: its factors, or its new value as a whole."""
    rank = task.rank_in(profile, step.name)
    if isinstance(rank, Dense) or step.view is None:
        values = [matrix.value(task.index) for matrix in matrices_of(plan, step)]
        value = torch.cat(values) if len(values) > 1 else values[0]
        return WholeChange(value.to(step.info.torch_dtype))
    key = task.key(step)
    notes = findings.notes(key, FactorNotes)
    rows = findings.read(key)[:, :rank]  # (matrices, rank, m + 1 + n)
    return LowRankChange(unpacked(rows, step.view.m, notes.counts, notes.energies))


def _ranks_left(tasks: Sequence[TaskAdapters], findings: Findings, step: Step) -> list[tuple[TaskAdapters, int]]:
    """Return the tasks whose factors of a tensor are still to be computed, each with its rank."""
    left = []
    for task in tasks:
        rank = task.factored_rank(step)
        if rank is not None and task.key(step) not in findings:
            left.append((task, rank))
    return left


def _leading_factors(matrix: StoredTensor, t: int, rank: int) -> Factors:
    """Return the first `rank` singular triplets of one task's change of a matrix."""
    deltas = matrix.deltas()
    exact = deltas.factors(t)
    if exact:  # the source is an adapter: it has few triplets, and all of them are known
        return Factors(exact.u[:, :rank], exact.s[:rank], exact.vh[:rank], energy=exact.energy)
    delta = deltas[t]  # (m, n)
    with deltas.naming(t):
        return truncated_svd(delta, rank, floor=deltas.noise(t))
