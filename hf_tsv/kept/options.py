"""How fine-tunes are compressed: what a command, a recipe or a caller says of it."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Literal

from hf_tsv.files.names import Profile
from hf_tsv.linalg.ranks import Budget, Energy, Error, FixedRank, Fraction, RankChoice
from hf_tsv.lora.formats import DEFAULT
from hf_tsv.merging.plan import STORED
from hf_tsv.recipe import Recipe

RULES = {Budget: "budget", FixedRank: "rank", Fraction: "fraction", Energy: "energy", Error: "error"}


@dataclass(frozen=True)
class Compressing:
    """How fine-tunes are compressed.

    Attributes:
        how: The rule for the ranks, or that of each tensor by name. One budget at most is among them, and all share it.
        factor_dtype: Of the factors, as safetensors names it; None for bf16 under a budget, else each tensor's own.
        profiles: Names of the formats to write, of `hf_tsv.lora.formats.FORMATS`.
        serving_rank: Of all factors in the serving profile; None for the largest that a budget has room for or,
            without one, the smallest that holds what the rule chose, 128 at most.
        verify: How far PEFT's reading of each adapter is compared with what was meant.
        together: Whether tasks share their budgets, so that one that changed more of the model gets more bytes.
    """

    how: RankChoice | Mapping[str, RankChoice]
    factor_dtype: str | None = None
    profiles: tuple[Profile, ...] = (DEFAULT,)
    serving_rank: int | None = None
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
        serving = ["--serving-rank", str(self.serving_rank)] if self.serving_rank else []
        dtype = [f"--factor-dtype={name}" for name, stored in STORED.items() if stored == self.factor_dtype]
        together = ["--together"] if self.together else []
        profile = "both" if len(self.profiles) > 1 else self.profiles[0]
        return [*rule, *together, "--profile", profile, *serving, *dtype]


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
        factor_dtype=STORED[dtype] if dtype else None,
        profiles=profiles or tuple(said.get("profiles", (DEFAULT,))),
        serving_rank=serving_rank or said.get("rank"),
        verify=verify,
        together=together,
    )
