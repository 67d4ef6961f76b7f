"""The changes that an adapter makes to a model's tensors: found by `keys`, applied by `adapter`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Pair:
    """The keys of a tensor's factors, and how its change is computed from them.

    Attributes:
        a: Key of factor A, which is applied first.
        b: Key of factor B.
        scale: Multiplier of the product.
        transposed: True if the tensor is stored (in, out).
        experts: Number of experts whose factors the keys stack.
        expert: Index of the tensor's expert; None if the tensor stacks the experts too.
        rows: First and past-the-last row of B that belong to the tensor; None for all.
    """

    a: str
    b: str
    scale: float
    transposed: bool = False
    experts: int = 1
    expert: int | None = None
    rows: tuple[int, int] | None = None

    @property
    def is_stacked(self) -> bool:
        """True if the tensor stacks several experts."""
        return self.experts > 1 and self.expert is None


@dataclass(frozen=True)
class Value:
    """A tensor's new value.

    Attributes:
        key: The key that holds the value.
        expert: Index of the tensor's matrix in the key's stack; None if the tensor isn't one matrix of a stack.
        rows: First and past-the-last row of the key's tensor or matrix that belong to this tensor; None for all.
    """

    key: str
    expert: int | None = None
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Change:
    """An adapter's change of one tensor; if there are several parts, they apply in this order.

    Attributes:
        value: The tensor's new value.
        tokens: Key of the new values of some rows, and the indices of these rows.
        bias: Key of a vector that is added, and its multiplier.
        pair: The factors of a matrix that is added.
    """

    value: Value | None = None
    tokens: tuple[str, tuple[int, ...]] | None = None
    bias: tuple[str, float] | None = None
    pair: Pair | None = None

    @property
    def keys(self) -> list[str]:
        """The keys of all tensors that the change uses."""
        keys = []
        if self.value:
            keys.append(self.value.key)
        if self.tokens:
            keys.append(self.tokens[0])
        if self.bias:
            keys.append(self.bias[0])
        if self.pair:
            keys += [self.pair.a, self.pair.b]
        return keys


@dataclass
class Changes:
    """All changes that an adapter makes to a model.

    Attributes:
        of: The change of each tensor, by its name in the model.
        own: The key of each tensor that the model lacks or has in another shape, by the tensor's name.
        notes: Notes for the user.
    """

    of: dict[str, Change] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """The place of a part of a model's parameter in its files: some architectures are saved in another layout.

    Attributes:
        tensor: The name of the tensor in the files.
        expert: Index of its matrix in the parameter's stack; None if the parameter isn't stacked.
        row: The tensor's first row in the parameter, or in the expert's matrix.
        rows: Number of the parameter's rows that the tensor holds; None if it is the whole parameter.
        is_tied: True if the files hold it under another parameter's name, to which the model ties this one.
    """

    tensor: str
    expert: int | None = None
    row: int = 0
    rows: int | None = None
    is_tied: bool = False


Places = Mapping[str, Sequence[Place]]  # by the parameter's name in the model
