"""A model's modules, and how PEFT can adapt each of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from hf_tsv.checkpoints.modules import kind_of
from hf_tsv.checkpoints.protocol import TensorInfo
from hf_tsv.lora.attributes import read_by_owner

# `linear` takes factors A and B as they are, `embedding` and `conv1d` (GPT-2's, stored (in, out)) transposed, `conv`
# reshaped, `parameters` through `target_parameters`; `other` takes none.
ModuleKind = Literal["linear", "conv1d", "embedding", "conv", "parameters", "other"]
WITH_BIAS = frozenset({"linear", "conv1d", "conv"})  # kinds that lora_bias applies to
# PEFT refuses to copy these, so their contents are stored with the enclosing module.
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


@dataclass(frozen=True)
class Module:
    """One module of a model.

    Attributes:
        path: The module's dotted name.
        kind: The way PEFT can adapt it.
        tensors: Shapes of its own parameters and saved buffers, by local name, in the order they were registered.
        is_flipped: True if its matrices are stored (in, out).
        is_read: True if its owner reads its attributes, so that it can only be stored whole.
        is_container: True if it is just a list or dict of modules or parameters.
        has_layers: True if it is or contains a list of modules, such as a model's layers.
    """

    path: str
    kind: ModuleKind
    tensors: Mapping[str, torch.Size]
    is_flipped: bool = False
    is_read: bool = False
    is_container: bool = False
    has_layers: bool = False


def modules_of(model: Any) -> Iterator[Module]:
    """Yield every module of a transformers model; shared modules appear under each of their names."""
    read = read_by_owner(model)
    renamed = _renamed_by_peft(model)
    fused_attention: tuple[str, ...] = ()
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.MultiheadAttention):  # reads its children's weights directly
            fused_attention += (f"{path}.",)
        kind: ModuleKind = "other" if path.startswith(fused_attention) else _kind(path, module)
        if kind == "linear" and path.rpartition(".")[2] in renamed:
            kind = "parameters"
        own = (*module._parameters.items(), *module._buffers.items())
        unsaved = module._non_persistent_buffers_set
        tensors = {name: tensor.shape for name, tensor in own if tensor is not None and name not in unsaved}
        yield Module(
            path=path,
            kind=kind,
            tensors=tensors,
            is_flipped=kind in ("conv1d", "embedding") or bool(getattr(module, "is_transposed", False)),
            is_read=path in read,
            is_container=isinstance(module, _CONTAINERS),
            has_layers=any(type(inner) is nn.ModuleList for inner in module.modules()),
        )


def _kind(path: str, module: nn.Module) -> ModuleKind:
    """Return how PEFT can adapt a module."""
    from transformers.pytorch_utils import Conv1D

    # Types are compared exactly: a subclass may use its weight in a way that factors can't reproduce.
    if type(module) is nn.Linear:
        return "linear"
    if type(module) is Conv1D:
        return "conv1d"
    if type(module) is nn.Embedding:
        return "embedding"
    # PEFT's convolution factors copy stride and padding, but not dilation, groups or padding mode.
    is_conv = type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    conv: Any = module
    if is_conv and conv.groups == 1 and set(conv.dilation) == {1} and conv.padding_mode == "zeros":
        return "conv"
    has_inner_tensors = any(child.state_dict() for child in module.children())
    if not path or isinstance(module, (nn.Linear, nn.Embedding)) or has_inner_tensors:
        return "other"
    # Bare parameters take factors if they are experts or a router.
    kinds = []
    for name, tensor in module.named_parameters(recurse=False):
        info = TensorInfo(f"{path}.{name}", tuple(tensor.shape), "F32")
        kinds.append(kind_of(info))
    # PEFT's wrapper doesn't forward attributes, such as a correction bias in a buffer that the router's owner reads.
    is_router = kinds == ["router"] and not module._buffers
    return "parameters" if "expert" in kinds or is_router else "other"


def _renamed_by_peft(model: Any) -> set[str]:
    """Return the last names of linear modules that PEFT mistakes for experts from before transformers stacked them.

    PEFT would redirect a `target_modules` entry with such a name to the experts, so these modules' weights are targeted
    through `target_parameters` instead.
    """
    from peft import LoraConfig
    from transformers.conversion_mapping import get_model_conversion_mapping

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # versions before transformers 5 rename nothing
        return set()
    conversions = get_model_conversion_mapping(model)
    leaves = {path.rpartition(".")[2] for path, module in model.named_modules() if type(module) is nn.Linear}
    renamed = set()
    for leaf in leaves:
        config = LoraConfig(target_modules=[leaf])
        try:
            convert_peft_config_for_transformers(config, model=model, conversions=conversions)
        except ValueError:  # PEFT can rename it only together with others
            renamed.add(leaf)
        else:
            renamed |= {leaf} - set(config.target_modules or ())
    return renamed
