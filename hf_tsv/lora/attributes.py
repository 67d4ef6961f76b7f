"""Finds the modules whose owner reads their attributes, not just their output.

PEFT adds the factors' product to a module's output. An owner that computes with the module's weight itself never sees
it, and one that reads another attribute fails, because PEFT's wrapper doesn't have it. The owner's source code shows
what it reads.
"""

import inspect
import re
from functools import cache
from typing import Any

from torch import nn

# The wrapper does forward the weight and bias, so reading their dtype or type is harmless.
_HARMLESS = r"(?:weight|bias)(?:\.(?:dtype|device|shape|ndim)\b| is |, (?:torch\.|nn\.)*(?:Tensor|Parameter)\b)"
_READ = re.compile(rf"\bself\.(\w+)\.(?!{_HARMLESS})[a-z_]\w*")
_NOT_RUN = re.compile(r"__init__|_?(init|initialize|get|set|tie|resize|freeze)(_|$)")  # not called in a forward pass


def read_by_owner(model: nn.Module) -> set[str]:
    """Return the paths of the modules whose attributes are read while the model runs."""
    paths = set()
    for path, module in model.named_modules(remove_duplicate=False):
        module_class: Any = type(module)
        children = _reads(module_class) & module._modules.keys()
        paths |= {f"{path}.{child}".lstrip(".") for child in children}
    return paths


@cache
def _reads(module_class: Any) -> frozenset[str]:
    """Return every NAME in `self.NAME.attribute` in the methods of a class and its model-specific base classes."""
    names: set[str] = set()
    for owner in module_class.__mro__:
        # Code shared by all modules or all models reads no particular child.
        if owner.__module__.startswith(("torch.", "transformers.modeling_", "builtins")):
            continue
        for name, member in vars(owner).items():
            if not inspect.isfunction(member) or _NOT_RUN.match(name):
                continue
            try:
                source = inspect.getsource(inspect.unwrap(member))
            except (OSError, TypeError):  # defined at run time
                continue
            names.update(_READ.findall(source))
    return frozenset(names)
