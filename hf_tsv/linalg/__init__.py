"""Factorisations that the merge methods stand on: tensors in, tensors out."""

from hf_tsv.linalg._factors import Factors
from hf_tsv.linalg._polar import from_orthogonalised, nearest_orthogonal
from hf_tsv.linalg._svd import SvdMode, singular_values, truncated_svd

__all__ = [
    "Factors",
    "SvdMode",
    "from_orthogonalised",
    "nearest_orthogonal",
    "singular_values",
    "truncated_svd",
]
