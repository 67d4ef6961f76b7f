"""A GPU that isn't there: tensors that say they are on it, keep to its rules, and are computed by the CPU.

It shows what a real one would refuse: tensors of two devices in one operation, a draw from the CPU's generator, memory
that NumPy or LAPACK is to read.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("xla", 0)  # of a type that torch asks no driver for
_CPU = torch.device("cpu")
_CROSSING = (Tensor.to, Tensor.copy_, Tensor.cpu, Tensor.__setitem__)
_OUT_OF_REACH = (Tensor.numpy, Tensor.data_ptr, Tensor.__array__)


class There(Tensor):
    """A tensor on the device that isn't there."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class AbsentDevice(TorchFunctionMode):
    """While it is entered, tensors can be made on `DEVICE`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    if func is torch.device:
        return func(*args, **kwargs)
    leaves = tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    asked = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    if not asked and func in _device_constructors():
        asked = [torch.get_default_device()]
    is_there = any(isinstance(t, There) for t in tensors)
    if func == Tensor.device.__get__ and is_there:  # type: ignore[attr-defined]  # a property of C has it
        return DEVICE
    if is_there and func in _OUT_OF_REACH:
        raise TypeError(f"{func}: the memory of {DEVICE} is out of reach")
    if func not in _CROSSING:
        _check_together(func, tensors)
    if DEVICE in asked and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: expected a generator of {DEVICE}")
    args, kwargs = tree_map_only(torch.device, lambda device: _CPU, (args, kwargs))
    args, kwargs = tree_map_only(There, lambda there: there.as_subclass(Tensor), (args, kwargs))
    with torch._C.DisableTorchFunctionSubclass():
        out = func(*args, **kwargs)
    goes_there = DEVICE in asked if asked else is_there and func is not Tensor.cpu
    if isinstance(out, Tensor) and goes_there != is_there:
        out = out.clone()  # what goes to another device shares no memory
    return tree_map_only(Tensor, lambda t: t.as_subclass(There), out) if goes_there else out


def _check_together(func: Callable[..., Any], tensors: Sequence[Tensor]) -> None:
    """A single number may come from the CPU, as on a real GPU."""
    if len({isinstance(t, There) for t in tensors if isinstance(t, There) or t.as_subclass(Tensor).dim()}) > 1:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device")
