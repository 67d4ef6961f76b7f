"""A merge written as an adapter on the base, instead of a checkpoint."""

from dataclasses import replace
from functools import lru_cache

from torch import Tensor

from hf_tsv.checkpoints.dtypes import BY_WORD
from hf_tsv.checkpoints.protocol import TensorInfo
from hf_tsv.checkpoints.view import View
from hf_tsv.kept.adapters import compress_tasks
from hf_tsv.kept.settings import AdapterSettings
from hf_tsv.kept.workplace import Workplace
from hf_tsv.linalg.ranks import RankChoice
from hf_tsv.lora.formats import ADAPTERS, DEFAULT
from hf_tsv.lora.write.plan import BaseRef
from hf_tsv.merging.engine import merge_step
from hf_tsv.merging.plan import Plan
from hf_tsv.merging.surveys import run_surveys
from hf_tsv.methods.tsv_c import tsv_c
from hf_tsv.record import AdapterReports

MERGED = "merged"  # name of the single task


def write_as_adapter(plan: Plan, base: BaseRef, rule: RankChoice, work: Workplace) -> AdapterReports:
    """Write a merge's change of the base as a PEFT adapter, and have PEFT load it.

    The adapter's factors are the leading singular triplets of the merged change, the closest factors of their rank.
    Every merged tensor is computed twice: for its rank and for its factors.

    Args:
        plan: The merge. Its output is in float32, so that the change isn't rounded to the base's dtype.
        base: The base model's name in the adapter.
        rule: The rule for the number of triplets to keep of each matrix. A merge of T LoRA adapters of rank r has at
            most T r.
        work: The workplace. The adapter's files are written to its output.

    Returns:
        The reports of `compress_tasks`; the single task is called `merged`. Errors are those of `compress_tasks`, too.
    """
    # The merged model is treated as the fine-tune of a single task, and all of its change is compressed.
    steps = []
    for step in plan.steps:
        if step.is_merged:
            step = replace(step, method=tsv_c.name, weights=(1.0,), parameters={})
        steps.append(step)
    merged = _Merged(plan, work)
    plan_of_one = replace(plan, tasks=(MERGED,), finetuned=(merged,), steps=tuple(steps), parts=())
    factor_dtype = plan.recipe.adapters.factor_dtype
    settings = AdapterSettings(
        rules={step.name: rule for step in plan_of_one.merged},
        factor_dtype=BY_WORD[factor_dtype].name if factor_dtype else None,
        verify=plan.recipe.adapters.verify,
    )
    reports = compress_tasks(plan_of_one, base, settings, work)
    # The output is one adapter, not a folder of adapters.
    folder = work.out / ADAPTERS[DEFAULT]
    for file in (folder / MERGED).iterdir():
        file.rename(work.out / file.name)
    (folder / MERGED).rmdir()
    folder.rmdir()
    return reports


class _Merged(View):
    """The merged model, with the base's names. Each tensor is merged when it is read."""

    def __init__(self, plan: Plan, work: Workplace) -> None:
        super().__init__(plan.base, label="the merged model")
        self._plan = plan
        self._steps = {step.name: step for step in plan.steps}
        self._surveys = run_surveys(plan, plan.steps, work.resources, work.progress)
        # The matrices of a stack are read one after another, and each of them more than once.
        self._whole = lru_cache(maxsize=work.resources.workers)(self._merge)

    def info(self, name: str) -> TensorInfo:
        return self._steps[name].out

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        whole = self._whole(name)
        part = whole[rows[0] : rows[1]] if rows else whole
        # A caller may change the tensor that it reads, so it gets a copy of the cached one.
        return part.clone()

    def will_need(self, name: str) -> None:
        for checkpoint in self._plan.finetuned:
            checkpoint.will_need(name)

    def fingerprint(self) -> str:
        checkpoints = (self._plan.base, *self._plan.finetuned)
        return "\0".join(checkpoint.fingerprint() for checkpoint in checkpoints)

    def _merge(self, name: str) -> Tensor:
        step = self._steps[name]
        merged, _ = merge_step(self._plan, step, self._surveys.of(step))
        return merged
