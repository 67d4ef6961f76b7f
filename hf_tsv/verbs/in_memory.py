"""Merge models in memory."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hf_tsv.checkpoints.dtypes import ARITHMETIC
from hf_tsv.checkpoints.memory import MemoryCheckpoint
from hf_tsv.errors import MethodError, RecipeError
from hf_tsv.merging.engine import run
from hf_tsv.merging.plan import Step, leaves_masks, leaves_residuals
from hf_tsv.merging.planner import make_plan
from hf_tsv.merging.progress import Silent
from hf_tsv.merging.resources import Resources, usable_cores
from hf_tsv.recipe import parse_recipe, to_yaml


def merge_state_dicts(
    base: Mapping[str, Tensor],
    finetuned: Mapping[str, Mapping[str, Tensor]],
    *,
    method: str = "tsv_m",
    weights: Mapping[str, float] | None = None,
    dtype: str = "float32",
    svd: str = "exact",
    **parameters: Any,
) -> dict[str, Tensor]:
    """Merge models in memory; the inputs are not changed.

        merged = merge_state_dicts(base, {"math": math, "code": code}, method="tsv_m", scale=1.2)

    Args:
        base: The base model's state dict.
        finetuned: The fine-tuned models' state dicts by task, with the base's names and shapes.
        method: A merge method, as in recipes.
        weights: One factor per task, 1 by default.
        dtype: The dtype of the arithmetic, `float32` or `float64`.
        svd: The decomposition, `exact` or `sketch`.
        parameters: The method's parameters.

    Returns:
        A new state dict with the base's names, dtypes and shapes, on the CPU.

    Raises:
        RecipeError: a method, parameter, task or dtype is unknown.
        PlanError: names or shapes don't fit together.
        MethodError: a tensor holds NaN or infinity, or the method writes something for each task to files.
    """
    unknown_tasks = sorted(set(weights or {}) - set(finetuned))
    if unknown_tasks:
        known = ", ".join(map(repr, finetuned))
        raise RecipeError(f"weights: no task {unknown_tasks[0]!r}, expected {known}")
    if dtype not in ARITHMETIC:
        raise RecipeError(
            f"dtype: expected {' or '.join(ARITHMETIC)} but got {dtype!r}. The output has the base's dtypes"
        )
    models = []
    for task in finetuned:
        entry: dict[str, Any] = {"model": f"./{task}", "name": task}
        if weights and task in weights:
            entry["parameters"] = {"weight": weights[task]}
        models.append(entry)
    data = {
        "merge_method": method,
        "base_model": "./the base",
        "models": models,
        "parameters": parameters,
        "dtype": dtype,
        "svd": svd,
    }
    # Parsed from text, so that it is checked like any other recipe. The folders that it names are never opened.
    recipe = parse_recipe(to_yaml(data), source=f"merge_state_dicts(method={method!r})")
    planned = make_plan(
        recipe,
        MemoryCheckpoint(base, label="the base"),
        [MemoryCheckpoint(state, label=f"task '{task}'") for task, state in finetuned.items()],
    )
    if leaves_residuals(planned) or leaves_masks(planned):
        raise MethodError(f"{method}: it keeps something of every task in files. Call hf_tsv.merge")
    held = _Held()
    run(planned, planned.steps, held, Resources(usable_cores()), Silent())
    # The engine takes the largest tensors first; the result has the base's order.
    return {name: held.tensors[name] for name in base}


def merge_modules(base: nn.Module, finetuned: Mapping[str, nn.Module], **options: Any) -> nn.Module:
    """Merge modules of one class into a new module. `options` and errors are those of `merge_state_dicts`."""
    states = {task: module.state_dict() for task, module in finetuned.items()}
    # Whatever a state dict doesn't hold, such as code and buffers that aren't saved, comes from the base.
    merged = copy.deepcopy(base)
    merged.load_state_dict(merge_state_dicts(base.state_dict(), states, **options))
    return merged


class _Held:
    """A sink that keeps merged tensors in memory."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def put(self, step: Step, tensor: Tensor, facts: Mapping[str, Any]) -> None:
        self.tensors[step.name] = tensor
