"""Finds the tensor that each key of a LoRA adapter changes, and how. Reads headers, and weights that look tied.

The factors that PEFT stores for each kind of module, and the change of the module's weight that they give:

    Linear                A (r, in)       B (out, r)       B A
    transformers' Conv1D  A (r, in)       B (out, r)       (B A)^T, because its weight is stored (in, out)
    Embedding             A (r, tokens)   B (dim, r)       (B A)^T
    Conv1d, 2d, 3d        A (r, in, *k)   B (out, r, 1..)  B A, kernels flattened
    stacked experts       A (E r, in)     B (out, r E)     B_e A_e for every expert e, or its transpose
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from hf_tsv.checkpoints.protocol import Checkpoint
from hf_tsv.errors import CheckpointError, some
from hf_tsv.lora.format import (
    ADAPTER_CONFIG,
    ATTENTION_OUT,
    BASE_LAYER,
    BIAS,
    COPIES,
    DORA_MARK,
    EMBEDDING,
    FACTOR_MARK,
    KEYS,
    LINEAR,
    PREFIX,
    TOKENS,
    AdapterConfig,
)
from hf_tsv.lora.read.changes import Change, Changes, Pair, Places, Value
from hf_tsv.lora.read.config import MERGE_IT
from hf_tsv.lora.read.weights import Shape, Weights, owner_of

_KEY = re.compile(rf"(.+)\.({'|'.join(map(re.escape, KEYS))})")
_OF_ADAPTER = re.compile(rf"(^|\.){FACTOR_MARK}")
_COPY = re.compile(rf"\.({'|'.join(COPIES)})\.")  # with bias="all", PEFT saves each bias under two more keys
_OTHER_BASE = "Name the model that it was trained on as its base"


def changes_of(
    tensors: Checkpoint, config: AdapterConfig, model: Checkpoint, places: Callable[[], Places] | None = None
) -> Changes:
    """Find the tensors of a model that an adapter changes.

    Args:
        tensors: The adapter's tensors.
        config: The adapter's configuration.
        model: The model that the adapter is put on.
        places: Returns the places of parameters in the model's files; called only if the names don't match as they are.

    Raises:
        CheckpointError: some keys are unknown, match nothing or don't fit; all of them are reported.
    """
    mapper = _Mapper(tensors, config, model, places)
    mapper.add_all()
    problems = mapper.problems()
    if problems:
        raise CheckpointError(f"{tensors.label}: {problem}" for problem in problems)
    return mapper.changes


class _Keys:
    """An adapter's keys, sorted by kind.

    Attributes:
        modules: LoRA keys by their module, then by their ending, which is one of `KEYS`.
        values: Keys of tensors stored whole, by the parameter's name.
        odd: Keys of other kinds of adapters.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self.modules: dict[str, dict[str, str]] = {}
        self.values: dict[str, str] = {}
        self.odd: list[str] = []
        for key in keys:
            name = key.removeprefix(PREFIX)
            if match := _KEY.fullmatch(name):
                self.modules.setdefault(match[1], {})[match[2]] = key
            elif _OF_ADAPTER.search(name):
                self.odd.append(key)
            elif not _COPY.search(name):
                self.values[name.replace(BASE_LAYER, "")] = key


class _Mapper:
    """Finds the changes, and collects mistakes along the way, so that all are reported together."""

    def __init__(
        self, tensors: Checkpoint, config: AdapterConfig, model: Checkpoint, places: Callable[[], Places] | None
    ) -> None:
        self.changes = Changes()
        self._tensors = tensors
        self._config = config
        self._model = model
        self._keys = _Keys(tensors.names())
        self._weights = Weights(model, config, self._keys.modules.keys(), self._keys.values.keys())
        if places:
            # Looking up places builds the model, so it is done only if a name isn't in the files.
            are_known = all(self._weights.of_module(module) for module in self._keys.modules)
            if not are_known or not all(self._weights.find(name) for name in self._keys.values):
                self._weights.look_up(places)
        self._broken: list[str] = []  # complete messages
        self._missing: list[str] = []  # parameters that the model lacks
        self._misfits: list[str] = []  # tensors whose shape differs from that of their change

    def add_all(self) -> None:
        for name, key in self._keys.values.items():
            self._add_value(name, key)
        without_effect = []  # modules whose bias PEFT doesn't load
        for module, keys in self._keys.modules.items():
            for kind in (LINEAR, EMBEDDING):
                present = [keys[part] for part in kind if part in keys]
                if len(present) == 1:
                    self._broken.append(f"{present[0]} has no partner, expected lora_A and lora_B. Download it again")
                elif present:
                    self._add_pair(module, present[0], present[1], is_embedding=kind is EMBEDDING)
            if BIAS in keys:
                if self._config.lora_bias:
                    self._add_bias(module, keys[BIAS])
                else:
                    without_effect.append(module)
            if TOKENS in keys:
                self._add_tokens(module, keys[TOKENS])
        notes = []
        if without_effect:
            notes.append(
                f"{ADAPTER_CONFIG} has no lora_bias: true, so the biases that the adapter holds are left out, as PEFT"
                f" does: {some(without_effect)}"
            )
        unread = self._config.unread()
        if unread:
            switches = some([repr(switch) for switch in unread])
            notes.append(f"{ADAPTER_CONFIG} turns on what isn't known here and has no effect: {switches}")
        self.changes.notes = tuple(notes)

    def problems(self) -> list[str]:
        """Return messages that group similar mistakes, so that a wrong base isn't reported five hundred times."""
        problems = list(self._broken)
        dora = [key for key in self._keys.odd if DORA_MARK in key]
        if dora:
            problems.append(f"uses DoRA ({some(dora)}), expected a plain LoRA. {MERGE_IT}")
        odd = [key for key in self._keys.odd if DORA_MARK not in key]
        if odd:
            problems.append(f"holds {some(odd)}, expected the keys of a plain LoRA. {MERGE_IT}")
        if self._missing:
            missing = some(self._missing, 10)
            problems.append(f"changes what {self._model.label} doesn't have: {missing}. {_OTHER_BASE}")
            problems += [f"other names for them can't be looked up: {why}" for why in self._weights.why_no_places]
        if self._misfits:
            problems.append(f"doesn't fit {self._model.label}: {some(self._misfits)}. {_OTHER_BASE}")
        return problems

    # The kinds of keys

    def _add_value(self, name: str, key: str) -> None:
        """Add a tensor that replaces the model's: a bias, or one from a module that was trained whole."""
        shape = self._shape(key)
        target = self._weights.find(name)
        if target is not None:
            if self._model.info(target).shape != shape:
                self._add_own(target, key)
            self._add(target, Change(value=Value(key)))
            return
        name = self._weights.in_model(name)
        places = self._weights.places.get(name)
        if places is None:  # a new head, or an embedding under its tied name
            tied_to = self._weights.tied.get(name)
            for known, other in self._keys.values.items():
                # PEFT needs every copy of a tied tensor, so the adapter stores it again under each name.
                is_tied = tied_to is not None and self._weights.find(known) == tied_to
                if is_tied and torch.equal(self._tensors.read(key), self._tensors.read(other)):
                    return
            self._add_own(name, key)
            return
        # The model's files split the parameter into several tensors.
        for place in places:
            part = shape if place.expert is None else shape[1:]
            rows = None
            if place.rows is not None:
                rows = (place.row, place.row + place.rows)
                part = (min(place.rows, part[0] - place.row), *part[1:])
            if self._fits(place.tensor, part):
                self._add(place.tensor, Change(value=Value(key, place.expert, rows)))

    def _add_own(self, name: str, key: str) -> None:
        self.changes.own[name] = key
        self._weights.own_shapes[name] = self._shape(key)

    def _add_pair(self, module: str, key_a: str, key_b: str, *, is_embedding: bool) -> None:
        """Add a pair of factors. Its keys name the module; if that has several parameters, the shapes decide which."""
        a, b = self._shape(key_a), self._shape(key_b)
        if len(a) < 2 or len(b) < 2 or a[0] != b[1] or any(side != 1 for side in b[2:]):
            self._broken.append(
                f"{module} has factors of shapes {a} and {b}, expected (r, in) and (out, r). Download it again"
            )
            return
        weights = self._weights.of_module(module)
        if not weights:
            for others in self._keys.modules.values():
                # PEFT also saves a tied embedding's factors as the head's; a tied model's files hold one weight.
                embedding = [self._shape(others[part]) for part in EMBEDDING if part in others]
                if self._config.ensure_weight_tying and embedding == [b[::-1], a[::-1]]:
                    return
            self._missing += self._weights.parameters_of(module) or [f"{owner_of(module)}.weight"]
            return
        rank = a[0]  # of all experts together
        product = (b[0], *a[1:])  # B A is (out, in, *kernel)
        fitting = []
        for weight in weights:
            transposed = self._weights.is_transposed(weight, product, is_embedding=is_embedding)
            if transposed is not None and rank % weight.experts == 0:
                fitting.append((weight, transposed))
        if len(fitting) != 1:
            candidates = some([f"{weight.name} {weight.matrix}" for weight in weights])
            change = product[::-1] if is_embedding else product
            self._misfits.append(f"{candidates} would change by {change}")
            return
        weight, transposed = fitting[0]
        adapted_as = weight.name if weight.is_parameter else _adapted_as(module)
        own_rank = rank // weight.experts
        expected = self._config.rank(adapted_as)
        if own_rank != expected:
            self._broken.append(
                f"{adapted_as} has rank {own_rank}, expected {expected} by {ADAPTER_CONFIG}. Take both files from one"
                " adapter"
            )
            return
        scale = self._config.scaling(adapted_as)
        if module.endswith(ATTENTION_OUT):
            scale *= 2  # PEFT (0.21.2) trains and merges with this change added twice, so we add it twice
        pair = Pair(key_a, key_b, scale, transposed, weight.experts)
        for place in weight.places:
            rows = None if place.rows is None else (place.row, place.row + place.rows)
            self._add(place.tensor, Change(pair=replace(pair, expert=place.expert, rows=rows)))

    def _add_bias(self, module: str, key: str) -> None:
        """Add a vector that is added to a module's bias, with the same scale as the factors."""
        owner = owner_of(module)
        name = f"{owner}.bias"
        target = self._weights.find(name) or self._weights.find(f"{owner}.in_proj_bias")
        if target is None:
            self._missing.append(name)
        elif self._fits(target, self._shape(key)):
            scale = self._config.scaling(_adapted_as(module))
            self._add(target, Change(bias=(key, scale)))

    def _add_tokens(self, module: str, key: str) -> None:
        """Add new values for some rows of an embedding."""
        target = self._weights.find(f"{module}.weight")
        rows = self._config.tokens_of(module)
        if target is None:
            self._missing.append(f"{module}.weight")
            return
        number, *columns = self._shape(key)
        vocabulary = self._weights.shape(target)[0]
        if rows is None or len(rows) != number or max(rows, default=0) >= vocabulary:
            self._broken.append(
                f"{module} has {number} rows of its own, expected as many trainable_token_indices in {ADAPTER_CONFIG},"
                f" each below {vocabulary}. Download it again"
            )
        elif self._fits(target, (vocabulary, *columns)):
            self._add(target, Change(tokens=(key, tuple(rows))))

    def _add(self, target: str, change: Change) -> None:
        before = self.changes.of.get(target, Change())
        if before.pair and change.pair:
            self._broken.append(f"{before.pair.a} and {change.pair.a} both change {target}. Download it again")
        self.changes.of[target] = Change(
            value=change.value or before.value,
            tokens=change.tokens or before.tokens,
            bias=change.bias or before.bias,
            pair=change.pair or before.pair,
        )

    def _fits(self, target: str, change: Shape) -> bool:
        shape = self._weights.shape(target)
        if change != shape:
            self._misfits.append(f"{target} {shape} would change by {change}")
        return change == shape

    def _shape(self, key: str) -> Shape:
        return self._tensors.info(key).shape


def _adapted_as(module: str) -> str:
    """Return the name that PEFT matches patterns with: for nn.MultiheadAttention's out_proj, the attention's name."""
    return module.split(BASE_LAYER, 1)[0]
