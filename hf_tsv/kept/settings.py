"""The settings for a plan's adapters, read from its recipe once and put into one value."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hf_tsv.checkpoints.dtypes import BY_WORD
from hf_tsv.errors import PlanError
from hf_tsv.files.names import Profile
from hf_tsv.linalg.ranks import Budget, RankChoice, rank_choice
from hf_tsv.lora.formats import DEFAULT
from hf_tsv.merging.plan import Plan


@dataclass(frozen=True)
class AdapterSettings:
    """The settings for a plan's adapters.

    Attributes:
        rules: The rank rule of every tensor that goes into adapters, by name. At most one distinct rule is a budget.
        factor_dtype: Dtype of the factors, as safetensors names it; None for bf16 under a budget, else each tensor's
            own dtype.
        profiles: Names of the formats in which each adapter is written.
        serving_rank: Rank of all factors in formats with one rank; None for the largest that fits into the budget or,
            without a budget, the smallest that holds what the rules chose.
        verify: The check of PEFT's reading of each adapter: by `weights`, or also by a `forward` pass.
        together: True if tasks share their budgets, so that a task that changed more of the model gets more bytes.
    """

    rules: Mapping[str, RankChoice]
    factor_dtype: str | None = None
    profiles: tuple[Profile, ...] = (DEFAULT,)
    serving_rank: int | None = None
    verify: Literal["weights", "forward"] = "weights"
    together: bool = False

    @property
    def budget(self) -> int | None:
        """Maximum size of one adapter in bytes; None without a budget."""
        budgets = [rule.nbytes for rule in self.rules.values() if isinstance(rule, Budget)]
        return budgets[0] if budgets else None

    @property
    def dtype_of_factors(self) -> str | None:
        """The recipe's dtype of the factors, or bf16 under a budget; None for each tensor's own dtype."""
        # Under a budget, bf16 buys twice the rank of float32, which is worth more than the digits.
        if self.factor_dtype or self.budget is None:
            return self.factor_dtype
        return "BF16"

    @property
    def distinct_rules(self) -> list[RankChoice]:
        """Every rule once. The budget is last because it spends what the others leave."""
        distinct = dict.fromkeys(self.rules.values())
        return sorted(distinct, key=lambda rule: isinstance(rule, Budget))


def read_settings(plan: Plan) -> AdapterSettings:
    """Read the adapter settings from a plan's recipe.

    Raises:
        PlanError: there are two different budgets, but an adapter has only one size; or `together` lacks a budget.
    """
    options = plan.recipe.adapters
    settings = AdapterSettings(
        rules=read_rules(plan),
        factor_dtype=BY_WORD[options.factor_dtype].name if options.factor_dtype else None,
        profiles=options.profiles or (DEFAULT,),
        serving_rank=options.rank,
        verify=options.verify,
        together=options.together,
    )
    if settings.together and settings.budget is None:
        raise PlanError(f"{plan.recipe.source}: adapters: together shares budgets, but there is none. Keep by a size")
    return settings


def read_rules(plan: Plan) -> dict[str, RankChoice]:
    """Read the rank rule of every tensor that goes into adapters, by name.

    These are the tensors whose method keeps the whole change for the task and, with `residuals`, all other merged
    tensors.

    Raises:
        PlanError: there are two different budgets, but an adapter has only one size.
    """
    checkpoint_bytes = sum(plan.base.info(name).nbytes for name in plan.base.names())
    rules: dict[str, RankChoice] = {}
    for step in plan.merged:
        parameters: Mapping[str, Any] | None = plan.recipe.residuals
        if step.is_in_adapters:  # the tensor's own parameters take precedence over `residuals`
            parameters = step.parameters
        if parameters is not None:
            rules[step.name] = rank_choice(parameters, num_tasks=len(plan.tasks), checkpoint_bytes=checkpoint_bytes)
    budgets = sorted({rule.nbytes for rule in rules.values() if isinstance(rule, Budget)})
    if len(budgets) > 1:
        sizes = " and ".join(f"{nbytes} bytes" for nbytes in budgets)
        raise PlanError(f"{plan.recipe.source}: budgets of {sizes}, but an adapter has only one size. Keep one of them")
    return rules
