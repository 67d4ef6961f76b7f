"""What an adapter will hold: decided from headers, before any factor exists."""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from hf_tsv.checkpoints.protocol import Shard
from hf_tsv.checkpoints.writer import METADATA, layout
from hf_tsv.linalg.ranks import DENSE, Dense
from hf_tsv.lora.architecture import Architecture
from hf_tsv.lora.read.sidecar import REST_FILE
from hf_tsv.lora.write.slots import LoraSlot, RestSlot, Slot

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
NO_TARGETS = "dummy-target-modules"  # PEFT's word for an adapter without factors
HEADS_OF_TASK = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score")}  # PEFT stores these whole


@dataclass(frozen=True)
class AdapterPlan:
    """The files of an adapter.

    Attributes:
        profile: `faithful` holds all that PEFT can, `serving` what servers of many adapters can.
        slots: The tensors of adapter_model.safetensors.
        rest: The tensors of the sidecar: what PEFT can't hold; empty in the serving profile.
        left_out: Changed tensors that PEFT won't load, and why.
        config: adapter_config.json.
    """

    profile: Literal["faithful", "serving"]
    slots: tuple[Slot, ...]
    rest: tuple[RestSlot, ...]
    left_out: Mapping[str, str]
    config: Mapping[str, Any]

    @cached_property
    def held(self) -> frozenset[str]:
        """The changed tensors that PEFT loads."""
        return frozenset(name for slot in self.slots for name in slot.awaited)

    @cached_property
    def ranks(self) -> Mapping[str, int | Dense]:
        """What the files keep of each changed tensor: so many triplets, or DENSE for its exact new value."""
        whole: dict[str, int | Dense] = {name: DENSE for slot in (*self.slots, *self.rest) for name in slot.awaited}
        return {**whole, **self.factored}

    @cached_property
    def factored(self) -> Mapping[str, int]:
        """The ranks of the tensors that are stored as factors."""
        ranks = {slot.name: slot.rank for slot in self.rest if slot.rank is not None}
        return ranks | {source.name: source.rank for s in self.slots if isinstance(s, LoraSlot) for source in s.sources}

    @cached_property
    def files(self) -> tuple[Shard, ...]:
        made: list[tuple[str, Sequence[Slot]]] = [(ADAPTER_FILE, self.slots), (REST_FILE, self.rest)]
        shards = (Shard(file, tuple(info for slot in slots for info in slot.infos)) for file, slots in made)
        return tuple(shard for shard in shards if shard.tensors or shard.file == ADAPTER_FILE)

    @property
    def config_text(self) -> str:
        """The bytes of adapter_config.json."""
        return json.dumps(self.config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        tensors = sum(len(layout(shard.tensors, METADATA)[0]) + shard.nbytes for shard in self.files)
        return tensors + len(self.config_text.encode())


@dataclass(frozen=True)
class BaseRef:
    """What adapter_config.json says of the base model.

    Attributes:
        name: Its Hub id or path.
        revision: The commit it is pinned to.
    """

    name: str
    revision: str | None = None


def peft_config(
    architecture: Architecture, slots: Sequence[Slot], whole: Collection[str], *, base: BaseRef
) -> dict[str, Any]:
    """A minimal adapter_config.json: older versions of PEFT refuse fields that they don't know."""
    loras = [slot for slot in slots if isinstance(slot, LoraSlot)]
    modules = sorted({slot.module.path for slot in loras if slot.module.kind != "parameters"})
    parameters = sorted(slot.parameter for slot in loras if slot.module.kind == "parameters")
    rank = _common_rank(loras)
    ranks = {anchored(_pattern_name(slot)): slot.rank for slot in loras if slot.rank != rank}
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "base_model_name_or_path": base.name,
        "revision": base.revision,
        "task_type": _task_type(architecture, whole),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": dict(sorted(ranks.items())),
        "alpha_pattern": dict(sorted(ranks.items())),
        "target_modules": modules or ([] if parameters else NO_TARGETS),
        "exclude_modules": sorted(_also_matched(architecture, modules, whole)),
        "target_parameters": parameters,
        "modules_to_save": sorted(whole),
        "lora_bias": any(slot.bias_size for slot in loras),
        "fan_in_fan_out": bool(loras) and all(slot.module.kind == "conv1d" for slot in loras),
    }
    optional = ("revision", "task_type", "exclude_modules", "target_parameters", "modules_to_save", "lora_bias")
    return {key: value for key, value in config.items() if value or key not in (*optional, "fan_in_fan_out")}


def anchored(name: str) -> str:
    """A name as a key of PEFT's patterns: these are regular expressions that may match behind any dot."""
    return "^" + re.escape(name)


def _common_rank(loras: Sequence[LoraSlot]) -> int:
    """The rank that most factors have, so that the patterns are short; the larger one among equals."""
    counts = Counter(slot.rank for slot in loras)
    return max(counts, key=lambda rank: (counts[rank], rank), default=8)


def _pattern_name(slot: LoraSlot) -> str:
    return slot.parameter if slot.module.kind == "parameters" else slot.module.path


def _also_matched(architecture: Architecture, targets: Sequence[str], whole: Collection[str]) -> set[str]:
    """Modules that PEFT would target because a target's name is the end of theirs."""
    return {
        path
        for path in architecture.modules
        if path not in targets and any(path.endswith(f".{target}") for target in targets)
    } - set(whole)


def _task_type(architecture: Architecture, whole: Collection[str]) -> str | None:
    """PEFT's task type; none where it would make PEFT store a head whole that is not."""
    task = architecture.task_type
    heads = HEADS_OF_TASK.get(task or "", ())
    matched = {path for path in architecture.modules if heads and path.endswith(heads)}
    return task if matched <= set(whole) else None
