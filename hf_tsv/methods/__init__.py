"""Merge methods: one file each, one registry.

Every module here without a leading underscore is a method, registered on import. Other packages add theirs through the
entry-point group `hf_tsv.methods` (see CONTRIBUTING.md); everything they need is exported here.
"""

import pkgutil
from importlib import import_module

from hf_tsv.methods._deltas import Deltas, Tasks, TensorSource, per_task
from hf_tsv.methods._parameters import Factor, Parameter, PerTask, Scale
from hf_tsv.methods._policy import Inputs, Mask, Matrices, Rescaler, Survey, TaskDelta
from hf_tsv.methods._registry import METHODS, MergeMethod, merge_method

__all__ = [
    "METHODS",
    "Deltas",
    "Factor",
    "Inputs",
    "Mask",
    "Matrices",
    "MergeMethod",
    "Parameter",
    "PerTask",
    "Rescaler",
    "Scale",
    "Survey",
    "TaskDelta",
    "Tasks",
    "TensorSource",
    "merge_method",
    "per_task",
]

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        import_module(f"{__name__}.{_module.name}")
