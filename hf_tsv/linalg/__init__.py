"""Factorisations that the merge methods build on: tensors in, tensors out.

Nothing here chooses a device or a number of threads. With the same number of threads, results are
bit-identical from run to run, next to other running merges, and for any memory layout of the same values.
"""

from hf_tsv.linalg._factored import factored_svd
from hf_tsv.linalg._factors import Factors
from hf_tsv.linalg._interference import (
    interference_by_chance,
    interference_left,
    overlaps,
    pairwise_interference,
    singular_task_interference,
)
from hf_tsv.linalg._polar import nearest_orthogonal
from hf_tsv.linalg._rounding import rounding_edge
from hf_tsv.linalg._svd import SvdMode, singular_values, truncated_svd

__all__ = [
    "Factors",
    "SvdMode",
    "factored_svd",
    "interference_by_chance",
    "interference_left",
    "nearest_orthogonal",
    "overlaps",
    "pairwise_interference",
    "rounding_edge",
    "singular_task_interference",
    "singular_values",
    "truncated_svd",
]
