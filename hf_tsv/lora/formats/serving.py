"""The serving format: a form that PEFT, vLLM, SGLang, LoRAX, TGI and llama.cpp all read, and all scale alike.

Some of them support only one rank and one alpha for the whole adapter; some silently drop a type of module unless every
layer has it. So: only linear modules in the layers, one rank, alpha = rank, no patterns, zeros where nothing changed.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping

from hf_tsv.errors import CheckpointError, MethodError, some
from hf_tsv.linalg.ranks import Dense
from hf_tsv.lora.architecture import Architecture
from hf_tsv.lora.check.probe import unlike_peft
from hf_tsv.lora.format import PREFIX, AdapterConfig
from hf_tsv.lora.formats import DEFAULT, FORMATS
from hf_tsv.lora.modules import Module
from hf_tsv.lora.write.plan import AdapterPlan, AdapterRequest
from hf_tsv.lora.write.slots import LoraSlot, Source

NAME = "serving"
# Servers that fuse these into one matrix need factors for all of them or for none.
FUSED = (frozenset({"q_proj", "k_proj", "v_proj"}), frozenset({"gate_proj", "up_proj"}))


def plan(architecture: Architecture, ranks: Mapping[str, int | Dense], request: AdapterRequest) -> AdapterPlan:
    """Plan the linear modules of an adapter for servers; see `AdapterFormat.plan`.

    Changes of a smaller rank than the adapter's are padded with zeros, those of a larger rank are truncated. Unless the
    request sets the rank, it is the largest that fits in `most_bytes` or, without such a limit, the smallest that holds
    the chosen ranks, or the largest allowed.
    """
    allowed = FORMATS[NAME].ranks
    if request.rank is not None and request.rank not in allowed:
        raise MethodError(
            f"the serving adapter: expected a rank of {', '.join(map(str, allowed))} but got {request.rank}"
        )
    planner = _Planner(architecture, ranks, request)
    if not planner.leaves:
        raise CheckpointError(
            f"{architecture.folder}: nothing for a serving adapter, expected a change of a linear module in the layers"
            f" but got {some(sorted(ranks))}. Use the {DEFAULT} profile"
        )
    if request.rank is not None:
        planned = planner.plan(request.rank)
    elif request.most_bytes is not None:
        planned = planner.largest_within(request.most_bytes, allowed)
    else:
        large_enough = [rank for rank in allowed if rank >= planner.wanted_rank(most=allowed[-1])]
        planned = planner.plan(large_enough[0])
    unlike = unlike_peft(architecture, planned)
    if unlike.keys:
        raise CheckpointError(f"{architecture.folder}: PEFT would read other tensors: {some(sorted(unlike.keys))}")
    return planned


class _Planner:
    """The parts of the plan that are the same at every rank.

    Attributes:
        leaves: The last path components of the targeted modules; all modules with such a name are targeted.
        modules: The targeted modules.
    """

    def __init__(self, architecture: Architecture, ranks: Mapping[str, int | Dense], request: AdapterRequest) -> None:
        self._architecture = architecture
        self._ranks = ranks
        self._request = request
        by_leaf: defaultdict[str, list[Module]] = defaultdict(list)
        unfit = set()
        for path, module in architecture.modules.items():
            leaf = path.rpartition(".")[2]
            by_leaf[leaf].append(module)
            if module.kind != "linear" or architecture.no_factors(f"{path}.weight"):
                unfit.add(leaf)
        # A target matches every module with its name, so all of them must support factors.
        for leaf in unfit:
            del by_leaf[leaf]
        changed = set()
        for leaf, modules in by_leaf.items():
            for module in modules:
                # Layers are numbered in a module's path.
                is_in_layer = any(part.isdigit() for part in module.path.split("."))
                sources = architecture.sources_of(f"{module.path}.weight")
                if is_in_layer and any(name in ranks for name, _ in sources):
                    changed.add(leaf)
        for family in FUSED:
            if changed & family:
                changed |= family & by_leaf.keys()
        self.leaves = frozenset(changed)
        self.modules: list[Module] = []
        for leaf in sorted(self.leaves):
            self.modules += by_leaf[leaf]

    def plan(self, rank: int) -> AdapterPlan:
        slots = tuple(self._slot(module, rank) for module in self.modules)
        left_out = set(self._ranks)
        for slot in slots:
            left_out -= slot.awaited
        # For a classification task PEFT would store the head whole, which servers refuse.
        task_type = self._architecture.task_type
        config = AdapterConfig(
            base_model_name_or_path=self._request.base.name,
            revision=self._request.base.revision,
            task_type=task_type if task_type == "CAUSAL_LM" else None,
            inference_mode=True,
            r=rank,
            lora_alpha=rank,  # so that the scale is 1
            rank_pattern={},
            alpha_pattern={},
            target_modules=sorted(self.leaves),
        )
        return AdapterPlan(
            profile=NAME,
            slots=slots,
            rest=(),
            left_out=dict.fromkeys(sorted(left_out), "not the weight of a linear module in the layers"),
            config=config,
        )

    def largest_within(self, most_bytes: int, allowed: Collection[int]) -> AdapterPlan:
        plans = [self.plan(rank) for rank in allowed]
        fitting = [plan for plan in plans if plan.nbytes <= most_bytes]
        if not fitting:
            raise MethodError(
                f"the serving adapter takes {plans[0].nbytes} bytes at its smallest rank, {min(allowed)}, but the"
                f" budget is {most_bytes}. Raise it, or use the {DEFAULT} profile"
            )
        return fitting[-1]

    def wanted_rank(self, most: int) -> int:
        """Return the smallest rank that holds the chosen ranks of all modules, but at most `most`."""
        wanted = 0
        for module in self.modules:
            sources = self._architecture.sources_of(f"{module.path}.weight")
            for name, _ in sources:
                rank = self._ranks.get(name, 0)
                # If a parameter consists of several tensors, each gets an equal share of its rank.
                wanted = max(wanted, most if isinstance(rank, Dense) else len(sources) * rank)
        return min(wanted, most)

    def _slot(self, module: Module, rank: int) -> LoraSlot:
        parameter = f"{module.path}.weight"
        sources = self._architecture.sources_of(parameter)
        own_dtype = "F32"  # if the checkpoint lacks the weight
        if sources:
            first_name, _ = sources[0]
            own_dtype = self._architecture.headers[first_name].dtype
        share = rank // max(1, len(sources))  # an equal share for each tensor in the parameter
        changed = [Source(name, piece, share) for name, piece in sources if name in self._ranks]
        return LoraSlot(
            module=module,
            parameter=parameter,
            shape=self._architecture.shape(parameter),
            key=PREFIX + module.path,
            rank=rank,
            dtype=self._request.factor_dtype or own_dtype,
            sources=tuple(changed),
        )
