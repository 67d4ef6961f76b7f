"""Finds the parameters that an adapter's keys name in the model's files, and whether they are stored transposed."""

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
        name: The parameter's name in the model.
        matrix: The shape of the parameter, or of one expert's matrix, as stored.
        places: The places of its parts in the model's files.
        experts: Number of experts that it stacks.
        is_parameter: True if target_parameters named it, False if its module was named.
        is_stack: True if one tensor stacks its experts.
    """

    name: str
    matrix: Shape
    places: tuple[Place, ...]
    experts: int = 1
    is_parameter: bool = False
    is_stack: bool = False


class Weights:
    """A lookup of a model's parameters by an adapter's names for them.

    The names may differ in their first component, as in `bert.encoder` and `encoder`. The one change that makes most of
    them match is applied to all.

    Attributes:
        own_shapes: Shapes of the adapter's tensors that replace the model's or are new, by name.
        places: The places of parameters that the files hold in other tensors, by name; empty until looked up.
        tied: The tensor that a parameter is tied to, by each name that the files lack; empty until looked up.
        why_no_places: The reasons why the places couldn't be looked up.
    """

    def __init__(
        self, model: Checkpoint, config: AdapterConfig, modules: Collection[str], values: Collection[str]
    ) -> None:
        """
        Args:
            model: The model that the adapter is put on.
            config: The adapter's configuration.
            modules: The modules with factors, biases or rows in the adapter, as its keys name them.
            values: The names of the parameters that the adapter stores whole.
        """
        self._model = model
        self._config = config
        self._names = frozenset(model.names())
        self._wanted = set(values)  # every parameter name that the adapter may refer to
        for module in modules:
            self._wanted.update(self.parameters_of(module))
            self._wanted.add(f"{owner_of(module)}.weight")
        self.own_shapes: dict[str, Shape] = {}
        self.places: dict[str, Sequence[Place]] = {}
        self.tied: dict[str, str] = {}
        self.why_no_places: tuple[str, ...] = ()
        self._renaming = self._best_renaming()

    def look_up(self, places: Callable[[], Places]) -> None:
        """Look up parameters that the files store differently. A failure is no error yet, because a head may be new."""
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
        """Return the model's name for a parameter."""
        return self._renaming(name)

    def find(self, name: str) -> str | None:
        """Return the tensor in the model's files that is a whole parameter; None if no single tensor is."""
        name = self.in_model(name)
        if name in self._names:
            return name
        places = self.places.get(name, ())
        return places[0].tensor if len(places) == 1 and places[0].rows is None else None

    def shape(self, target: str) -> Shape:
        """Return the shape of the model's tensor, or of the adapter's tensor that replaces it."""
        return self.own_shapes.get(target) or self._model.info(target).shape

    def parameters_of(self, module: str) -> list[str]:
        """Return the parameters that a module's factors may belong to: a bare target `down_proj` fits any module."""
        owner = owner_of(module)
        return [f"{owner}.{leaf}" for leaf in self._config.parameters_of(owner)]

    def of_module(self, module: str) -> list[Weight]:
        """Return the module's targeted parameters that the model has, or else the module's weight."""
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
        # The parameter consists of several tensors: blocks of rows, or one matrix for each expert.
        rows = max(place.row + (place.rows or 0) for place in places)
        columns = self.shape(places[0].tensor)[1:]
        experts = 1 + max(place.expert or 0 for place in places)
        return Weight(name, (rows, *columns), tuple(places), experts, is_parameter)

    def _best_renaming(self) -> Renaming:
        """Return the first component to drop from names, or to add, so that most of them match the model's."""
        names = self._names | self.places.keys()
        renamings = [Renaming()]
        renamings += [Renaming(drop=prefix) for prefix in first_components(self._wanted)]
        renamings += [Renaming(add=prefix) for prefix in first_components(names)]
        best, most = renamings[0], -1
        for renaming in renamings:
            renamed = {renaming(name) for name in self._wanted}
            matches = len(renamed & names)
            if matches > most:  # on a tie the first wins, so that names don't change without need
                best, most = renaming, matches
        return best

    # The orientation of a weight

    def is_transposed(self, weight: Weight, product: Shape, *, is_embedding: bool) -> bool | None:
        """Check whether a weight is stored (in, out), for factors whose product is (out, in); None if they don't fit.

        Args:
            weight: The weight.
            product: The shape of B A.
            is_embedding: True if the factors are an embedding's, which are always transposed.
        """
        if is_embedding:
            return True if product[::-1] == weight.matrix else None
        if product == weight.matrix:
            if len(product) != 2 or product[0] != product[1]:
                return False
            # A square weight's own shape doesn't show its orientation, but the shapes of similar weights do.
            if weight.is_stack:
                # If stored (experts, in, out), gate and up together have twice as many columns as down has rows.
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
        # A targeted parameter that is a plain matrix, or a weight split into rows, is never stored (in, out).
        may_be = weight.is_stack if weight.is_parameter else weight.places[0].rows is None
        return True if may_be else None

    @cached_property
    def _transposed_leaves(self) -> dict[str, bool]:
        """For each last name of modules, True if the weight is stored (in, out). A bias has `out` entries."""
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
    """Return the module's own path, without the `base_layer` of each wrapper that PEFT puts around a parameter."""
    return module.replace(BASE_LAYER, "")


def _leaf(name: str) -> str:
    return name.split(".")[-2]
