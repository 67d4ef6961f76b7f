"""Merge methods: one file each, one registry."""

from hf_tsv.methods import (
    base,
    breadcrumbs,
    breadcrumbs_ties,
    dare_linear,
    dare_ties,
    della,
    della_linear,
    karcher,
    linear,
    model_stock,
    nuslerp,
    sce,
    slerp,
    task_arithmetic,
    ties,
    tsv_m,
)
from hf_tsv.methods._deltas import Deltas
from hf_tsv.methods._registry import METHODS, MergeMethod, Parameter, PerTask, Survey, merge_method

__all__ = [
    "METHODS",
    "Deltas",
    "MergeMethod",
    "Parameter",
    "PerTask",
    "Survey",
    "base",
    "breadcrumbs",
    "breadcrumbs_ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "karcher",
    "linear",
    "merge_method",
    "model_stock",
    "nuslerp",
    "sce",
    "slerp",
    "task_arithmetic",
    "ties",
    "tsv_m",
]
