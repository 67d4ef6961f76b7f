"""Modules whose owner reads more of them than their output.

PEFT adds factors to what a module returns. An owner that computes with the module's weight itself never sees them, and
one that asks for another attribute finds none on PEFT's wrapper. The owner's source shows whether it does.
"""

import inspect
import re
from functools import cache
from typing import Any

from torch import nn

# The wrapper does forward the weight, so asking for its dtype or type is fine.
_HARMLESS = r"(?:weight|bias)(?:\.(?:dtype|device|shape|ndim)\b| is |, (?:torch\.|nn\.)*(?:Tensor|Parameter)\b)"
_READ = re.compile(rf"\bself\.(\w+)\.(?!{_HARMLESS})[a-z_]\w*")
_NOT_RUN = re.compile(r"__init__|_?(init|initialize|get|set|tie|resize|freeze)(_|$)")  # at no forward pass


def read_by_owner(model: nn.Module) -> set[str]:
    """Paths of the modules of which an attribute is read while the model runs."""
    paths = set()
    for path, module in model.named_modules(remove_duplicate=False):
        module_class: Any = type(module)
        children = _reads(module_class) & module._modules.keys()
        paths |= {f"{path}.{child}".lstrip(".") for child in children}
    return paths


@cache
def _reads(module_class: Any) -> frozenset[str]:
    """Names in `self.NAME.attribute` within the functions of a class and of its bases for the same model."""
    names: set[str] = set()
    for owner in module_class.__mro__:
        # What all modules or all models share reads no particular child.
        if owner.__module__.startswith(("torch.", "transformers.modeling_", "builtins")):
            continue
        for name, member in vars(owner).items():
            if not inspect.isfunction(member) or _NOT_RUN.match(name):
                continue
            try:
                source = inspect.getsource(inspect.unwrap(member))
            except (OSError, TypeError):  # made at run time
                continue
            names.update(_READ.findall(source))
    return frozenset(names)
