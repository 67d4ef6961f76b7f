"""What a person may choose about a search for scales."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

By = Literal["all", "kind", "type"]


@dataclass(frozen=True)
class Search:
    """What is tried.

    Attributes:
        by: What has a scale of its own: `all` have one, each `kind` of tensor, or each module `type`; and the same
            within each override.
        scales: The scales to try.
        lambdas: The masks' lambdas to try; by default the paper's.
    """

    by: By = "kind"
    scales: Sequence[float] = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)
    lambdas: Sequence[float] = (0.2, 0.3, 0.4, 0.5, 0.6)
