"""A base model without its weights: its modules, and where each checkpoint tensor belongs in them."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hf_tsv.checkpoints.protocol import TensorInfo
from hf_tsv.lora.modules import Module, modules_of
from hf_tsv.lora.names import Located, Piece, locate
from hf_tsv.lora.skeleton import make_skeleton, quiet

_TASK_TYPES = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
}


@dataclass(frozen=True)
class Place:
    """How PEFT can store one tensor's change.

    Attributes:
        low_rank: True if it can be stored as factors.
        group: The name of the tensor's group, or its own name if it has none. All tensors of a group, such as the
            experts of a layer, should have the same rank, because PEFT stores all of them at the largest.
        rank_numbers: How many numbers one singular triplet takes up.
    """

    low_rank: bool
    group: str
    rank_numbers: int


@dataclass(frozen=True)
class Architecture:
    """A base model's modules, and where each of its checkpoint's tensors belongs in them.

    Attributes:
        folder: The base model's folder, with its weights.
        config_folder: The folder whose config.json names the adapter's model class: the base's, or the fine-tune's if
            that has its own head.
        class_name: The name of that class in transformers.
        task_type: PEFT's name for the class's task, or None if PEFT's class for that task can't run this model.
        headers: The headers of the base's and the fine-tune's tensors, by name.
        modules: The model's modules by path, in its order.
        located: The tensors' places in the model.
        aliases: All names of each tied parameter, by each of these names.
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
        """The tensors that make up each parameter: by expert, and within an expert from the top row down."""
        unordered: defaultdict[str, list[tuple[str, Piece]]] = defaultdict(list)
        for name, pieces in self.located.pieces.items():
            for piece in pieces:
                unordered[piece.parameter].append((name, piece))

        def order(source: tuple[str, Piece]) -> tuple[int, int]:
            _, piece = source
            return (piece.expert or 0, piece.row)

        return {parameter: tuple(sorted(sources, key=order)) for parameter, sources in unordered.items()}

    def sources_of(self, parameter: str) -> tuple[tuple[str, Piece], ...]:
        """Return the tensors that make up a parameter, under any of its tied names; empty if there are none."""
        for name in (parameter, *self.aliases.get(parameter, ())):
            if name in self.sources:
                return self.sources[name]
        return ()

    @cached_property
    def _states(self) -> Mapping[str, list[str]]:
        """The names of the tensors in each module and its submodules, by the module's path."""
        states: defaultdict[str, list[str]] = defaultdict(list)
        for module in self.modules.values():
            keys = [f"{module.path}.{local}" for local in module.tensors]
            path = module.path
            # Every enclosing module contains these tensors too.
            while keys and path:
                states[path] += keys
                path = path.rpartition(".")[0]
        return states

    def owner(self, parameter: str) -> Module:
        """Return the module that a parameter or buffer belongs to."""
        return self.modules[parameter.rpartition(".")[0]]

    def shape(self, parameter: str) -> torch.Size:
        return self.owner(parameter).tensors[parameter.rpartition(".")[2]]

    def state_under(self, path: str) -> list[str]:
        """Return the names of all parameters and saved buffers in a module and its submodules."""
        return self._states.get(path, [])

    def no_factors(self, parameter: str) -> str:
        """Return why PEFT can't add factors to a parameter; empty if it can."""
        module, local = self.owner(parameter), parameter.rpartition(".")[2]
        if parameter in self.aliases:
            others = [name for name in self.aliases[parameter] if name != parameter]
            return f"it is tied to {others[0]}"
        if module.is_read:
            return "the module around it reads its weight or its attributes, which PEFT's factors don't change"
        if module.kind == "parameters":
            is_matrix_or_stack = len(module.tensors[local]) in (2, 3)  # (m, n) or (experts, m, n)
            return "" if is_matrix_or_stack else "PEFT adds factors to matrices only"
        if module.kind == "other" or local != "weight":
            return "PEFT adds factors only to the weights of linear, embedding and plain convolution modules"
        return ""

    def place(self, name: str) -> Place:
        """Return how PEFT can store a change of the tensor `name`."""
        info = self.headers[name]
        pieces = self.located.pieces.get(name)
        if not pieces:
            return Place(False, name, sum(info.shape[:2]))
        first = pieces[0]
        shares_rank = len(self.sources[first.parameter]) > 1
        # Tensors of the same kind, such as the experts' gates, start at the same row.
        group = f"{first.parameter}:{first.row}" if shares_rank else name
        low_rank = True
        rank_numbers = 0
        for piece in pieces:
            if self.no_factors(piece.parameter):
                low_rank = False
            # Factors span all rows of the parameter, even where the piece is only some of them.
            shape = self.shape(piece.parameter)
            if not shape:
                rank_numbers += 1
            elif len(shape) == 3 and self.owner(piece.parameter).kind == "parameters":  # (experts, rows, columns)
                experts = shape[0] if piece.expert is None else 1
                rank_numbers += experts * (shape[1] + shape[2])
            else:
                rank_numbers += shape[0] + shape[1:].numel()
        return Place(low_rank, group, rank_numbers)


def read_architecture(
    headers: Mapping[str, TensorInfo], folder: Path, *, config_folder: Path | None = None
) -> Architecture:
    """Build the model that a folder's config.json names, without weights, and locate the checkpoint's tensors in it.

    Args:
        headers: The headers of the base's tensors and of those that only the fine-tune has, by name.
        folder: The base model's folder.
        config_folder: The fine-tune's folder, if its class has a head that the base's class lacks.

    Raises:
        CheckpointError: transformers and PEFT are not installed, or transformers has no such model class.
    """
    config_folder = config_folder or folder
    model = make_skeleton(config_folder)
    # Tied parameters are one object under several names.
    by_parameter: defaultdict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_parameter[id(parameter)].append(name)
    aliases: dict[str, tuple[str, ...]] = {}
    for names in by_parameter.values():
        if len(names) > 1:
            aliases.update(dict.fromkeys(names, tuple(names)))
    with quiet():
        modules = {module.path: module for module in modules_of(model)}
        located = locate(model, headers)
    return Architecture(
        folder=folder,
        config_folder=config_folder,
        class_name=type(model).__name__,
        task_type=_task_type(model),
        headers=dict(headers),
        modules=modules,
        located=located,
        aliases=aliases,
    )


def _task_type(model: Any) -> str | None:
    """Return PEFT's name for the task of a model's class, or None if none fits."""
    name = type(model).__name__
    # PEFT's task classes pass on only `input_ids` as the main input.
    if model.main_input_name != "input_ids":
        return None
    if name.endswith("ForConditionalGeneration") and model.config.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    for ending, task in _TASK_TYPES.items():
        if name.endswith(ending):
            return task
    return None
