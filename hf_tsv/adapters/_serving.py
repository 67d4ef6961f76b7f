"""The serving profile: what PEFT, vLLM, SGLang, LoRAX, TGI and llama.cpp all read, and all scale alike.

Some of them know one rank and one alpha for the whole adapter; some drop a type of layer silently unless every layer
has it. So: linear modules of the layers only, one rank, alpha = rank, no patterns, zeros where nothing changed.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping

from hf_tsv.adapters._architecture import Architecture
from hf_tsv.adapters._modules import Module
from hf_tsv.adapters._plan import AdapterPlan, BaseRef
from hf_tsv.adapters._probe import unlike_peft
from hf_tsv.adapters._slots import PREFIX, LoraSlot, Source
from hf_tsv.errors import CheckpointError, some

SERVING_RANKS = (8, 16, 32, 64, 128)  # what all of them have kernels for
# Servers that fuse these into one matrix want factors of all or of none.
FUSED = (frozenset({"q_proj", "k_proj", "v_proj"}), frozenset({"gate_proj", "up_proj"}))


def plan_serving(
    architecture: Architecture,
    changed: Collection[str],
    *,
    base: BaseRef,
    rank: int,
    factor_dtype: str | None = None,
) -> AdapterPlan:
    """Decide which linear modules go into an adapter for servers.

    Args:
        architecture: The base model.
        changed: The tensors of the checkpoint that the fine-tune changed.
        base: What the adapter says its base is.
        rank: Of every factor, one of `SERVING_RANKS`; smaller changes are filled up with zeros, larger ones cut.
        factor_dtype: As safetensors names it; None for each base tensor's own.

    Raises:
        ValueError: another rank.
        CheckpointError: no weight of a linear module in the layers was changed, or PEFT reads something else.
    """
    if rank not in SERVING_RANKS:
        raise ValueError(f"expected a rank of {', '.join(map(str, SERVING_RANKS))} but got {rank}")
    by_leaf = _leaves(architecture)
    targets = _targets(by_leaf, architecture, changed)
    if not targets:
        raise CheckpointError(
            f"{architecture.folder}: nothing for a serving adapter, expected a change of a linear module in the layers"
            f" but got {some(sorted(changed))}. Use the faithful profile"
        )
    modules = [module for leaf in sorted(targets) for module in by_leaf[leaf]]
    slots = tuple(_slot(architecture, module, changed, rank, factor_dtype) for module in modules)
    held = frozenset(name for slot in slots for name in slot.awaited)
    config = {
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
    left_out = dict.fromkeys(sorted(set(changed) - held), "no weight of a linear module of the layers")
    plan = AdapterPlan("serving", slots, (), left_out, config)
    unlike = unlike_peft(architecture, plan)
    if unlike.keys:
        raise CheckpointError(f"{architecture.folder}: PEFT would read other tensors: {some(sorted(unlike.keys))}")
    return plan


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
