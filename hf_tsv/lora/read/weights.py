"""Where a model's files hold the parameters that an adapter's keys name, and which way round."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from hf_tsv.checkpoints.aligned import Renaming, first_components
from hf_tsv.checkpoints.protocol import Checkpoint
from hf_tsv.errors import CheckpointError
from hf_tsv.lora.format import BASE_LAYER, AdapterConfig
from hf_tsv.lora.read.changes import Place, Places

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Weight:
    """A parameter that factors change: one matrix, or one for each expert.

    Attributes:
        name: Its name in the model.
        matrix: Its shape, or one expert's, as stored.
        places: The tensors that hold it.
        experts: How many it stacks.
        is_parameter: Whether it was named in target_parameters and not by its module.
        is_stack: Whether one tensor stacks its experts.
    """

    name: str
    matrix: Shape
    places: tuple[Place, ...]
    experts: int = 1
    is_parameter: bool = False
    is_stack: bool = False


class Weights:
    """A model's parameters by the names that an adapter has for them.

    The names may differ by their first component, as `bert.encoder` and `encoder`: the one change that makes most of
    them match is applied to all.

    Attributes:
        own_shapes: Shapes of the adapter's tensors that replace the model's.
        places: The parameters that the files hold in other tensors, by name; empty until they are looked up.
        tied: Names that the files lack, each with the tensor that it is tied to.
        why_no_places: Why the places couldn't be looked up.
    """

    def __init__(
        self, model: Checkpoint, config: AdapterConfig, modules: Collection[str], values: Collection[str]
    ) -> None:
        """
        Args:
            model: The model that the adapter is put on.
            config: The adapter's.
            modules: The modules that the adapter has factors, biases or rows for, as its keys name them.
            values: The parameters that it holds whole.
        """
        self._model = model
        self._config = config
        self._names = frozenset(model.names())
        self._wanted = set(values)  # every name by which the adapter asks for something
        for module in modules:
            self._wanted.update(self.parameters_of(module))
            self._wanted.add(f"{owner_of(module)}.weight")
        self.own_shapes: dict[str, Shape] = {}
        self.places: dict[str, Sequence[Place]] = {}
        self.tied: dict[str, str] = {}
        self.why_no_places: tuple[str, ...] = ()
        self._renaming = self._best_renaming()

    def look_up(self, places: Callable[[], Places]) -> None:
        """Ask where the files hold what has other names there. Failing is not an error yet: a head may be new."""
        try:
            every = places()
        except CheckpointError as error:
            self.why_no_places = error.problems
        else:
            for name, held in every.items():
                tied = any(place.is_tied for place in held)
                if tied:
                    self.tied[name] = held[0].tensor
                else:
                    self.places[name] = held
        self._renaming = self._best_renaming()

    def in_model(self, name: str) -> str:
        """What the model calls a parameter."""
        return self._renaming(name)

    def find(self, name: str) -> str | None:
        """The tensor that is a whole parameter, in the model's files; None if they don't have it as one tensor."""
        name = self.in_model(name)
        if name in self._names:
            return name
        places = self.places.get(name, ())
        return places[0].tensor if len(places) == 1 and places[0].rows is None else None

    def shape(self, target: str) -> Shape:
        """The shape of the model's tensor, or of the adapter's that replaces it."""
        return self.own_shapes.get(target) or self._model.info(target).shape

    def parameters_of(self, module: str) -> list[str]:
        """The parameters that the factors of a module may belong to: a bare `down_proj` is any module's."""
        owner = owner_of(module)
        return [f"{owner}.{leaf}" for leaf in self._config.parameters_of(owner)]

    def of_module(self, module: str) -> list[Weight]:
        """The module's targeted parameters that the model has, or else its own weight."""
        parameters = [self._weight(name, is_parameter=True) for name in self.parameters_of(module)]
        named = [weight for weight in parameters if weight]
        if named:
            return named
        owner = owner_of(module)
        weight = self._weight(f"{owner}.weight") or self._weight(f"{owner}.in_proj_weight")
        return [weight] if weight else []

    def _weight(self, name: str, *, is_parameter: bool = False) -> Weight | None:
        target = self.find(name)
        if target:
            shape = self.shape(target)
            place = Place(target)
            if is_parameter and len(shape) == 3:  # (experts, rows, columns)
                return Weight(name, shape[1:], (place,), shape[0], is_parameter=True, is_stack=True)
            return Weight(name, shape, (place,), is_parameter=is_parameter)
        places = self.places.get(self.in_model(name), ())
        if not places:
            return None
        # A parameter made of several tensors: rows below each other, or one matrix for each expert.
        rows = max(place.row + (place.rows or 0) for place in places)
        columns = self.shape(places[0].tensor)[1:]
        experts = 1 + max(place.expert or 0 for place in places)
        return Weight(name, (rows, *columns), tuple(places), experts, is_parameter)

    def _best_renaming(self) -> Renaming:
        """The first component to drop from names, or to add, so that most of them are the model's."""
        names = self._names | self.places.keys()
        renamings = [Renaming()]
        renamings += [Renaming(drop=prefix) for prefix in first_components(self._wanted)]
        renamings += [Renaming(add=prefix) for prefix in first_components(names)]
        best, most = renamings[0], -1
        for renaming in renamings:
            renamed = {renaming(name) for name in self._wanted}
            matches = len(renamed & names)
            if matches > most:  # the first of equals stays, so that no change is made without need
                best, most = renaming, matches
        return best

    # Which way round a weight is stored

    def is_transposed(self, weight: Weight, product: Shape, *, is_embedding: bool) -> bool | None:
        """Whether a weight is stored (in, out), for factors whose product is (out, in); None if they don't fit it.

        Args:
            weight: The weight.
            product: The shape of B A.
            is_embedding: Whether the factors are an embedding's, which are always transposed.
        """
        if is_embedding:
            return True if product[::-1] == weight.matrix else None
        if product == weight.matrix:
            if len(product) != 2 or product[0] != product[1]:
                return False
            # A square weight's own shape doesn't tell, but those of others like it do.
            if weight.is_stack:
                # Gate and up together are twice as wide as down is high, if they are stored (experts, in, out).
                owner = weight.name.rpartition(".")[0]
                gate_up, down = self.find(f"{owner}.gate_up_proj"), self.find(f"{owner}.down_proj")
                if gate_up is None or down is None:
                    return False
                return self.shape(gate_up)[2:] == (2 * self.shape(down)[1],)
            if weight.is_parameter or weight.places[0].rows is not None:
                return False
            return self._transposed_leaves.get(_leaf(weight.places[0].tensor), self._config.fan_in_fan_out)
        if len(product) != 2 or product[::-1] != weight.matrix:
            return None
        # A parameter that is a plain matrix, or rows of another tensor, is never stored (in, out).
        may_be = weight.is_stack if weight.is_parameter else weight.places[0].rows is None
        return True if may_be else None

    @cached_property
    def _transposed_leaves(self) -> dict[str, bool]:
        """By a module's last name: whether its weight is stored (in, out). A bias has `out` entries."""
        transposed: dict[str, bool] = {}
        for name in self._names:
            bias = name.removesuffix("weight") + "bias"
            if not name.endswith(".weight") or bias not in self._names:
                continue
            shape = self.shape(name)
            out = self.shape(bias)[-1:]
            if len(shape) == 2 and shape[0] != shape[1] and out in (shape[:1], shape[1:]):
                transposed[_leaf(name)] = out == shape[1:]
        return transposed


def owner_of(module: str) -> str:
    """The module's own path: PEFT wraps the parameters of one module in one another, each in a `base_layer`."""
    return module.replace(BASE_LAYER, "")


def _leaf(name: str) -> str:
    return name.split(".")[-2]
