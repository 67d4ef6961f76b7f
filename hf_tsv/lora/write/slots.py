"""The tensors of an adapter's files, and how each is computed from the changes."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hf_tsv.checkpoints.modules import kind_of, matrix_view
from hf_tsv.checkpoints.protocol import Checkpoint, TensorInfo
from hf_tsv.lora.architecture import Architecture
from hf_tsv.lora.format import BASE_LAYER, BIAS, EMBEDDING, LEFT, LINEAR, PREFIX, RIGHT
from hf_tsv.lora.modules import Module
from hf_tsv.lora.names import Piece
from hf_tsv.lora.write.changes import Change, WholeChange


class Slot(Protocol):
    """A group of tensors that are computed together.

    Attributes:
        infos: The headers of these tensors.
        awaited: The names of the changed tensors that they are computed from.
    """

    @property
    def infos(self) -> tuple[TensorInfo, ...]: ...

    @property
    def awaited(self) -> frozenset[str]: ...

    def make(self, changes: Mapping[str, Change], base: Checkpoint) -> list[Tensor]:
        """Compute the tensors in the order of `infos`. Tensors not in `changes` are taken from the base."""
        ...


@dataclass(frozen=True)
class Source:
    """A checkpoint tensor that is part of a parameter: its name, its piece there and its planned rank."""

    name: str
    piece: Piece
    rank: int


@dataclass(frozen=True)
class LoraSlot:
    """A parameter's factors A and B, with the change of the bias if it is stored with them.

    Attributes:
        module: The module that PEFT wraps.
        parameter: The full name of the parameter.
        shape: The parameter's shape.
        key: The module's key in the file, without the ending.
        rank: Rank of the factors in the file; the triplets of several sources are concatenated and padded with zeros.
        dtype: Dtype of the factors, as safetensors names it.
        sources: The changed tensors that make up the parameter.
        bias_size: Number of entries in the bias that is stored with the factors, 0 for none.
        bias_sources: The changed tensors that make up the bias.
    """

    module: Module
    parameter: str
    shape: torch.Size
    key: str
    rank: int
    dtype: str
    sources: tuple[Source, ...]
    bias_size: int = 0
    bias_sources: tuple[tuple[str, Piece], ...] = ()

    @property
    def awaited(self) -> frozenset[str]:
        of_weight = {source.name for source in self.sources}
        of_bias = {name for name, _ in self.bias_sources}
        return frozenset(of_weight | of_bias)

    @property
    def is_stack(self) -> bool:
        return self.module.kind == "parameters" and len(self.shape) == 3

    @property
    def is_flipped(self) -> bool:
        return self.module.is_flipped and (self.is_stack or self.module.kind != "parameters")

    @property
    def infos(self) -> tuple[TensorInfo, ...]:
        key_a, key_b = EMBEDDING if self.module.kind == "embedding" else LINEAR
        shape_a: tuple[int, ...]
        shape_b: tuple[int, ...]
        if self.module.kind == "conv":  # A is a convolution with the kernel's size, B has size 1
            kernel_of_1 = (1,) * len(self.shape[2:])
            shape_a = (self.rank, *self.shape[1:])
            shape_b = (self.shape[0], self.rank, *kernel_of_1)
        else:
            rows, columns = self._sides
            if self.is_flipped:
                rows, columns = columns, rows
            shape_a = (self._count * self.rank, columns)
            shape_b = (rows, self._count * self.rank)
        infos = [
            TensorInfo(f"{self.key}.{key_a}", shape_a, self.dtype),
            TensorInfo(f"{self.key}.{key_b}", shape_b, self.dtype),
        ]
        if self.bias_size:
            infos.append(TensorInfo(f"{self.key}.{BIAS}", (self.bias_size,), self.dtype))
        return tuple(infos)

    @property
    def _count(self) -> int:
        """The number of matrices in the parameter."""
        return self.shape[0] if self.is_stack else 1

    @property
    def _sides(self) -> tuple[int, int]:
        """The rows and columns of the parameter's matrices, as stored."""
        if self.is_stack:
            return self.shape[1], self.shape[2]
        return self.shape[0], self.shape[1:].numel()

    def make(self, changes: Mapping[str, Change], base: Checkpoint) -> list[Tensor]:
        left, right = self._assembled(changes)
        if self.is_flipped:
            left, right = right.mT, left.mT
        # PEFT stacks experts outermost in A and innermost in B.
        a = right.flatten(0, 1)  # (E * r, in)
        b = left.permute(1, 2, 0).flatten(1)  # (out, r * E)
        tensors = [a, b]
        if self.bias_size:
            bias = torch.zeros(self.bias_size, dtype=torch.float64)  # the change of the module's bias
            for name, piece in self.bias_sources:
                delta = new_value(name, changes[name], base).double() - base.read(name).double()
                put_rows(bias, delta, piece)
            tensors.append(bias)
        in_file = zip(tensors, self.infos, strict=True)
        return [tensor.to(info.torch_dtype).reshape(info.shape) for tensor, info in in_file]

    def _assembled(self, changes: Mapping[str, Change]) -> tuple[Tensor, Tensor]:
        """Return left (E, rows, r) and right (E, r, columns), float32; their products are all changes, in place."""
        rows, columns = self._sides
        left = torch.zeros(self._count, rows, self.rank)
        right = torch.zeros(self._count, self.rank, columns)
        used = [0] * self._count  # triplets of each expert so far
        for source in self.sources:
            piece = source.piece
            experts = range(self._count) if piece.expert is None else [piece.expert]
            pairs = halves(source.name, source.rank, changes[source.name])
            for expert, (u, vh) in zip(experts, pairs, strict=True):
                u = piece.rows_of(u)
                start = used[expert]
                end = start + u.shape[1]
                left[expert, piece.row : piece.row + len(u), start:end] = u
                right[expert, start:end] = vh
                used[expert] += source.rank  # also if the matrix has fewer triplets
        return left, right


@dataclass(frozen=True)
class WholeSlot:
    """The new value of a parameter whose module is stored whole."""

    info: TensorInfo
    sources: tuple[tuple[str, Piece], ...]
    changed: frozenset[str]

    @property
    def infos(self) -> tuple[TensorInfo, ...]:
        return (self.info,)

    @property
    def awaited(self) -> frozenset[str]:
        return self.changed

    def make(self, changes: Mapping[str, Change], base: Checkpoint) -> list[Tensor]:
        dtype = self.info.torch_dtype
        if len(self.sources) == 1:
            name, piece = self.sources[0]
            if piece.rows is None:  # the tensor is the whole parameter
                return [current_value(name, changes, base).to(dtype)]
        value = torch.empty(self.info.shape, dtype=dtype)
        for name, piece in self.sources:
            put_rows(value, current_value(name, changes, base).to(dtype), piece)
        return [value]


@dataclass(frozen=True)
class RestSlot:
    """A tensor of the sidecar: its new value, or the factors of its change."""

    name: str
    infos: tuple[TensorInfo, ...]
    rank: int | None

    @property
    def awaited(self) -> frozenset[str]:
        return frozenset([self.name])

    def make(self, changes: Mapping[str, Change], base: Checkpoint) -> list[Tensor]:
        change = changes[self.name]
        if self.rank is None:
            [info] = self.infos
            return [new_value(self.name, change, base).to(info.torch_dtype)]
        pairs = halves(self.name, self.rank, change)
        tensors = []
        for side, info in enumerate(self.infos):
            # A matrix with fewer triplets than planned is padded with zeros.
            stack = torch.zeros(info.shape).reshape(-1, *info.shape[-2:])
            for matrix, pair in zip(stack, pairs, strict=True):
                rows, columns = pair[side].shape
                matrix[:rows, :columns] = pair[side]
            tensors.append(stack.reshape(info.shape).to(info.torch_dtype))
        return tensors


def rest_slot(info: TensorInfo, rank: int | None, dtype: str) -> RestSlot:
    """Return the slot of a tensor in the sidecar.

    Args:
        info: The tensor's header in the checkpoint.
        rank: The rank of its factors, or None to store it whole.
        dtype: The dtype of its factors.
    """
    view = matrix_view(info, kind_of(info))
    if rank is None or view is None:
        return RestSlot(info.name, (info,), None)
    stack = (view.count,) if view.count > 1 else ()
    left = TensorInfo(info.name + LEFT, (*stack, view.m, rank), dtype)
    right = TensorInfo(info.name + RIGHT, (*stack, rank, view.n), dtype)
    return RestSlot(info.name, (left, right), rank)


def halves(name: str, rank: int, change: Change) -> list[tuple[Tensor, Tensor]]:
    """Return the leading triplets of each of a tensor's matrices, with the singular values split between both sides.

    Returns:
        Pairs of u sqrt(s) (m, k) and sqrt(s) vh (k, n), k at most `rank`; an even split keeps both in 16-bit range.
    """
    if isinstance(change, WholeChange):
        raise ValueError(f"{name} is planned as factors of rank {rank}, got a new value")
    pairs = []
    for factors in change.matrices:
        root = factors.s[:rank].sqrt()
        pairs.append((factors.u[:, :rank] * root, root[:, None] * factors.vh[:rank]))
    return pairs


def current_value(name: str, changes: Mapping[str, Change], base: Checkpoint) -> Tensor:
    """Return the fine-tune's tensor: changed, or as in the base."""
    return new_value(name, changes[name], base) if name in changes else base.read(name)


def new_value(name: str, change: Change, base: Checkpoint) -> Tensor:
    """Return a changed tensor; one computed from factors has their dtype."""
    if isinstance(change, WholeChange):
        return change.value
    before = base.read(name)
    deltas = [(factors.u * factors.s) @ factors.vh for factors in change.matrices]
    delta = torch.stack(deltas) if len(deltas) > 1 else deltas[0]
    return before.to(delta.dtype) + delta.reshape(before.shape)


def put_rows(target: Tensor, value: Tensor, piece: Piece) -> None:
    """Copy a checkpoint tensor, or the piece's rows of it, to its place in a parameter."""
    into = target if piece.expert is None else target[piece.expert]
    rows = piece.rows_of(value)
    into[piece.row : piece.row + len(rows)] = rows


def lora_key(architecture: Architecture, module: Module, parameter: str, targeted: Collection[str]) -> str:
    """Return the key of a module's factors. If several of its parameters are targeted, the last one is outermost."""
    key = PREFIX + module.path
    if module.kind != "parameters":
        return key
    order = [local for local in module.tensors if f"{module.path}.{local}" in targeted]
    outer = len(order) - 1 - order.index(parameter.rpartition(".")[2])
    return key + BASE_LAYER * outer
