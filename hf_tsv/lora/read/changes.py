"""What an adapter does to a model's tensors: described by `keys`, carried out by `adapter`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Pair:
    """Where a tensor's factors are, and how its change is computed from them.

    Attributes:
        a: Key of the factor that is applied first.
        b: Key of the other.
        scale: Factor on the product.
        transposed: Whether the tensor is stored (in, out).
        experts: How many experts' factors the keys stack.
        expert: Which of them the tensor is; None if it stacks them too.
        rows: First and past-the-last row of b that are the tensor's; None for all.
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
        """Whether the tensor stacks several experts."""
        return self.experts > 1 and self.expert is None


@dataclass(frozen=True)
class Value:
    """A tensor's new value.

    Attributes:
        key: The key that holds it.
        expert: Which of the matrices that the key stacks; None if the tensor is all of them.
        rows: First and past-the-last row of these that are the tensor's; None for all.
    """

    key: str
    expert: int | None = None
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Change:
    """What an adapter does to one tensor; if it does several things, in this order.

    Attributes:
        value: Its new value.
        tokens: Key of the new values of some rows, and the numbers of these rows.
        bias: Key of a vector that is added, and the factor on it.
        pair: Factors of a matrix that is added.
    """

    value: Value | None = None
    tokens: tuple[str, tuple[int, ...]] | None = None
    bias: tuple[str, float] | None = None
    pair: Pair | None = None

    @property
    def keys(self) -> list[str]:
        """Every key that it reads."""
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
    """What an adapter does to a model.

    Attributes:
        of: The change of each tensor, by the model's name for it.
        own: Tensors that the model lacks, or has in another shape: name to key.
        notes: Notes for the user.
    """

    of: dict[str, Change] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where the files hold a part of a model's parameter: some architectures aren't saved as they run.

    Attributes:
        tensor: The tensor in the files.
        expert: Which of the parameter's stacked matrices it belongs to; None if the parameter isn't stacked.
        row: Where its first row lies in the parameter, or in the expert's matrix.
        rows: How many of the parameter's rows it holds; None if it is the whole parameter.
        is_tied: Whether the files hold it under another parameter, which the model keeps equal to this one.
    """

    tensor: str
    expert: int | None = None
    row: int = 0
    rows: int | None = None
    is_tied: bool = False


Places = Mapping[str, Sequence[Place]]  # by the parameter's name in the model
