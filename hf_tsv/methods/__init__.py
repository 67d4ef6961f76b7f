"""Merge methods: one file each, one registry."""

from hf_tsv.methods import base, linear, task_arithmetic, ties, tsv_c, tsv_m
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
    "linear",
    "merge_method",
    "task_arithmetic",
    "ties",
    "tsv_c",
    "tsv_m",
]
