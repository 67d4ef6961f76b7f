"""Where each tensor of a checkpoint lies in the model that transformers makes of it.

Since version 5 transformers renames, stacks and splits tensors when it loads them: a ViT's `vit.encoder.layer.0…`
becomes `vit.layers.0…`, the experts of a Mixtral become one parameter. Its own conversion tables say how.
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
    """Rows of a checkpoint's tensor and where they lie in the model.

    Attributes:
        parameter: The model's parameter or buffer.
        expert: Which of its stacked matrices; None if it isn't a stack of several tensors.
        first: First of the tensor's rows.
        row: Where that row lies in the parameter, or in the expert's matrix.
        rows: How many rows; None if the whole tensor is the whole parameter.
    """

    parameter: str
    expert: int | None = None
    first: int = 0
    row: int = 0
    rows: int | None = None

    def rows_of(self, tensor: Tensor) -> Tensor:
        """The rows of the checkpoint's tensor, or of a factor of it, that the piece is."""
        return tensor if self.rows is None else tensor[self.first : self.first + self.rows]

    def within(self, parameter: Tensor) -> Tensor:
        """The rows of the model's parameter that the piece is."""
        matrix = parameter if self.expert is None else parameter[self.expert]
        return matrix if self.rows is None else matrix[self.row : self.row + self.rows]


@dataclass(frozen=True)
class Located:
    """A checkpoint's tensors in the model.

    Attributes:
        pieces: Where each tensor lies.
        nowhere: Tensors that have no place in it, and why.
    """

    pieces: Mapping[str, tuple[Piece, ...]]
    nowhere: Mapping[str, str]


def locate(model: Any, headers: Mapping[str, TensorInfo]) -> Located:
    """Place every tensor of a checkpoint in a transformers model, which may be on the meta device."""
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
        # By the parameter that is made of them: the converter, and the tensors by the pattern that they match.
        self._groups: dict[str, tuple[Any, dict[str, list[str]]]] = {}

    def add(self, info: TensorInfo) -> None:
        from transformers.core_model_loading import rename_source_key

        name, model_name = info.name, type(self._model).__name__
        prefix = self._model.base_model_prefix
        key, pattern = rename_source_key(name, self._renamings, self._converters, prefix, self._state)
        # Files of a new version hold the model's own names, which a renaming may spoil.
        if key not in self._state and name in self._state:
            key, pattern = rename_source_key(name, [], [], prefix, self._state)
        if key not in self._state:
            self.nowhere[name] = f"{model_name} has no such tensor"
            return
        if pattern is not None:  # made together with other tensors, once all of them are known
            _, names = self._groups.setdefault(key, (self._by_pattern[pattern], {}))
            names.setdefault(pattern, []).append(name)
            return
        expected = tuple(self._state[key].shape)
        if tuple(info.shape) == expected:
            self.pieces[name] = (Piece(key),)
        else:
            self.nowhere[name] = f"{model_name} has shape {expected} there, not {tuple(info.shape)}"

    def resolve(self, headers: Mapping[str, TensorInfo]) -> None:
        """Place what is stacked, joined or split on the way."""
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
        """What the conversion yields, run on tensors without data; nothing where the model has other shapes."""
        conversion = deepcopy(converter)  # it collects the tensors that are added to it
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
    """The pieces of the tensors of one conversion, by name; none for conversions that don't keep rows together.

    Args:
        operations: What transformers does, one after the other.
        groups: The tensors' names, those of one pattern together.
        targets: Shapes of what is made of them.
        headers: Of the tensors.
    """
    pieces: dict[str, tuple[Piece, ...]] = {}
    target = next(iter(targets))  # the only one, except where a tensor is cut
    row = 0
    match [(type(operation).__name__, getattr(operation, "dim", None)) for operation in operations]:
        # Experts are stacked first, so dimension 1 of the stack is the rows of each. Tensor number e of each group is
        # rows of matrix e, and the groups' rows lie below each other.
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
