"""Merge and compress fine-tunes of one base model by Task Singular Vectors."""

import importlib
from typing import TYPE_CHECKING, Any

from hf_tsv._version import __version__ as __version__

if TYPE_CHECKING:
    from hf_tsv.errors import HfTsvError as HfTsvError
    from hf_tsv.evaluation.options import Search as Search
    from hf_tsv.hub import Hub as Hub
    from hf_tsv.job.options import AdapterOptions as AdapterOptions
    from hf_tsv.job.options import Limits as Limits
    from hf_tsv.job.options import Options as Options
    from hf_tsv.publish.check import Pushing as Pushing
    from hf_tsv.recipe import load_recipe as load_recipe
    from hf_tsv.verbs.compress import compress as compress
    from hf_tsv.verbs.evaluate import evaluate as evaluate
    from hf_tsv.verbs.in_memory import merge_modules as merge_modules
    from hf_tsv.verbs.in_memory import merge_state_dicts as merge_state_dicts
    from hf_tsv.verbs.inspect import inspect as inspect
    from hf_tsv.verbs.merge import merge as merge
    from hf_tsv.verbs.merge import merge_as_adapter as merge_as_adapter
    from hf_tsv.verbs.plan import plan as plan
    from hf_tsv.verbs.push import push as push
    from hf_tsv.verbs.restore import load_task as load_task
    from hf_tsv.verbs.restore import restore as restore
    from hf_tsv.verbs.tune import tune as tune
    from hf_tsv.verbs.verify import Verification as Verification
    from hf_tsv.verbs.verify import verify as verify

# The public names, each with the module that defines it. They are imported when they are first used, so that
# `hf-tsv --help` doesn't import torch.
_MODULES = {
    "AdapterOptions": "hf_tsv.job.options",
    "HfTsvError": "hf_tsv.errors",
    "Hub": "hf_tsv.hub",
    "Limits": "hf_tsv.job.options",
    "Options": "hf_tsv.job.options",
    "Pushing": "hf_tsv.publish.check",
    "Search": "hf_tsv.evaluation.options",
    "Verification": "hf_tsv.verbs.verify",
    "compress": "hf_tsv.verbs.compress",
    "evaluate": "hf_tsv.verbs.evaluate",
    "inspect": "hf_tsv.verbs.inspect",
    "load_recipe": "hf_tsv.recipe",
    "load_task": "hf_tsv.verbs.restore",
    "merge": "hf_tsv.verbs.merge",
    "merge_as_adapter": "hf_tsv.verbs.merge",
    "merge_modules": "hf_tsv.verbs.in_memory",
    "merge_state_dicts": "hf_tsv.verbs.in_memory",
    "plan": "hf_tsv.verbs.plan",
    "push": "hf_tsv.verbs.push",
    "restore": "hf_tsv.verbs.restore",
    "tune": "hf_tsv.verbs.tune",
    "verify": "hf_tsv.verbs.verify",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'hf_tsv' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value
