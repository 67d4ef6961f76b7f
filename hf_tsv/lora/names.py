"""The place of each checkpoint tensor in the model that transformers builds from it.

Since version 5 transformers renames, stacks and splits tensors when it loads them: a ViT's `vit.encoder.layer.0…`
becomes `vit.layers.0…`, the experts of a Mixtral become one parameter. Its own conversion tables define this.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from hf_tsv.checkpoints.protocol import TensorInfo


@dataclass(frozen=True)
class Piece:
    """Rows of a checkpoint tensor, and their place in the model.

    Attributes:
        parameter: The name of the model's parameter or buffer.
        expert: Index of the matrix in the parameter's stack; None if the parameter isn't a stack of several tensors.
        first: The first of these rows in the checkpoint tensor.
        row: The first of these rows in the parameter, or in the expert's matrix.
        rows: Number of rows; None if the whole tensor is the whole parameter.
    """

    parameter: str
    expert: int | None = None
    first: int = 0
    row: int = 0
    rows: int | None = None

    def rows_of(self, tensor: Tensor) -> Tensor:
        """Return the piece's rows of the checkpoint tensor, or of a factor of it."""
        return tensor if self.rows is None else tensor[self.first : self.first + self.rows]

    def within(self, parameter: Tensor) -> Tensor:
        """Return the piece's rows of the model's parameter."""
        matrix = parameter if self.expert is None else parameter[self.expert]
        return matrix if self.rows is None else matrix[self.row : self.row + self.rows]


@dataclass(frozen=True)
class Located:
    """The places of a checkpoint's tensors in the model.

    Attributes:
        pieces: The places of each tensor's rows in the model, by the tensor's name.
        nowhere: The reason why a tensor has no place in the model, by its name.
    """

    pieces: Mapping[str, tuple[Piece, ...]]
    nowhere: Mapping[str, str]


def locate(model: Any, headers: Mapping[str, TensorInfo]) -> Located:
    """Locate every tensor of a checkpoint in a transformers model, which may be on the meta device."""
    from transformers.core_model_loading import dot_natural_key

    locator = _Locator(model)
    for name in sorted(headers, key=dot_natural_key):
        locator.add(headers[name])
    locator.resolve(headers)
    return Located(locator.pieces, locator.nowhere)


class _Locator:
    """Follows the steps of transformers' `convert_and_load_state_dict_in_model`, on headers.

    Attributes:
        pieces: As in `Located`.
        nowhere: As in `Located`.
    """

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self.pieces: dict[str, tuple[Piece, ...]] = {}
        self.nowhere: dict[str, str] = {}
        self._model = model
        self._state = model.state_dict()
        mapping = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._by_pattern = {}
        for converter in self._converters:
            self._by_pattern.update(dict.fromkeys(converter.source_patterns, converter))
        # For each parameter made of several tensors: its converter, and the tensors' names by the pattern they match.
        self._groups: dict[str, tuple[Any, dict[str, list[str]]]] = {}

    def add(self, info: TensorInfo) -> None:
        from transformers.core_model_loading import rename_source_key

        name, model_name = info.name, type(self._model).__name__
        prefix = self._model.base_model_prefix
        key, pattern = rename_source_key(name, self._renamings, self._converters, prefix, self._state)
        # Files saved by newer versions already use the model's own names, which a renaming may break.
        if key not in self._state and name in self._state:
            key, pattern = rename_source_key(name, [], [], prefix, self._state)
        if key not in self._state:
            self.nowhere[name] = f"{model_name} has no such tensor"
            return
        if pattern is not None:  # located with its group, once all of its tensors are known
            _, names = self._groups.setdefault(key, (self._by_pattern[pattern], {}))
            names.setdefault(pattern, []).append(name)
            return
        expected = tuple(self._state[key].shape)
        if tuple(info.shape) == expected:
            self.pieces[name] = (Piece(key),)
        else:
            self.nowhere[name] = f"{model_name} has shape {expected} there, not {tuple(info.shape)}"

    def resolve(self, headers: Mapping[str, TensorInfo]) -> None:
        """Locate the tensors that transformers stacks, joins or splits when it loads them."""
        for key, (converter, names) in self._groups.items():
            targets = self._targets(key, converter, names, headers)
            # The order of the patterns is that of their tensors' rows.
            ordered = [names[pattern] for pattern in converter.source_patterns if pattern in names]
            placed: dict[str, tuple[Piece, ...]] = {}
            if targets:
                placed = _placed(converter.operations, ordered, targets, headers)
            for name in chain.from_iterable(ordered):
                if name in placed:
                    self.pieces[name] = placed[name]
                else:
                    self.nowhere[name] = f"transformers makes {key} of it in a way that mixes rows"

    def _targets(
        self, key: str, converter: Any, names: Mapping[str, list[str]], headers: Mapping[str, TensorInfo]
    ) -> dict[str, torch.Size]:
        """Return the shapes that a conversion produces, run without data; empty if the model's shapes differ."""
        conversion = deepcopy(converter)  # a converter keeps the tensors added to it
        for pattern, group in names.items():
            for name in group:
                conversion.add_tensor(key, name, pattern, torch.empty(headers[name].shape, device="meta"))
        converted = conversion.convert(key, model=self._model, config=self._model.config)
        shapes = {}
        for name, value in converted.items():
            tensor = value[0] if isinstance(value, list) else value
            shapes[name] = tensor.shape
            if name not in self._state or self._state[name].shape != shapes[name]:
                return {}
        return shapes


def _placed(
    operations: Sequence[Any],
    groups: Sequence[Sequence[str]],
    targets: Mapping[str, torch.Size],
    headers: Mapping[str, TensorInfo],
) -> dict[str, tuple[Piece, ...]]:
    """Return the pieces of one conversion's tensors, by name; empty for conversions that don't keep rows together.

    Args:
        operations: The operations of transformers, in order.
        groups: The tensors' names, grouped by pattern.
        targets: The shapes of the resulting parameters, by name.
        headers: The headers of the tensors, by name.
    """
    pieces: dict[str, tuple[Piece, ...]] = {}
    target = next(iter(targets))  # the only one, except where a tensor is cut
    row = 0
    match [(type(operation).__name__, getattr(operation, "dim", None)) for operation in operations]:
        # Experts are stacked first, so dimension 1 of the stack is the rows of each expert. Tensor e of each group
        # supplies rows of matrix e, and the groups' rows follow one another.
        case [("MergeModulelist", 0)] | [("MergeModulelist", 0), ("Concatenate", 1)]:
            for group in groups:
                rows = headers[group[0]].shape[0]
                for expert, name in enumerate(group):
                    pieces[name] = (Piece(target, expert, row=row, rows=rows),)
                row += rows
        case [("Concatenate", 0)]:
            for name in chain.from_iterable(groups):
                rows = headers[name].shape[0]
                pieces[name] = (Piece(target, row=row, rows=rows),)
                row += rows
        # One tensor is cut into several parameters.
        case [("Chunk", 0)]:
            parts = []
            for part, shape in targets.items():
                parts.append(Piece(part, first=row, rows=shape[0]))
                row += shape[0]
            pieces[groups[0][0]] = tuple(parts)
    return pieces
