"""Merge and compress fine-tunes of one base model by Task Singular Vectors."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hf_tsv.adapting import compress, merge_as_adapter
    from hf_tsv.api import merge, plan
    from hf_tsv.errors import HfTsvError
    from hf_tsv.hub import Hub
    from hf_tsv.in_memory import merge_modules, merge_state_dicts
    from hf_tsv.measuring import evaluate, inspect, tune
    from hf_tsv.publishing import Pushing
    from hf_tsv.pushing import push
    from hf_tsv.recipe import load_recipe
    from hf_tsv.restored import load_task, restore
    from hf_tsv.verified import Verification, verify

__all__ = [
    "HfTsvError",
    "Hub",
    "Pushing",
    "Verification",
    "compress",
    "evaluate",
    "inspect",
    "load_recipe",
    "load_task",
    "merge",
    "merge_as_adapter",
    "merge_modules",
    "merge_state_dicts",
    "plan",
    "push",
    "restore",
    "tune",
    "verify",
]

_HOMES = {
    "HfTsvError": "hf_tsv.errors",
    "Hub": "hf_tsv.hub",
    "Pushing": "hf_tsv.publishing",
    "Verification": "hf_tsv.verified",
    "compress": "hf_tsv.adapting",
    "evaluate": "hf_tsv.measuring",
    "inspect": "hf_tsv.measuring",
    "load_recipe": "hf_tsv.recipe",
    "load_task": "hf_tsv.restored",
    "merge_as_adapter": "hf_tsv.adapting",
    "merge_modules": "hf_tsv.in_memory",
    "merge_state_dicts": "hf_tsv.in_memory",
    "push": "hf_tsv.pushing",
    "restore": "hf_tsv.restored",
    "tune": "hf_tsv.measuring",
    "verify": "hf_tsv.verified",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that `hf-tsv --help` needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'hf_tsv' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES.get(name, "hf_tsv.api")), name)
    globals()[name] = value
    return value
