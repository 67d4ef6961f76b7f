"""How the adapters of a plan are made: what its recipe says, read once and put into one value."""

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
    """How the adapters of a plan are made.

    Attributes:
        rules: The rule for the rank of every tensor that goes into adapters, by name. At most one of them is a budget.
        factor_dtype: Dtype of the factors, as safetensors names it; None for bf16 under a budget, else each tensor's
            own.
        profiles: The formats in which each adapter is written, by name.
        serving_rank: Rank of all factors in formats with one rank; None for the largest that a budget has room for or,
            without a budget, the smallest that holds what the rules chose.
        verify: How PEFT's reading of each adapter is compared with what was meant.
        together: Whether tasks share their budgets, so that a task that changed more of the model gets more bytes.
    """

    rules: Mapping[str, RankChoice]
    factor_dtype: str | None = None
    profiles: tuple[Profile, ...] = (DEFAULT,)
    serving_rank: int | None = None
    verify: Literal["weights", "forward"] = "weights"
    together: bool = False

    @property
    def budget(self) -> int | None:
        """Bytes that one adapter may take; None without a budget."""
        budgets = [rule.nbytes for rule in self.rules.values() if isinstance(rule, Budget)]
        return budgets[0] if budgets else None

    @property
    def dtype_of_factors(self) -> str | None:
        """What the recipe says or, under a budget, bf16; None for each tensor's own."""
        # Under a budget, bf16 buys twice the rank of float32, which is worth more than the digits.
        if self.factor_dtype or self.budget is None:
            return self.factor_dtype
        return "BF16"

    @property
    def distinct_rules(self) -> list[RankChoice]:
        """Every rule once, the budget last: it spends what the others leave."""
        distinct = dict.fromkeys(self.rules.values())
        return sorted(distinct, key=lambda rule: isinstance(rule, Budget))


def read_settings(plan: Plan) -> AdapterSettings:
    """The settings that the recipe of a plan gives.

    Raises:
        PlanError: two different budgets, where an adapter has one size; or none to share.
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
    """The rule for the rank of every tensor that goes into adapters, by name.

    A tensor does so where its method keeps the whole change for the task; with `residuals`, all other merged tensors
    do so too.

    Raises:
        PlanError: two different budgets, where an adapter has one size.
    """
    checkpoint_bytes = sum(plan.base.info(name).nbytes for name in plan.base.names())
    rules: dict[str, RankChoice] = {}
    for step in plan.merged:
        parameters: Mapping[str, Any] | None = plan.recipe.residuals
        if step.is_in_adapters:  # its own parameters say more than `residuals`, which is for all others
            parameters = step.parameters
        if parameters is not None:
            rules[step.name] = rank_choice(parameters, num_tasks=len(plan.tasks), checkpoint_bytes=checkpoint_bytes)
    budgets = sorted({rule.nbytes for rule in rules.values() if isinstance(rule, Budget)})
    if len(budgets) > 1:
        sizes = " and ".join(f"{nbytes} bytes" for nbytes in budgets)
        raise PlanError(f"{plan.recipe.source}: budgets of {sizes}, but an adapter has only one size. Keep one of them")
    return rules
