"""A base model without its weights: its modules, and where in them a checkpoint's tensors lie."""

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
    """How PEFT can store the change of one tensor.

    Attributes:
        low_rank: Whether as factors.
        group: Tensors of one group, such as the experts of a layer, should have one rank, since PEFT stores all of them
            with the largest. The tensor's own name if it is alone.
        rank_numbers: How many numbers one triplet takes.
    """

    low_rank: bool
    group: str
    rank_numbers: int


@dataclass(frozen=True)
class Architecture:
    """A base model's modules and where its checkpoint's tensors lie in them.

    Attributes:
        folder: The base model's folder, with its weights.
        config_folder: The folder whose config.json names the class that the adapter is for: the base's, or that of a
            fine-tune with a head of its own.
        class_name: The name of that class in transformers.
        task_type: PEFT's name for the class's task, None if PEFT's class for that task can't run this model.
        headers: The tensors that the base and its fine-tune have, by name.
        modules: By path, in the model's order.
        located: Where the tensors lie.
        aliases: All names of each tied parameter, by each of them.
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
        unordered: defaultdict[str, list[tuple[str, Piece]]] = defaultdict(list)
        for name, pieces in self.located.pieces.items():
            for piece in pieces:
                unordered[piece.parameter].append((name, piece))

        def order(source: tuple[str, Piece]) -> tuple[int, int]:
            _, piece = source
            return (piece.expert or 0, piece.row)

        return {parameter: tuple(sorted(sources, key=order)) for parameter, sources in unordered.items()}

    def sources_of(self, parameter: str) -> tuple[tuple[str, Piece], ...]:
        """The tensors that a parameter is made of, under any of its tied names; empty if the checkpoint has none."""
        for name in (parameter, *self.aliases.get(parameter, ())):
            if name in self.sources:
                return self.sources[name]
        return ()

    @cached_property
    def _states(self) -> Mapping[str, list[str]]:
        """By a module's path, the tensors of it and of the modules in it."""
        states: defaultdict[str, list[str]] = defaultdict(list)
        for module in self.modules.values():
            keys = [f"{module.path}.{local}" for local in module.tensors]
            path = module.path
            # The module's tensors are also those of every module around it.
            while keys and path:
                states[path] += keys
                path = path.rpartition(".")[0]
        return states

    def owner(self, parameter: str) -> Module:
        """The module that a parameter or buffer belongs to."""
        return self.modules[parameter.rpartition(".")[0]]

    def shape(self, parameter: str) -> torch.Size:
        return self.owner(parameter).tensors[parameter.rpartition(".")[2]]

    def state_under(self, path: str) -> list[str]:
        """Every parameter and saved buffer of a module and of the modules in it."""
        return self._states.get(path, [])

    def no_factors(self, parameter: str) -> str:
        """Why PEFT can't add factors to a parameter; empty when it can."""
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
        """How PEFT can store a change of the tensor `name`."""
        info = self.headers[name]
        pieces = self.located.pieces.get(name)
        if not pieces:
            return Place(False, name, sum(info.shape[:2]))
        first = pieces[0]
        shares_rank = len(self.sources[first.parameter]) > 1
        # The experts' tensors of one kind, such as their gates, lie at the same row.
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
    """Build the model that a folder's config.json names, without weights, and find the checkpoint's tensors in it.

    Args:
        headers: The base's tensors, and what the fine-tune has beside them, by name.
        folder: The base model's folder.
        config_folder: The fine-tune's folder, if its class has a head that the base's lacks.

    Raises:
        CheckpointError: transformers and PEFT are not installed, or transformers knows no such model.
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
    """PEFT's name for the task of a model's class, None if it has none that fits."""
    name = type(model).__name__
    # PEFT's classes for tasks pass on `input_ids` and no other main input.
    if model.main_input_name != "input_ids":
        return None
    if name.endswith("ForConditionalGeneration") and model.config.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    for ending, task in _TASK_TYPES.items():
        if name.endswith(ending):
            return task
    return None
