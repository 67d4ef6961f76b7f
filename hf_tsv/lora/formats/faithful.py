"""The faithful format: everything that a fine-tune changed, as PEFT can store it.

Every matrix is stored as factors, unless they would be larger than the matrix. PEFT's encodings exclude one another:
biases are stored with the factors of all targeted modules or of none, and never with factors of embeddings or bare
parameters; a tensor stored whole is stored with everything else in its module. So one plan is drafted with biases
beside the factors and one without, and the cheaper draft is used. The sidecar takes what PEFT can't hold in it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hf_tsv.checkpoints.dtypes import DTYPES
from hf_tsv.checkpoints.protocol import TensorInfo
from hf_tsv.errors import CheckpointError, some
from hf_tsv.linalg.ranks import DENSE, Dense
from hf_tsv.lora.architecture import Architecture
from hf_tsv.lora.check.probe import unlike_peft
from hf_tsv.lora.format import PREFIX
from hf_tsv.lora.modules import WITH_BIAS
from hf_tsv.lora.write.plan import AdapterPlan, AdapterRequest, peft_config
from hf_tsv.lora.write.slots import LoraSlot, RestSlot, Slot, Source, WholeSlot, lora_key, rest_slot
from hf_tsv.lora.write.whole import is_excluded, modules_stored_with, why_not_whole

NAME = "faithful"
# A byte in the sidecar, which PEFT doesn't read, costs as much as this many bytes that PEFT loads. This sets how much
# larger an adapter may become so that PEFT reads more of it.
HIDDEN_WEIGHT = 2
# PEFT may reject factors for a few parameters, which are then planned another way, with this many attempts in all.
ATTEMPTS = 3


def plan(architecture: Architecture, ranks: Mapping[str, int | Dense], request: AdapterRequest) -> AdapterPlan:
    """Plan where to store every changed tensor; see `AdapterFormat.plan`. The chosen ranks are used unchanged."""
    changed = {name: rank for name, rank in ranks.items() if rank != 0}
    unfit: frozenset[str] = frozenset()
    for _ in range(ATTEMPTS):
        planned = _Planner(architecture, changed, request.factor_dtype, unfit).plan(request)
        unlike = unlike_peft(architecture, planned)
        if not unlike.parameters:
            break
        unfit |= unlike.parameters
    if unlike.keys:
        raise CheckpointError(
            f"{architecture.folder}: PEFT would read other tensors than planned: {some(sorted(unlike.keys))}. Is this"
            " version of PEFT older than 0.18?"
        )
    return planned


@dataclass
class _Draft:
    """One way to encode the changes.

    Attributes:
        lora: The rank of each parameter that has factors; 0 for zero factors that only carry a bias.
        biases: Names of the biases that are stored with factors.
        whole: Paths of the modules that are stored whole.
        rest: The reason why PEFT won't hold a tensor of the checkpoint, by its name.
    """

    lora: dict[str, int] = field(default_factory=dict)
    biases: set[str] = field(default_factory=set)
    whole: set[str] = field(default_factory=set)
    rest: dict[str, str] = field(default_factory=dict)

    def holds_whole(self, path: str) -> bool:
        return any(path == module or path.startswith(f"{module}.") for module in self.whole)


class _Planner:
    """A planner for one architecture and one choice of ranks.

    Attributes:
        wanted: The rank of each changed parameter of the model, which may consist of several tensors.
        unfit: Parameters to which PEFT added no factors when it was tried.
    """

    def __init__(
        self,
        architecture: Architecture,
        changed: Mapping[str, int | Dense],
        factor_dtype: str | None,
        unfit: frozenset[str],
    ) -> None:
        self.architecture = architecture
        self.changed = changed
        self.factor_dtype = factor_dtype
        self.unfit = unfit
        self.wanted: dict[str, int | Dense] = {}
        for parameter, sources in architecture.sources.items():
            is_dense = False
            ranks: dict[int | None, int] = {}  # by expert; None unless the parameter stacks several tensors
            for name, piece in sources:
                rank = changed.get(name)
                if isinstance(rank, Dense):
                    is_dense = True
                elif rank is not None:
                    # Pieces that share a matrix, such as gate and up, need separate triplets, so their ranks add up.
                    ranks[piece.expert] = ranks.get(piece.expert, 0) + rank
            if is_dense:
                self.wanted[parameter] = DENSE
            elif ranks:
                self.wanted[parameter] = max(ranks.values())  # PEFT uses one rank for all experts

    def plan(self, request: AdapterRequest) -> AdapterPlan:
        drafts = (self._draft(with_bias=True), self._draft(with_bias=False))
        draft = min(drafts, key=self._cost)
        slots = self._slots(draft)
        return AdapterPlan(
            profile=NAME,
            slots=slots,
            rest=tuple(self._rest_slot(name) for name in sorted(draft.rest)),
            left_out=dict(sorted(draft.rest.items())),
            config=peft_config(self.architecture, slots, draft.whole, base=request.base),
        )

    def _why_no_factors(self, parameter: str) -> str:
        if parameter in self.unfit:
            return "PEFT adds no factors to it"
        return self.architecture.no_factors(parameter)

    # Drafting

    def _draft(self, *, with_bias: bool) -> _Draft:
        nowhere = self.architecture.located.nowhere
        draft = _Draft(rest={name: why for name, why in nowhere.items() if name in self.changed})
        biases = []
        for parameter, rank in self.wanted.items():
            why = self._why_no_factors(parameter)
            module = self.architecture.owner(parameter)
            if not isinstance(rank, Dense) and not why:
                draft.lora[parameter] = rank
                continue
            # A bias can be stored with its weight's factors, if the weight can have factors.
            may_go_along = isinstance(rank, Dense) and parameter.endswith(".bias") and module.kind in WITH_BIAS
            if may_go_along and not self._why_no_factors(f"{module.path}.weight"):
                biases.append(parameter)
            else:
                self._store_whole(draft, parameter, why)
        for bias in biases:
            module = self.architecture.owner(bias)
            if draft.holds_whole(module.path):
                continue
            if with_bias:
                draft.biases.add(bias)
                draft.lora.setdefault(f"{module.path}.weight", 0)
            else:
                why = "PEFT holds no biases beside factors of embeddings or of bias-free modules"
                self._store_whole(draft, bias, why)
        if draft.biases:
            for parameter in list(draft.lora):
                module = self.architecture.owner(parameter)
                if module.kind not in WITH_BIAS or "bias" not in module.tensors:
                    del draft.lora[parameter]
                    self._store_whole(draft, parameter, "PEFT's lora_bias leaves no factors for such a module")
        # Ranks are chosen tensor by tensor, as if each had its own factors. If a parameter consists of several tensors,
        # such as the experts' gate and up matrices, PEFT's factors span all their rows, so whole may be smaller.
        for parameter in draft.lora:
            if len(self.architecture.sources[parameter]) == 1:
                continue
            modules = modules_stored_with(self.architecture, parameter)
            can_be_whole = not any(why_not_whole(self.architecture, path) for path in modules)
            if can_be_whole and self._is_cheap(modules, draft, hidden=None):
                draft.whole |= modules
        self._settle(draft)
        left = self.changed.keys() - draft.rest.keys()
        for slot in self._slots(draft):
            left -= slot.awaited
        for name in left:
            draft.rest[name] = "PEFT has no place for it beside the others"
        return draft

    def _store_whole(self, draft: _Draft, parameter: str, why: str) -> None:
        """Store the modules of a parameter whole if that is cheap, otherwise put the parameter in the sidecar."""
        modules = modules_stored_with(self.architecture, parameter)
        obstacle = ""
        for path in sorted(modules):
            obstacle = obstacle or why_not_whole(self.architecture, path)
        if not obstacle and not self._is_cheap(modules, draft, hidden=parameter):
            obstacle = why or "PEFT could hold it only in a module stored whole, with much that did not change"
        if not obstacle:
            draft.whole |= modules
            return
        for name, _ in self.architecture.sources_of(parameter):
            if name in self.changed:
                draft.rest[name] = obstacle

    def _settle(self, draft: _Draft) -> None:
        """Remove the factors of modules that PEFT excludes: those stored whole, or named like one that is."""
        owner = self.architecture.owner
        while True:
            excluded = [parameter for parameter in draft.lora if is_excluded(owner(parameter).path, draft.whole)]
            if not excluded:
                break
            # Modules that are stored whole instead may exclude others, so the loop checks again.
            for parameter in sorted(excluded):
                del draft.lora[parameter]
                if not draft.holds_whole(owner(parameter).path):
                    self._store_whole(draft, parameter, "PEFT excludes it: it is named like a module stored whole")
        draft.biases = {bias for bias in draft.biases if f"{owner(bias).path}.weight" in draft.lora}
        for outer in list(draft.whole):  # a module inside one that is stored whole is part of it
            draft.whole = {path for path in draft.whole if not path.startswith(f"{outer}.")}

    # Costs

    def _cost(self, draft: _Draft) -> int:
        """Return the adapter's size in bytes, where bytes that PEFT doesn't read count `HIDDEN_WEIGHT` times."""
        hidden = [self._rest_slot(name) for name in draft.rest]
        return _nbytes(self._slots(draft)) + HIDDEN_WEIGHT * _nbytes(hidden)

    def _is_cheap(self, modules: Iterable[str], draft: _Draft, *, hidden: str | None) -> bool:
        """Check whether storing modules whole costs no more than storing their changes another way.

        Args:
            modules: The modules' paths.
            draft: The draft so far.
            hidden: The parameter that would otherwise go into the sidecar, or None.
        """
        keys: set[str] = set()
        for path in modules:
            keys.update(self.architecture.state_under(path))
        whole = 0
        otherwise = {}
        for key in keys:
            whole += self.architecture.shape(key).numel() * DTYPES[self._dtype(key)].nbytes
            # Stored another way, an unchanged parameter costs nothing, and tied ones are stored only once.
            changed = {name for name, _ in self.architecture.sources_of(key) if name in self.changed}
            nbytes = _nbytes(self._rest_slot(name) for name in changed)
            is_dense = isinstance(self.wanted.get(key, DENSE), Dense)
            if key == hidden or is_dense or self._why_no_factors(key):
                nbytes *= HIDDEN_WEIGHT
            elif key in draft.lora:
                nbytes = _nbytes([self._lora_slot(key, draft)])
            first = self.architecture.aliases.get(key, (key,))[0]
            otherwise[first] = nbytes
        return whole <= sum(otherwise.values())

    def _dtype(self, key: str) -> str:
        """Return the dtype of a parameter in the checkpoint."""
        name, _ = self.architecture.sources_of(key)[0]
        return self.architecture.headers[name].dtype

    # The tensors

    def _slots(self, draft: _Draft) -> tuple[Slot, ...]:
        slots: list[Slot] = [self._lora_slot(parameter, draft) for parameter in draft.lora]
        for path in sorted(draft.whole):
            for key in self.architecture.state_under(path):
                sources = self.architecture.sources_of(key)
                changed = {name for name, _ in sources if name in self.changed and name not in draft.rest}
                info = TensorInfo(PREFIX + key, tuple(self.architecture.shape(key)), self._dtype(key))
                slots.append(WholeSlot(info, sources, frozenset(changed)))
        return tuple(slots)

    def _lora_slot(self, parameter: str, draft: _Draft) -> LoraSlot:
        module = self.architecture.owner(parameter)
        bias = f"{module.path}.bias"
        # PEFT creates biases for all targeted modules as soon as one has a bias. An unfinished draft may still have
        # factors of modules without a bias.
        size = module.tensors["bias"][0] if draft.biases and "bias" in module.tensors else 0
        bias_sources = self._sources(bias, draft) if size else ()
        return LoraSlot(
            module=module,
            parameter=parameter,
            shape=self.architecture.shape(parameter),
            key=lora_key(self.architecture, module, parameter, draft.lora),
            rank=max(1, draft.lora[parameter]),  # PEFT has no rank 0
            dtype=self.factor_dtype or self._dtype(parameter),
            sources=self._sources(parameter, draft),
            bias_size=size,
            bias_sources=tuple((source.name, source.piece) for source in bias_sources),
        )

    def _sources(self, parameter: str, draft: _Draft) -> tuple[Source, ...]:
        sources = []
        for name, piece in self.architecture.sources_of(parameter):
            if name in self.changed and name not in draft.rest:
                rank = self.changed[name]
                sources.append(Source(name, piece, 0 if isinstance(rank, Dense) else rank))
        return tuple(sources)

    def _rest_slot(self, name: str) -> RestSlot:
        chosen = self.changed[name]
        rank = None if isinstance(chosen, Dense) else chosen
        info = self.architecture.headers[name]
        return rest_slot(info, rank, self.factor_dtype or info.dtype)


def _nbytes(slots: Iterable[Slot]) -> int:
    nbytes = 0
    for slot in slots:
        nbytes += sum(info.nbytes for info in slot.infos)
    return nbytes
