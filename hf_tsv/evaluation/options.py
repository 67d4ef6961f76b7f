"""Options of a search for scales and lambdas."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

By = Literal["all", "kind", "type"]


@dataclass(frozen=True)
class Search:
    """The values that a search tries.

    Attributes:
        by: How tensors share scales: one for `all`, one per `kind` of tensor, or one per module `type`; overrides have
            scales of their own.
        scales: The scales to try.
        lambdas: The masks' lambdas to try; by default the paper's.
    """

    by: By = "kind"
    scales: Sequence[float] = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)
    lambdas: Sequence[float] = (0.2, 0.3, 0.4, 0.5, 0.6)
