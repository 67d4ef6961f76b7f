"""TSV-Compress: every task keeps its own change, in an adapter."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from hf_tsv.linalg.ranks import RULES, rank_choice
from hf_tsv.methods import Deltas, merge_method


def _one_keyword_a_rule(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Spell out `**rule` by RULES, because a recipe's parameters are read from the signature."""
    deltas = inspect.signature(fn).parameters["deltas"]
    keywords = [
        inspect.Parameter(word, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=rule.value | None)
        for word, rule in RULES.items()
    ]
    fn.__signature__ = inspect.Signature([deltas, *keywords], return_annotation=Tensor)  # type: ignore[attr-defined]  # PEP 362
    fn.__annotations__ = {"deltas": Deltas, **{k.name: k.annotation for k in keywords}, "return": Tensor}
    described = "\n".join(f"        {word}: {rule.about}" for word, rule in RULES.items())
    fn.__doc__ = f"{fn.__doc__}".replace("        rule: One of RULES, by its word.", described)
    return fn


@merge_method(
    "tsv_c",
    paper="https://arxiv.org/abs/2412.00081",
    cost="1 singular value decomposition of a matrix and task",
    elementwise=True,
    keeps="adapter",
)
@_one_keyword_a_rule
def tsv_c(deltas: Deltas, **rule: Any) -> Tensor:
    """Keep the base model's weight, and each task's leading singular triplets beside it in the task's adapter.

    theta_t = theta_0 + U_k diag(s_k) Vh_k of each task matrix (Gargiulo et al. 2024, section 3.2). At most one
    rule for k may be given; without one, k is the paper's min(m, n) / T. A model's weight doesn't matter here.

    Args:
        deltas: T deltas of one tensor.
        rule: One of RULES, by its word.

    Raises:
        MethodError: several rules are given, or the budget isn't a size or share.
    """
    rank_choice(rule, num_tasks=len(deltas), checkpoint_bytes=1)  # a check: ranks need the whole model (`hf_tsv.kept`)
    return deltas.zeros()
