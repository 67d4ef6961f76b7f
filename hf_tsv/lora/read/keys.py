"""Which tensor of a model each key of a LoRA adapter changes, and how. Reads headers, and weights that look tied.

PEFT names a key by the module's path in the bare model: `base_model.model.PATH.lora_A.weight`. What it stores for each
kind of module, and how that makes the change of the module's weight:

    Linear                A (r, in)       B (out, r)       B A
    transformers' Conv1D  A (r, in)       B (out, r)       (B A)^T, for its weight is stored (in, out)
    Embedding             A (r, tokens)   B (dim, r)       (B A)^T
    Conv1d, 2d, 3d        A (r, in, *k)   B (out, r, 1..)  B A, kernels flattened
    stacked experts       A (E r, in)     B (out, r E)     B_e A_e for every expert e, or its transpose
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from hf_tsv.checkpoints.aligned import Renaming, first_components
from hf_tsv.checkpoints.protocol import Checkpoint
from hf_tsv.errors import CheckpointError, some
from hf_tsv.lora.format import ADAPTER_CONFIG, AdapterConfig
from hf_tsv.lora.read.changes import Change, Changes, Pair, Place, Places, Value
from hf_tsv.lora.read.config import MERGE_IT

LINEAR = ("lora_A.weight", "lora_B.weight")
EMBEDDING = ("lora_embedding_A", "lora_embedding_B")
BIAS = "lora_B.bias"
TOKENS = "token_adapter.trainable_tokens_delta"

_PREFIX = "base_model.model."
_KEY = re.compile(rf"(.+)\.({'|'.join(map(re.escape, (*LINEAR, *EMBEDDING, BIAS, TOKENS)))})")
_OF_LORA = re.compile(r"(^|\.)lora_")
_COPY = re.compile(r"\.(original_module|modules_to_save)\.")  # bias: all saves biases twice more; PEFT reads neither
_DORA = "lora_magnitude_vector"
_BASE_LAYER = ".base_layer"
_ATTENTION_OUT = ".base_layer.out_proj"  # of nn.MultiheadAttention
_OTHER_BASE = "Name the model that it was trained on as its base"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Weight:
    """What factors are put on: a parameter of the model, a matrix or one an expert.

    Attributes:
        name: What the model calls it.
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


def changes_of(
    tensors: Checkpoint, config: AdapterConfig, model: Checkpoint, places: Callable[[], Places] | None = None
) -> Changes:
    """Find the tensors of a model that an adapter changes.

    Args:
        tensors: The adapter's.
        config: The adapter's.
        model: The model that it is put on.
        places: Where the model's files hold its parameters; asked for only where the names don't meet as they are.

    Raises:
        CheckpointError: keys that aren't known, match nothing, or don't fit; all of them are told.
    """
    mapper = _Mapper(tensors, config, model, places)
    mapper.add_all()
    if problems := mapper.problems():
        raise CheckpointError(f"{tensors.label}: {problem}" for problem in problems)
    return mapper.changes


class _Keys:
    """An adapter's keys, taken apart: those of LoRA by module, tensors kept whole by name, and what is neither."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.modules: dict[str, dict[str, str]] = {}
        self.values: dict[str, str] = {}
        self.odd: list[str] = []
        for key in keys:
            name = key.removeprefix(_PREFIX)
            if match := _KEY.fullmatch(name):
                self.modules.setdefault(match[1], {})[match[2]] = key
            elif _OF_LORA.search(name):
                self.odd.append(key)
            elif not _COPY.search(name):
                self.values[name.replace(_BASE_LAYER, "")] = key


class _Mapper:
    """Collects what is wrong on the way, so that all of it is told at once."""

    def __init__(
        self, tensors: Checkpoint, config: AdapterConfig, model: Checkpoint, places: Callable[[], Places] | None
    ) -> None:
        self.changes = Changes()
        self._tensors = tensors
        self._config = config
        self._model = model
        self._keys = _Keys(tensors.names())
        self._held = frozenset(model.names())
        self._places: Places = {}
        self._tied: dict[str, str] = {}  # names that the model's files lack, to the tensor that is held for them
        self._why_no_places: tuple[str, ...] = ()
        self._prefix = self._best_prefix()
        if places and not (all(map(self._weights, self._keys.modules)) and all(map(self._find, self._keys.values))):
            self._look_up(places)
            self._prefix = self._best_prefix()
        self._lost: list[str] = []
        self._misfits: list[str] = []
        self._told: list[str] = []

    def add_all(self) -> None:
        for name, key in self._keys.values.items():
            self._add_value(name, key)
        for module, keys in self._keys.modules.items():
            for kind in (LINEAR, EMBEDDING):
                self._add_pair(module, [keys[part] for part in kind if part in keys], is_embedding=kind is EMBEDDING)
            if BIAS in keys and self._config.lora_bias:
                self._add_bias(module, keys[BIAS])
            if TOKENS in keys:
                self._add_tokens(module, keys[TOKENS])
        self.changes.notes = tuple(self._notes())

    def problems(self) -> list[str]:
        """One line a kind of mistake, so that a wrong base isn't told five hundred times."""
        problems = list(self._told)
        if dora := [key for key in self._keys.odd if _DORA in key]:
            problems.append(f"uses DoRA ({some(dora)}), expected a plain LoRA. {MERGE_IT}")
        if odd := [key for key in self._keys.odd if _DORA not in key]:
            problems.append(f"holds {some(odd)}, expected the keys of a plain LoRA. {MERGE_IT}")
        if lost := self._lost:
            where = self._model.label
            problems.append(f"changes what {where} doesn't have: {some(lost, 10)}. {_OTHER_BASE}")
            problems += [f"other names for them can't be looked up: {why}" for why in self._why_no_places]
        if self._misfits:
            problems.append(f"doesn't fit {self._model.label}: {some(self._misfits)}. {_OTHER_BASE}")
        return problems

    def _notes(self) -> Iterable[str]:
        ignored = [module for module, keys in self._keys.modules.items() if BIAS in keys]
        if ignored and not self._config.lora_bias:
            yield (
                f"{ADAPTER_CONFIG} has no lora_bias: true, so the biases that the adapter holds are left out, as PEFT"
                f" does: {some(ignored)}"
            )
        if unread := self._config.unread():
            yield f"{ADAPTER_CONFIG} turns on what isn't known here and has no effect: {some(list(map(repr, unread)))}"

    # ---------------------------------------------------------------------------------------- the kinds of keys

    def _add_value(self, name: str, key: str) -> None:
        """A tensor of a module that was trained as a whole, or a bias: it stands in the model's place."""
        target = self._find(name)
        if target is None:
            self._add_parts_or_own(self._prefix(name), key)
            return
        if self._model.info(target).shape != self._shape(key):
            self.changes.own[target] = key
        self._add(target, Change(value=Value(key)))

    def _add_parts_or_own(self, name: str, key: str) -> None:
        """A parameter that the model's files hold in several tensors; or one that the model lacks, of a head."""
        if name not in self._places and not self._is_copy(name, key):
            self.changes.own[name] = key
        for place in self._places.get(name, ()):
            of_one = self._shape(key)[0 if place.expert is None else 1 :]
            rows = None if place.rows is None else (place.row, place.row + place.rows)
            part = of_one if place.rows is None else (min(place.rows, of_one[0] - place.row), *of_one[1:])
            if self._fits(place.tensor, part):
                self._add(place.tensor, Change(value=Value(key, place.expert, rows)))

    def _add_pair(self, module: str, keys: Sequence[str], *, is_embedding: bool) -> None:
        if not keys:
            return
        if len(keys) == 1:
            self._told.append(f"{keys[0]} has no partner, expected lora_A and lora_B. Get it again")
        elif (made := _made(*map(self._shape, keys))) is None:
            shapes = " and ".join(str(self._shape(key)) for key in keys)
            self._told.append(f"{module} has factors of shapes {shapes}, expected (r, in) and (out, r). Get it again")
        elif weights := self._weights(module):
            self._add_factors(module, weights, keys, made, is_embedding=is_embedding)
        elif not (self._config.ensure_weight_tying and self._is_tied_head(*map(self._shape, keys))):
            self._lost += self._parameters_of(module) or [f"{_owner(module)}.weight"]

    def _add_bias(self, module: str, key: str) -> None:
        name = f"{_owner(module)}.bias"
        target = self._find(name) or self._find(f"{_owner(module)}.in_proj_bias")
        if target is None:
            self._lost.append(name)
        elif self._fits(target, self._shape(key)):
            self._add(target, Change(bias=(key, self._config.scaling(_adapted_as(module)))))

    def _add_tokens(self, module: str, key: str) -> None:
        target, rows = self._find(f"{module}.weight"), self._config.tokens_of(module)
        count_, *rest = self._shape(key)
        if target is None:
            self._lost.append(f"{module}.weight")
        elif rows is None or len(rows) != count_ or max(rows, default=0) >= self._stored_shape(target)[0]:
            self._told.append(
                f"{module} has {count_} rows of its own, expected as many trainable_token_indices in {ADAPTER_CONFIG},"
                f" each below {self._stored_shape(target)[0]}. Get it again"
            )
        elif self._fits(target, (self._stored_shape(target)[0], *rest)):
            self._add(target, Change(tokens=(key, tuple(rows))))

    def _add_factors(
        self, module: str, weights: Sequence[_Weight], keys: Sequence[str], made: Shape, *, is_embedding: bool
    ) -> None:
        """PEFT's key says whose parameter it is. Where a module has several, the shapes say which."""
        rank = self._shape(keys[0])[0]
        layouts = [(weight, self._is_transposed(weight, made, is_embedding=is_embedding)) for weight in weights]
        fitting = [(w, layout) for w, layout in layouts if layout is not None and rank % w.experts == 0]
        if len(fitting) != 1:
            has = some([f"{weight.name} {weight.matrix}" for weight in weights])
            self._misfits.append(f"{has} would change by {made[::-1] if is_embedding else made}")
            return
        [(weight, transposed)] = fitting
        adapted_as = weight.name if weight.is_parameter else _adapted_as(module)
        if self._has_rank(adapted_as, rank // weight.experts):
            # PEFT (0.21.2) adds this one's change twice, in training as in merging: so does the model it stands for.
            scale = self._config.scaling(adapted_as) * (2 if module.endswith(_ATTENTION_OUT) else 1)
            pair = Pair(keys[0], keys[1], scale, bool(transposed), weight.experts)
            for place in weight.places:
                rows = None if place.rows is None else (place.row, place.row + place.rows)
                self._add(place.tensor, Change(pair=replace(pair, expert=place.expert, rows=rows)))

    def _add(self, target: str, change: Change) -> None:
        before = self.changes.of.get(target, Change())
        if before.pair and change.pair:
            self._told.append(f"{before.pair.a} and {change.pair.a} both change {target}. Get it again")
        self.changes.of[target] = Change(
            change.value or before.value,
            change.tokens or before.tokens,
            change.bias or before.bias,
            change.pair or before.pair,
        )

    # ------------------------------------------------------------------------------------ names, shapes, layouts

    def _look_up(self, places: Callable[[], Places]) -> None:
        try:
            found = places()
            self._places = {name: held for name, held in found.items() if not any(place.is_tied for place in held)}
            self._tied = {name: held[0].tensor for name, held in found.items() if held and held[0].is_tied}
        except CheckpointError as error:  # tells only where it matters: a head that the model lacks is no mistake
            self._why_no_places = error.problems

    def _find(self, name: str) -> str | None:
        """The tensor that is a parameter, in the model's files; None where there is none."""
        name = self._prefix(name)
        if name in self._held:
            return name
        places = self._places.get(name, ())
        return places[0].tensor if len(places) == 1 and places[0].rows is None else None

    def _parameters_of(self, module: str) -> list[str]:
        """The parameters that the factors of a module may belong to: a bare `down_proj` is any module's."""
        owner = _owner(module)
        return [f"{owner}.{leaf}" for leaf in self._config.parameters_of(owner)]

    def _weights(self, module: str) -> list[_Weight]:
        """Those of them that the model has, or the module's own weight."""
        named = [weight for name in self._parameters_of(module) if (weight := self._weight(name, is_parameter=True))]
        if named:
            return named
        owner = _owner(module)
        weight = self._weight(f"{owner}.weight") or self._weight(f"{owner}.in_proj_weight")
        return [weight] if weight else []

    def _weight(self, name: str, *, is_parameter: bool = False) -> _Weight | None:
        if target := self._find(name):
            shape, place = self._stored_shape(target), Place(target)
            if is_parameter and len(shape) == 3:
                return _Weight(name, shape[1:], (place,), shape[0], is_parameter=True, is_stack=True)
            return _Weight(name, shape, (place,), is_parameter=is_parameter)
        places = self._places.get(self._prefix(name), ())
        if not places:
            return None
        rows, width = max(place.row + (place.rows or 0) for place in places), self._stored_shape(places[0].tensor)[1:]
        experts = 1 + max(place.expert or 0 for place in places)
        return _Weight(name, (rows, *width), tuple(places), experts, is_parameter)

    def _best_prefix(self) -> Renaming:
        """The first component to drop from names, or to add, so that most are the model's; none among equals."""
        wanted = {name for module in self._keys.modules for name in self._parameters_of(module)}
        wanted |= {f"{_owner(module)}.weight" for module in self._keys.modules} | self._keys.values.keys()
        held = self._held | self._places.keys()
        renamings = [Renaming()]
        renamings += [Renaming(drop=prefix) for prefix in first_components(wanted)]
        renamings += [Renaming(add=prefix) for prefix in first_components(held)]
        return max(renamings, key=lambda renaming: len(held & set(map(renaming, wanted))))

    def _is_transposed(self, weight: _Weight, made: Shape, *, is_embedding: bool) -> bool | None:
        """Whether a weight is stored (in, out) for factors that make (out, in); None where they don't fit it."""
        if is_embedding:
            return True if made[::-1] == weight.matrix else None
        if len(made) == 2 and made[0] == made[1] and made == weight.matrix:
            return self._is_square_transposed(weight)
        if made == weight.matrix:
            return False
        may_be = weight.is_stack if weight.is_parameter else weight.places[0].rows is None
        return True if may_be and len(made) == 2 and made[::-1] == weight.matrix else None

    def _is_square_transposed(self, weight: _Weight) -> bool:
        """The same for a square one, told by others like it."""
        if weight.is_stack:
            return self._are_experts_transposed(weight.name.rpartition(".")[0])
        if weight.is_parameter or weight.places[0].rows is not None:
            return False
        return self._transposed_leaves.get(_leaf(weight.places[0].tensor), self._config.fan_in_fan_out)

    @cached_property
    def _transposed_leaves(self) -> dict[str, bool]:
        """By a module's last name: whether its weight is stored (in, out). A bias is as long as what goes out."""
        found: dict[str, bool] = {}
        for name in self._held:
            bias = name.removesuffix("weight") + "bias"
            if name.endswith(".weight") and bias in self._held and len(shape := self._stored_shape(name)) == 2:
                out = self._stored_shape(bias)[-1:]
                if shape[0] != shape[1] and out in (shape[:1], shape[1:]):
                    found[_leaf(name)] = out == shape[1:]
        return found

    def _are_experts_transposed(self, owner: str) -> bool:
        """Whether stacked experts are stored (in, out): then gate and up are as wide as two of down are high."""
        gate_up, down = (self._find(f"{owner}.{leaf}") for leaf in ("gate_up_proj", "down_proj"))
        if gate_up is None or down is None:
            return False
        return self._stored_shape(gate_up)[2:] == (2 * self._stored_shape(down)[1],)

    def _is_copy(self, name: str, key: str) -> bool:
        """Whether a tensor is stored once more, under a name that the model ties to it: PEFT needs every copy."""
        held = self._tied.get(name)
        others = [other for known, other in self._keys.values.items() if held and self._find(known) == held]
        return any(torch.equal(self._tensors.read(key), self._tensors.read(other)) for other in others)

    def _is_tied_head(self, a: Shape, b: Shape) -> bool:
        """Whether a head's factors are an embedding's: PEFT saves both, the files of a tied model hold one weight."""
        modules = self._keys.modules.values()
        embeddings = [[self._shape(keys[part]) for part in EMBEDDING if part in keys] for keys in modules]
        return [b[::-1], a[::-1]] in embeddings

    def _fits(self, target: str, made: Shape) -> bool:
        shape = self._stored_shape(target)
        if made != shape:
            self._misfits.append(f"{target} {shape} would change by {made}")
        return made == shape

    def _has_rank(self, name: str, rank: int) -> bool:
        expected = self._config.rank(name)
        if rank != expected:
            self._told.append(
                f"{name} has rank {rank}, expected {expected} by {ADAPTER_CONFIG}. Get both files of one adapter"
            )
        return rank == expected

    def _shape(self, key: str) -> Shape:
        return self._tensors.info(key).shape

    def _stored_shape(self, target: str) -> Shape:
        """The shape of the model's tensor, or of the adapter's that stands in its place."""
        own = self.changes.own.get(target)
        return self._shape(own) if own else self._model.info(target).shape


def _made(a: Shape, b: Shape) -> Shape | None:
    """The shape of what two factors make, (out, in, *kernel); None where they are no two factors."""
    if len(a) < 2 or len(b) < 2 or a[0] != b[1] or any(side != 1 for side in b[2:]):
        return None
    return (b[0], *a[1:])


def _owner(module: str) -> str:
    """The module's own path: PEFT wraps the parameters of one module in one another, each in a `base_layer`."""
    return module.replace(_BASE_LAYER, "")


def _adapted_as(module: str) -> str:
    """What PEFT matches patterns with: nn.MultiheadAttention's out_proj goes by its attention's name."""
    return module.split(_BASE_LAYER, 1)[0]


def _leaf(name: str) -> str:
    return name.split(".")[-2]
