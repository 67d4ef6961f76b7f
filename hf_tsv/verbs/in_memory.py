"""Merges of models that are held in memory."""

import copy
from collections.abc import Mapping, Sequence
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
from hf_tsv.recipe import Recipe, parse_recipe, to_yaml


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
    """Merge models that are held in memory; the inputs stay as they are.

        merged = merge_state_dicts(base, {"math": math, "code": code}, method="tsv_m", scale=1.2)

    Args:
        base: The base model's state dict.
        finetuned: The fine-tuned models' state dicts by task, with the base's names and shapes.
        method: A merge method, as in recipes.
        weights: One factor a task, 1 unless given.
        dtype: Arithmetic, `float32` or `float64`.
        svd: `exact` or `sketch`.
        parameters: The method's parameters.

    Returns:
        A new state dict with the base's names, dtypes and shapes, on the CPU.

    Raises:
        RecipeError: an unknown method, parameter, task or dtype.
        PlanError: names or shapes that don't fit.
        MethodError: NaN or infinity.
    """
    if strange := sorted(set(weights or {}) - set(finetuned)):
        raise RecipeError(f"weights: no task {strange[0]!r}, expected {', '.join(map(repr, finetuned))}")
    if dtype not in ARITHMETIC:
        raise RecipeError(
            f"dtype: expected {' or '.join(ARITHMETIC)} but got {dtype!r}. The output has the base's dtypes"
        )
    recipe = _recipe_of(list(finetuned), method, weights or {}, dtype, svd, parameters)
    planned = make_plan(
        recipe,
        MemoryCheckpoint(base, label="the base"),
        [MemoryCheckpoint(state, label=f"task '{task}'") for task, state in finetuned.items()],
    )
    if leaves_residuals(planned) or leaves_masks(planned):
        raise MethodError(f"{method}: it keeps something of every task in files. Call hf_tsv.merge")
    held = _Held()
    run(planned, planned.steps, held, Resources(usable_cores()), Silent())
    return {name: held.tensors[name] for name in base}


def merge_modules(base: nn.Module, finetuned: Mapping[str, nn.Module], **options: Any) -> nn.Module:
    """Merge modules of one class into a new one. `options` and errors are those of `merge_state_dicts`."""
    states = {task: module.state_dict() for task, module in finetuned.items()}
    merged = copy.deepcopy(base)
    merged.load_state_dict(merge_state_dicts(base.state_dict(), states, **options))
    return merged


class _Held:
    """Keeps merged tensors in memory."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def put(self, step: Step, tensor: Tensor, facts: Mapping[str, Any]) -> None:
        self.tensors[step.name] = tensor


def _recipe_of(
    tasks: Sequence[str], method: str, weights: Mapping[str, float], dtype: str, svd: str, parameters: Mapping[str, Any]
) -> Recipe:
    """The recipe of a merge in memory, so that it is checked and carried out as any other."""
    models = [
        {"model": f"./{task}", "name": task} | ({"parameters": {"weight": weights[task]}} if task in weights else {})
        for task in tasks
    ]
    data = {
        "merge_method": method,
        "base_model": "./the base",
        "models": models,
        "parameters": dict(parameters),
        "dtype": dtype,
        "svd": svd,
    }
    return parse_recipe(to_yaml(data), source=f"merge_state_dicts(method={method!r})")
