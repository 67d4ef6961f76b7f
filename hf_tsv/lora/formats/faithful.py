"""The faithful profile: everything a fine-tune changed, in PEFT's terms.

PEFT's encodings exclude each other: biases go along with factors for all targeted modules or none, and never with
factors of embeddings or bare parameters; what is stored whole is stored with all that lies in the same module. A plan
is drafted with and without biases, and the better draft is taken.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

from hf_tsv.checkpoints.dtypes import DTYPES
from hf_tsv.checkpoints.protocol import TensorInfo
from hf_tsv.errors import CheckpointError, some
from hf_tsv.linalg.ranks import Dense
from hf_tsv.lora.architecture import Architecture
from hf_tsv.lora.check.probe import unlike_peft
from hf_tsv.lora.modules import WITH_BIAS, Module
from hf_tsv.lora.write.plan import AdapterPlan, BaseRef, peft_config
from hf_tsv.lora.write.slots import PREFIX, LoraSlot, RestSlot, Slot, Source, WholeSlot, lora_key, rest_slot

Misfits = Literal["whole", "sidecar"]
CHEAP = 2.0  # times the bytes asked for: what storing whole modules may cost where bytes are counted
ATTEMPTS = 3


def plan_adapter(
    architecture: Architecture,
    changed: Mapping[str, int | Dense],
    *,
    base: BaseRef,
    factor_dtype: str | None = None,
    misfits: Misfits = "whole",
) -> AdapterPlan:
    """Decide the place of every changed tensor.

    Args:
        architecture: The base model.
        changed: The tensors of the checkpoint that the fine-tune changed, each with the rank of its factors, or
            DENSE where it is stored whole.
        base: What the adapter says its base is.
        factor_dtype: Of the factors, as safetensors names it; None for each base tensor's own.
        misfits: What happens where PEFT can't hold a tensor in the form asked for. `whole` stores the modules it takes
            whole, exact and at any size. `sidecar` does so up to twice the bytes asked for, and puts the rest beside
            the adapter, in the form asked for, where PEFT does not see it.

    Raises:
        CheckpointError: PEFT does not make of the plan what was planned; names the modules.
    """
    unfit: frozenset[str] = frozenset()
    for _ in range(ATTEMPTS):
        plan = _Planner(architecture, changed, factor_dtype, misfits, unfit).plan(base)
        unlike = unlike_peft(architecture, plan)
        if not unlike.parameters:
            break
        unfit |= unlike.parameters
    if unlike.keys:
        raise CheckpointError(
            f"{architecture.folder}: PEFT would read other tensors than planned: {some(sorted(unlike.keys))}. Is this"
            " version of PEFT older than 0.18?"
        )
    return plan


@dataclass
class _Draft:
    """One way to encode the changes.

    Attributes:
        lora: Parameters with factors, and their rank; 0 for zero factors that only carry a bias.
        biases: Biases that go along with factors.
        whole: Modules stored whole.
        rest: Tensors of the checkpoint that PEFT won't hold, and why.
    """

    lora: dict[str, int] = field(default_factory=dict)
    biases: set[str] = field(default_factory=set)
    whole: set[str] = field(default_factory=set)
    rest: dict[str, str] = field(default_factory=dict)

    def holds_whole(self, path: str) -> bool:
        return any(path == module or path.startswith(f"{module}.") for module in self.whole)


class _Planner:
    def __init__(
        self,
        architecture: Architecture,
        changed: Mapping[str, int | Dense],
        factor_dtype: str | None,
        misfits: Misfits,
        unfit: frozenset[str],
    ) -> None:
        self.architecture = architecture
        self.changed = changed
        self.factor_dtype = factor_dtype
        self.misfits = misfits
        self.unfit = unfit
        self.wanted = {p: rank for p in architecture.sources if (rank := self._wanted(p)) is not None}

    def plan(self, base: BaseRef) -> AdapterPlan:
        draft = min((self._draft(with_bias=True), self._draft(with_bias=False)), key=self._cost)
        slots = self._slots(draft)
        rest = tuple(self._rest_slot(name) for name in sorted(draft.rest))
        config = peft_config(self.architecture, slots, draft.whole, base=base)
        return AdapterPlan("faithful", slots, rest, dict(sorted(draft.rest.items())), config)

    # What is asked for

    def _wanted(self, parameter: str) -> int | Dense | None:
        """The rank of a parameter's factors, the most of any of its experts; None when it is unchanged."""
        ranks: dict[int | None, int] = {}
        for name, piece in self.architecture.sources[parameter]:
            rank = self.changed.get(name)
            if isinstance(rank, Dense):
                return rank
            if rank is not None:
                ranks[piece.expert] = ranks.get(piece.expert, 0) + rank
        return max(ranks.values(), default=None)

    def _draft(self, *, with_bias: bool) -> _Draft:
        draft = _Draft(
            rest={name: why for name, why in self.architecture.located.nowhere.items() if name in self.changed}
        )
        biases = []
        for parameter, rank in self.wanted.items():
            why = "PEFT does not target it" if parameter in self.unfit else self.architecture.no_factors(parameter)
            if not isinstance(rank, Dense) and not why:
                draft.lora[parameter] = rank
            elif isinstance(rank, Dense) and self._is_bias(parameter):
                biases.append(parameter)
            else:
                self._store_whole(draft, parameter, why)
        for bias in biases:
            self._place_bias(draft, bias, with_bias)
        if draft.biases:
            for parameter in [p for p in draft.lora if not self._takes_bias(self.architecture.owner(p))]:
                del draft.lora[parameter]
                self._store_whole(draft, parameter, "PEFT has no bias beside factors of such a module")
        self._settle(draft)
        held = {name for slot in self._slots(draft) for name in slot.awaited}
        for name in self.changed.keys() - held - draft.rest.keys():
            draft.rest[name] = "PEFT has no place for it beside the others"
        return draft

    def _is_bias(self, parameter: str) -> bool:
        module = self.architecture.owner(parameter)
        if not parameter.endswith(".bias") or module.kind not in WITH_BIAS:
            return False
        weight = f"{module.path}.weight"
        return weight not in self.unfit and not self.architecture.no_factors(weight)

    def _takes_bias(self, module: Module) -> bool:
        return module.kind in WITH_BIAS and "bias" in module.tensors

    def _place_bias(self, draft: _Draft, bias: str, with_bias: bool) -> None:
        module = self.architecture.owner(bias)
        if draft.holds_whole(module.path):
            return
        if with_bias:
            draft.biases.add(bias)
            draft.lora.setdefault(f"{module.path}.weight", 0)
        else:
            self._store_whole(draft, bias, "PEFT has no bias beside factors of embeddings, or of modules without one")

    # What is stored whole

    def _store_whole(self, draft: _Draft, parameter: str, why: str) -> None:
        """Store the modules of a parameter whole, under all its tied names, or put it into the sidecar."""
        owners = [self._saved_owner(name) for name in self.architecture.aliases.get(parameter, (parameter,))]
        modules = set(chain.from_iterable(self._wrapped_with(path) for path in owners))
        obstacle = next((found for path in modules if (found := self._obstacle(path))), "")
        if not obstacle and self.misfits == "sidecar" and not self._is_cheap(modules):
            obstacle = why or "the module would have to be stored whole, with what did not change in it"
        if not obstacle:
            draft.whole |= modules
            return
        for name, _ in self.architecture.sources_of(parameter):
            if name in self.changed:
                draft.rest[name] = obstacle

    def _saved_owner(self, parameter: str) -> str:
        """The path of the module that PEFT can copy with a parameter in it."""
        path = parameter.rpartition(".")[0]
        while path and self.architecture.modules[path].is_container:
            path = path.rpartition(".")[0]
        return path

    def _wrapped_with(self, path: str) -> set[str]:
        """The modules that PEFT stores whole with one: all whose path ends like its path, dot or not."""
        return {other for other in self.architecture.modules if path and other.endswith(path)} or {path}

    def _obstacle(self, path: str) -> str:
        """Why a module can't be stored whole; empty when it can."""
        module = self.architecture.modules[path]
        if not path:
            return "PEFT can't hold what belongs to the model itself, outside of its modules"
        if module.has_layers or module.is_container:
            return f"PEFT could hold it only with all layers of {path}"
        if inner := next((p for p in self.architecture.modules if p.startswith(f"{path}.") and p.endswith(path)), ""):
            return f"PEFT would store {inner} whole a second time, in {path} and named like it, and can't load that"
        missing = [key for key in self.architecture.state_under(path) if not self.architecture.sources_of(key)]
        return f"{path} would have to be stored whole, but the checkpoint lacks {missing[0]}" if missing else ""

    def _is_cheap(self, modules: Iterable[str]) -> bool:
        keys = {key for path in modules for key in self.architecture.state_under(path)}
        asked = {self.architecture.aliases.get(key, (key,))[0]: key for key in keys if self._asked_bytes(key)}
        return sum(map(self._whole_bytes, keys)) <= CHEAP * sum(map(self._asked_bytes, asked.values()))

    def _settle(self, draft: _Draft) -> None:
        """Take back factors of modules that PEFT excludes because they are stored whole, or are named like one."""
        while True:
            hit = {p for p in draft.lora if _is_excluded(self.architecture.owner(p).path, draft.whole)}
            for parameter in sorted(hit):
                del draft.lora[parameter]
                if not draft.holds_whole(self.architecture.owner(parameter).path):
                    self._store_whole(draft, parameter, "PEFT excludes it, as it is named like a module stored whole")
            if not hit:
                break
        draft.biases = {bias for bias in draft.biases if f"{self.architecture.owner(bias).path}.weight" in draft.lora}
        nested = {path for path in draft.whole if any(path.startswith(f"{outer}.") for outer in draft.whole)}
        draft.whole -= nested

    # What it costs

    def _cost(self, draft: _Draft) -> tuple[int, int]:
        """Bytes that PEFT won't see, then bytes in all."""
        rest = sum(info.nbytes for name in draft.rest for info in self._rest_slot(name).infos)
        return rest, rest + sum(info.nbytes for slot in self._slots(draft) for info in slot.infos)

    def _whole_bytes(self, key: str) -> int:
        return self.architecture.shape(key).numel() * DTYPES[self._dtype(key)].nbytes

    def _asked_bytes(self, key: str) -> int:
        """Bytes of a parameter in the form asked for, 0 when it is unchanged."""
        names = {name for name, _ in self.architecture.sources_of(key) if name in self.changed}
        return sum(info.nbytes for name in names for info in self._rest_slot(name).infos)

    def _dtype(self, key: str) -> str:
        return self.architecture.headers[self.architecture.sources_of(key)[0][0]].dtype

    # The tensors

    def _slots(self, draft: _Draft) -> tuple[Slot, ...]:
        keys = [key for path in sorted(draft.whole) for key in self.architecture.state_under(path)]
        loras = [self._lora_slot(parameter, draft) for parameter in draft.lora]
        return (*loras, *(self._whole_slot(key, draft) for key in keys))

    def _lora_slot(self, parameter: str, draft: _Draft) -> LoraSlot:
        module = self.architecture.owner(parameter)
        bias = f"{module.path}.bias"
        size = self.architecture.shape(bias)[0] if draft.biases else 0
        return LoraSlot(
            module=module,
            parameter=parameter,
            shape=self.architecture.shape(parameter),
            key=lora_key(self.architecture, module, parameter, draft.lora),
            rank=max(1, draft.lora[parameter]),
            dtype=self.factor_dtype or self._dtype(parameter),
            sources=self._sources(parameter, draft),
            bias_size=size,
            bias_sources=tuple((s.name, s.piece) for s in self._sources(bias, draft)) if size else (),
        )

    def _sources(self, parameter: str, draft: _Draft) -> tuple[Source, ...]:
        return tuple(
            Source(name, piece, rank if isinstance(rank := self.changed[name], int) else 0)
            for name, piece in self.architecture.sources_of(parameter)
            if name in self.changed and name not in draft.rest
        )

    def _whole_slot(self, key: str, draft: _Draft) -> WholeSlot:
        sources = self.architecture.sources_of(key)
        changed = frozenset(name for name, _ in sources if name in self.changed and name not in draft.rest)
        info = TensorInfo(PREFIX + key, tuple(self.architecture.shape(key)), self._dtype(key))
        return WholeSlot(info, sources, changed)

    def _rest_slot(self, name: str) -> RestSlot:
        rank, info = self.changed[name], self.architecture.headers[name]
        return rest_slot(info, None if isinstance(rank, Dense) else rank, self.factor_dtype or info.dtype)


def _is_excluded(path: str, whole: Collection[str]) -> bool:
    """Whether PEFT adds no factors to a module: the name of one stored whole is a run of parts of its own."""
    parts = path.split(".")
    ends = range(len(parts) + 1)
    return any(".".join(parts[start:end]) in whole for start in ends for end in ends[start + 1 :])
