"""A base model without its weights: which modules it has, and where in them a checkpoint's tensors lie."""

import json
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from hf_tsv.adapters._attributes import read_by_owner
from hf_tsv.adapters._names import Located, Piece, locate
from hf_tsv.checkpoint import TensorInfo
from hf_tsv.errors import CheckpointError
from hf_tsv.modules import kind_of

# What PEFT can add factors to. `linear` takes A and B as they are, `embedding` and `conv1d` (GPT-2's, stored
# (in, out)) transposed, `conv` reshaped, `parameters` through `target_parameters`.
ModuleKind = Literal["linear", "conv1d", "embedding", "conv", "parameters", "other"]
WITH_BIAS = frozenset({"linear", "conv1d", "conv"})  # kinds that lora_bias can serve
# PEFT refuses to copy these; what they hold belongs to the module around them.
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)

TASK_TYPES = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
}


@dataclass(frozen=True)
class Module:
    """One module of the model.

    Attributes:
        path: Its dotted name.
        kind: What PEFT can make of it.
        tensors: Its own parameters and saved buffers, by local name, in the order they were registered.
        flipped: Whether its matrices are stored (in, out).
        is_read: Whether its owner reads its attributes, so that it can be stored whole only.
        has_layers: Whether a list of modules lies in it, such as a model's layers.
    """

    path: str
    kind: ModuleKind
    tensors: Mapping[str, torch.Size]
    flipped: bool = False
    is_read: bool = False
    is_container: bool = False
    has_layers: bool = False


@dataclass(frozen=True)
class Place:
    """What PEFT can make of the change of one tensor.

    Attributes:
        low_rank: Whether it can be factors.
        group: Tensors of one group must have the same rank: the experts of a layer. Else the tensor's own name.
        rank_numbers: Numbers that one triplet of it takes.
        whole_numbers: Numbers that it takes when it is stored whole: tied tensors take a copy for each module.
        why: Why it can't be factors, empty when it can.
    """

    low_rank: bool
    group: str
    rank_numbers: int
    whole_numbers: int
    why: str = ""


@dataclass(frozen=True)
class Architecture:
    """A base model's modules and where its checkpoint's tensors lie in them.

    Attributes:
        folder: The base model's folder, with its weights.
        config_folder: The folder whose config.json says what class the adapter is for: the base's, or a fine-tune's
            that has a head of its own.
        class_name: That class, of transformers.
        headers: The tensors that the base and its fine-tune have, by name.
        modules: By path, in the model's order.
        located: Where the tensors lie.
        aliases: For each tied parameter all its names.
        task_type: What PEFT calls the class's task, None where its class for that task can't run this model.
    """

    folder: Path
    config_folder: Path
    class_name: str
    task_type: str | None
    headers: Mapping[str, TensorInfo]
    modules: Mapping[str, Module]
    located: Located
    aliases: Mapping[str, tuple[str, ...]]

    @cached_property
    def sources(self) -> Mapping[str, tuple[tuple[str, Piece], ...]]:
        """For each parameter the tensors it is made of, those of one expert from the top row down."""
        found: defaultdict[str, list[tuple[str, Piece]]] = defaultdict(list)
        for name, pieces in self.located.pieces.items():
            for piece in pieces:
                found[piece.parameter].append((name, piece))
        return {p: tuple(sorted(made, key=lambda m: (m[1].expert or 0, m[1].row))) for p, made in found.items()}

    def sources_of(self, parameter: str) -> tuple[tuple[str, Piece], ...]:
        """The tensors that a parameter is made of, under any of its tied names; none when the checkpoint has none."""
        for name in (parameter, *self.aliases.get(parameter, ())):
            if name in self.sources:
                return self.sources[name]
        return ()

    def shape(self, parameter: str) -> torch.Size:
        path, _, local = parameter.rpartition(".")
        return self.modules[path].tensors[local]

    def owner(self, parameter: str) -> Module:
        return self.modules[parameter.rpartition(".")[0]]

    def state_under(self, path: str) -> list[str]:
        """Every parameter and saved buffer of a module and the modules in it."""
        return [
            f"{module.path}.{local}".lstrip(".")
            for module in self.modules.values()
            if module.path == path or module.path.startswith(f"{path}.")
            for local in module.tensors
        ]

    def is_low_rank(self, parameter: str) -> str:
        """Why PEFT can't add factors to a parameter; empty when it can."""
        module, local = self.owner(parameter), parameter.rpartition(".")[2]
        if parameter in self.aliases:
            return f"it is tied to {next(name for name in self.aliases[parameter] if name != parameter)}"
        if module.is_read:
            return "the module around it reads its weight or its attributes, which PEFT's factors don't change"
        if module.kind == "parameters":
            return "" if len(module.tensors[local]) in (2, 3) else "PEFT adds factors to matrices only"
        if module.kind == "other" or local != "weight":
            return "PEFT adds factors to weights of linear, embedding and plain convolution modules only"
        return ""

    def place(self, name: str) -> Place:
        """What PEFT can make of a change of the tensor `name`."""
        info = self.headers[name]
        pieces = self.located.pieces.get(name, ())
        if not pieces:
            return Place(False, name, sum(info.shape[:2]), info.numel, self.located.nowhere[name])
        why = next((why for piece in pieces if (why := self.is_low_rank(piece.parameter))), "")
        copies = max(len(self.aliases.get(piece.parameter, (piece.parameter,))) for piece in pieces)
        first = pieces[0]
        stacked = len(self.sources[first.parameter]) > 1
        group = f"{first.parameter}:{first.row}" if stacked else name
        numbers = sum(self._matrix(piece)[0] + self._matrix(piece)[1] for piece in pieces)
        return Place(not why, group, numbers, copies * info.numel, why)

    def _matrix(self, piece: Piece) -> tuple[int, int]:
        """Rows and columns that factors of a piece have in the file, for all matrices of a stack together."""
        shape = self.shape(piece.parameter)
        if len(shape) == 3 and self.owner(piece.parameter).kind == "parameters":
            count = 1 if piece.expert is not None else shape[0]
            return count * shape[1], count * shape[2]
        rows = shape[0] if shape else 1
        return rows, shape.numel() // max(1, rows)


def read_architecture(
    headers: Mapping[str, TensorInfo], folder: Path, *, config_folder: Path | None = None
) -> Architecture:
    """Build the model that a folder's config.json names, without weights, and find the checkpoint's tensors in it.

    Args:
        headers: The base's tensors, and what the fine-tune has beside them, by name.
        folder: The base model's folder.
        config_folder: The fine-tune's folder, where its class has a head that the base's has not.

    Raises:
        CheckpointError: transformers and PEFT are not installed, or transformers knows no such model.
    """
    config_folder = config_folder or folder
    with quiet():
        model = make_skeleton(config_folder)
        located = locate(model, headers)
    renamed = _renamed_leaves(model)
    return Architecture(
        folder=folder,
        config_folder=config_folder,
        class_name=type(model).__name__,
        task_type=_task_type(model),
        headers=dict(headers),
        modules={path: module for path, module in _modules(model, renamed)},
        located=located,
        aliases=_aliases(model),
    )


def make_skeleton(config_folder: Path) -> Any:
    """The model without weights: a PreTrainedModel on the meta device, tied as it says.

    Raises:
        CheckpointError: it can't be made.
    """
    config, model_class = model_class_of(config_folder)
    with torch.device("meta"):
        model = model_class(config)
    model.tie_weights()
    return model


def model_class_of(config_folder: Path) -> tuple[Any, Any]:
    """The configuration in a folder and the class of transformers that it names. No code of the folder is run.

    Raises:
        CheckpointError: there is none, or transformers doesn't know it.
    """
    try:
        import peft  # noqa: F401
        import transformers
    except ImportError as error:
        raise CheckpointError(
            f"adapters need PEFT and transformers, expected both but got: {error}. pip install 'hf-tsv[adapters]'"
        ) from error
    path = config_folder / "config.json"
    try:
        names = json.loads(path.read_text("utf-8")).get("architectures") or ["none"]
        config = transformers.AutoConfig.from_pretrained(config_folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no configuration that transformers can read: {error}") from error
    model_class = getattr(transformers, names[0], None)
    if model_class is None:
        raise CheckpointError(
            f"{path}: expected 'architectures' to name a class of transformers {transformers.__version__} but got"
            f" {names[0]!r}. An adapter can be made for classes of transformers only"
        )
    return config, model_class


@contextmanager
def quiet() -> Iterator[None]:
    """transformers and PEFT without their talk: what matters of it is checked on the tensors."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _modules(model: nn.Module, renamed: frozenset[str]) -> Iterator[tuple[str, Module]]:
    fused_attention: list[str] = []
    read = read_by_owner(model)
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.MultiheadAttention):
            fused_attention.append(f"{path}.")
        kind: ModuleKind = "other" if path.startswith(tuple(fused_attention)) else _kind(path, module)
        tensors = {
            name: tensor.shape
            for name, tensor in (*module._parameters.items(), *module._buffers.items())
            if tensor is not None and name not in module._non_persistent_buffers_set
        }
        if kind == "linear" and path.rpartition(".")[2] in renamed:
            kind = "parameters"
        flipped = kind in ("conv1d", "embedding") or bool(getattr(module, "is_transposed", False))
        has_layers = any(isinstance(inner, nn.ModuleList) for inner in module.modules())
        yield path, Module(path, kind, tensors, flipped, path in read, isinstance(module, CONTAINERS), has_layers)


def _kind(path: str, module: nn.Module) -> ModuleKind:
    """What PEFT can make of a module. A subclass may use its weight in ways that factors don't follow."""
    from transformers.pytorch_utils import Conv1D

    if type(module) is nn.Linear:
        return "linear"
    if type(module) is Conv1D:
        return "conv1d"
    if type(module) is nn.Embedding:
        return "embedding"
    if type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and _is_plain(module):
        return "conv"
    return "parameters" if path and _is_expert_or_router(path, module) else "other"


def _is_expert_or_router(path: str, module: nn.Module) -> bool:
    """Whether factors can be added to a module's bare parameters.

    PEFT wraps such a module and forwards no attribute, so a router whose owner reads a correction bias of it is none.
    """
    if isinstance(module, (nn.Linear, nn.Embedding)) or any(child.state_dict() for child in module.children()):
        return False
    tensors = {name: tensor for name, tensor in module.named_parameters(recurse=False)}
    kinds = {kind_of(TensorInfo(f"{path}.{name}", tuple(tensor.shape), "F32")) for name, tensor in tensors.items()}
    return "expert" in kinds or (kinds == {"router"} and len(tensors) == 1 and not module._buffers)


def _is_plain(conv: Any) -> bool:
    """PEFT's factors of a convolution copy its stride and padding, but no dilation, groups or padding mode."""
    return conv.groups == 1 and set(conv.dilation) == {1} and conv.padding_mode == "zeros"


def _task_type(model: Any) -> str | None:
    """PEFT's class for a task calls the model with `input_ids`."""
    name = type(model).__name__
    if model.main_input_name != "input_ids":
        return None
    if name.endswith("ForConditionalGeneration") and model.config.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    return next((task for ending, task in TASK_TYPES.items() if name.endswith(ending)), None)


def _aliases(model: nn.Module) -> dict[str, tuple[str, ...]]:
    names: defaultdict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return {name: tuple(tied) for tied in names.values() if len(tied) > 1 for name in tied}


def _renamed_leaves(model: nn.Module) -> frozenset[str]:
    """Last names of linear modules that PEFT takes for experts of the days before transformers stacked them.

    A `target_modules` entry of that name would be turned into a target on the experts, so these are targeted through
    `target_parameters`.
    """
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:
        return frozenset()
    from peft import LoraConfig
    from transformers.conversion_mapping import get_model_conversion_mapping

    conversions = get_model_conversion_mapping(model)
    leaves = {path.rpartition(".")[2] for path, module in model.named_modules() if type(module) is nn.Linear}
    renamed = set()
    for leaf in leaves:
        config = LoraConfig(target_modules=[leaf])
        try:
            convert_peft_config_for_transformers(config, model=model, conversions=conversions)
        except ValueError:  # one of several that would have to be renamed together
            renamed.add(leaf)
        else:
            renamed |= {leaf} - set(config.target_modules or ())
    return frozenset(renamed)
