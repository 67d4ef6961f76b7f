"""The serving profile: what PEFT, vLLM, SGLang, LoRAX, TGI and llama.cpp all read, and all scale alike.

Some of them know one rank and one alpha for the whole adapter; some drop a type of layer silently unless every layer
has it. So: linear modules of the layers only, one rank, alpha = rank, no patterns, zeros where nothing changed.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any

from hf_tsv.errors import CheckpointError, MethodError, some
from hf_tsv.linalg.ranks import Dense
from hf_tsv.lora.architecture import Architecture
from hf_tsv.lora.check.probe import unlike_peft
from hf_tsv.lora.modules import Module
from hf_tsv.lora.write.plan import AdapterPlan, BaseRef
from hf_tsv.lora.write.slots import PREFIX, LoraSlot, Source

SERVING_RANKS = (8, 16, 32, 64, 128)  # what all of them have kernels for
# Servers that fuse these into one matrix want factors of all or of none.
FUSED = (frozenset({"q_proj", "k_proj", "v_proj"}), frozenset({"gate_proj", "up_proj"}))


def plan_serving(
    architecture: Architecture,
    changed: Mapping[str, int | Dense],
    *,
    base: BaseRef,
    rank: int | None = None,
    most_bytes: int | None = None,
    factor_dtype: str | None = None,
) -> AdapterPlan:
    """Decide which linear modules go into an adapter for servers.

    Args:
        architecture: The base model.
        changed: The tensors of the checkpoint that the fine-tune changed, and the ranks chosen for them.
        base: What the adapter says its base is.
        rank: Of every factor, one of `SERVING_RANKS`; smaller changes are filled up with zeros, larger ones cut. None
            for the largest that `most_bytes` has room for or, without it, the smallest that holds the chosen ranks.
        most_bytes: Of the adapter, where the rank isn't given.
        factor_dtype: As safetensors names it; None for each base tensor's own.

    Raises:
        MethodError: another rank, or `most_bytes` has no room for the smallest.
        CheckpointError: no weight of a linear module in the layers was changed, or PEFT reads something else.
    """
    if rank not in (None, *SERVING_RANKS):
        raise MethodError(
            f"the serving adapter: expected a rank of {', '.join(map(str, SERVING_RANKS))} but got {rank}"
        )
    by_leaf = _leaves(architecture)
    targets = _targets(by_leaf, architecture, changed)
    if not targets:
        raise CheckpointError(
            f"{architecture.folder}: nothing for a serving adapter, expected a change of a linear module in the layers"
            f" but got {some(sorted(changed))}. Use the faithful profile"
        )
    modules = [module for leaf in sorted(targets) for module in by_leaf[leaf]]

    def of_rank(rank: int) -> AdapterPlan:
        slots = tuple(_slot(architecture, module, changed, rank, factor_dtype) for module in modules)
        held = frozenset(name for slot in slots for name in slot.awaited)
        left_out = dict.fromkeys(sorted(set(changed) - held), "no weight of a linear module of the layers")
        return AdapterPlan("serving", slots, (), left_out, _config(architecture, base, targets, rank))

    if rank is not None:
        plan = of_rank(rank)
    elif most_bytes is not None:
        plan = _largest_within(most_bytes, of_rank)
    else:
        wanted = max(_wanted(architecture, module, changed) for module in modules)
        plan = of_rank(next((rank for rank in SERVING_RANKS if rank >= wanted), SERVING_RANKS[-1]))
    unlike = unlike_peft(architecture, plan)
    if unlike.keys:
        raise CheckpointError(f"{architecture.folder}: PEFT would read other tensors: {some(sorted(unlike.keys))}")
    return plan


def _config(architecture: Architecture, base: BaseRef, targets: Collection[str], rank: int) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base.name,
        **({"revision": base.revision} if base.revision else {}),
        **({"task_type": "CAUSAL_LM"} if architecture.task_type == "CAUSAL_LM" else {}),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": sorted(targets),
    }


def _largest_within(most_bytes: int, of_rank: Callable[[int], AdapterPlan]) -> AdapterPlan:
    plans = [of_rank(rank) for rank in SERVING_RANKS]
    fitting = [plan for plan in plans if plan.nbytes <= most_bytes]
    if not fitting:
        raise MethodError(
            f"the serving adapter: expected {most_bytes} bytes but it takes {plans[0].nbytes} at rank"
            f" {SERVING_RANKS[0]}. Raise the budget, or use the faithful profile"
        )
    return fitting[-1]


def _wanted(architecture: Architecture, module: Module, changed: Mapping[str, int | Dense]) -> int:
    """The rank that holds what was chosen for the tensors that a module is made of."""
    sources = architecture.sources_of(f"{module.path}.weight")
    ranks = [changed[name] for name, _ in sources if name in changed]
    whole = any(isinstance(rank, Dense) for rank in ranks)
    return SERVING_RANKS[-1] if whole else len(sources) * max((r for r in ranks if not isinstance(r, Dense)), default=0)


def _leaves(architecture: Architecture) -> dict[str, list[Module]]:
    """Modules by the last part of their path, where all of them are linear and none is tied."""
    found: defaultdict[str, list[Module]] = defaultdict(list)
    for path, module in architecture.modules.items():
        found[path.rpartition(".")[2]].append(module)
    return {leaf: modules for leaf, modules in found.items() if all(_is_plain(architecture, m) for m in modules)}


def _is_plain(architecture: Architecture, module: Module) -> bool:
    return module.kind == "linear" and not architecture.no_factors(f"{module.path}.weight")


def _targets(
    by_leaf: Mapping[str, list[Module]], architecture: Architecture, changed: Collection[str]
) -> frozenset[str]:
    """The leaf names of which some layer's weight was changed, with those that servers fuse with them."""
    moved = {
        leaf
        for leaf, modules in by_leaf.items()
        for module in modules
        if any(part.isdigit() for part in module.path.split("."))
        and any(name in changed for name, _ in architecture.sources_of(f"{module.path}.weight"))
    }
    for family in FUSED:
        if moved & family:
            moved |= family & by_leaf.keys()
    return frozenset(moved)


def _slot(
    architecture: Architecture, module: Module, changed: Collection[str], rank: int, dtype: str | None
) -> LoraSlot:
    parameter = f"{module.path}.weight"
    sources = architecture.sources_of(parameter)
    return LoraSlot(
        module=module,
        parameter=parameter,
        shape=architecture.shape(parameter),
        key=PREFIX + module.path,
        rank=rank,
        dtype=dtype or (architecture.headers[sources[0][0]].dtype if sources else "F32"),
        sources=tuple(Source(name, piece, rank // len(sources)) for name, piece in sources if name in changed),
    )
