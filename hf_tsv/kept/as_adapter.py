"""A merge as an adapter on the base, instead of a checkpoint."""

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

MERGED = "merged"  # the name of the one task


def write_as_adapter(plan: Plan, base: BaseRef, rule: RankChoice, work: Workplace) -> AdapterReports:
    """Write what a merge changes of the base as a PEFT adapter, and have PEFT load it.

    Its factors are the leading singular triplets of the merged change, which no other factors of that rank come nearer
    to. Every merged tensor is computed twice: for its rank and for its factors.

    Args:
        plan: The merge. Its output is in float32, so that the change isn't rounded to the base's dtype.
        base: What the adapter calls its base.
        rule: How many triplets of each matrix to keep. Of LoRA adapters of rank r, T r hold everything.
        work: Where and with what; the adapter's files come to lie in its output.

    Returns:
        As `compress_tasks`, whose errors these are too; the one task is called `merged`.
    """
    # The merged model is taken for the fine-tune of a single task, and every change of it is compressed.
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
    """The merged model, of which every tensor is merged when it is read. It has the base's names."""

    def __init__(self, plan: Plan, work: Workplace) -> None:
        super().__init__(plan.base, label="the merged model")
        self._plan = plan
        self._steps = {step.name: step for step in plan.steps}
        self._surveys = run_surveys(plan, plan.steps, work.resources, work.progress)
        # The matrices of a stack are read one after another, and each is asked for more than once.
        self._whole = lru_cache(maxsize=work.resources.workers)(self._merge)

    def info(self, name: str) -> TensorInfo:
        return self._steps[name].out

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        whole = self._whole(name)
        part = whole[rows[0] : rows[1]] if rows else whole
        # A caller may change what it reads, but not what the cache holds.
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
