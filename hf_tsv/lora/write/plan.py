"""The plan of an adapter's contents, made from headers before any factors are computed."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from hf_tsv.checkpoints.protocol import Shard
from hf_tsv.checkpoints.writer import METADATA, layout
from hf_tsv.linalg.ranks import DENSE, Dense
from hf_tsv.lora.architecture import Architecture
from hf_tsv.lora.format import ADAPTER_WEIGHTS, HEADS_OF_TASK, NO_TARGETS, SIDECAR_FILE, AdapterConfig, anchored
from hf_tsv.lora.write.slots import LoraSlot, RestSlot, Slot

DEFAULT_RANK = 8  # PEFT's default, for an adapter without factors, because the configuration must name a rank


@dataclass(frozen=True)
class BaseRef:
    """The reference to the base model in adapter_config.json.

    Attributes:
        name: The base model's Hub id or path.
        revision: The commit it is pinned to, or None.
    """

    name: str
    revision: str | None = None


@dataclass(frozen=True)
class AdapterRequest:
    """Options for an adapter, apart from the ranks chosen for the tensors. A format uses those that apply to it.

    Attributes:
        base: The base model that adapter_config.json names.
        factor_dtype: Dtype of the factors, as safetensors names it; None for each base tensor's own dtype.
        rank: Rank of all factors, for a format with a single rank; None to choose one that holds the chosen ranks or
            fits in `most_bytes`.
        most_bytes: Maximum size of the whole adapter, for a format that chooses its rank by size.
    """

    base: BaseRef
    factor_dtype: str | None = None
    rank: int | None = None
    most_bytes: int | None = None


@dataclass(frozen=True)
class AdapterPlan:
    """The files of an adapter.

    Attributes:
        profile: The name of its format in `hf_tsv.lora.formats.FORMATS`.
        slots: The tensors of adapter_model.safetensors.
        rest: The tensors of the sidecar, which PEFT doesn't load.
        left_out: The reason why PEFT won't load a changed tensor, by its name; some of these are in the sidecar.
        config: The contents of adapter_config.json.
    """

    profile: str
    slots: tuple[Slot, ...]
    rest: tuple[RestSlot, ...]
    left_out: Mapping[str, str]
    config: AdapterConfig

    @cached_property
    def held(self) -> frozenset[str]:
        """The changed tensors that PEFT loads."""
        names: set[str] = set()
        for slot in self.slots:
            names |= slot.awaited
        return frozenset(names)

    @cached_property
    def ranks(self) -> Mapping[str, int | Dense]:
        """The number of triplets stored for each changed tensor, or DENSE for its exact new value."""
        ranks: dict[str, int | Dense] = {}
        for slot in (*self.slots, *self.rest):
            ranks.update(dict.fromkeys(slot.awaited, DENSE))
        ranks.update(self.factored)
        return ranks

    @cached_property
    def factored(self) -> Mapping[str, int]:
        """The ranks of the tensors that are stored as factors."""
        ranks = {slot.name: slot.rank for slot in self.rest if slot.rank is not None}
        for slot in self.slots:
            if isinstance(slot, LoraSlot):
                ranks |= {source.name: source.rank for source in slot.sources}
        return ranks

    @cached_property
    def files(self) -> tuple[Shard, ...]:
        """The safetensors files: always PEFT's, and the sidecar unless it would be empty."""
        loaded = chain.from_iterable(slot.infos for slot in self.slots)
        weights = Shard(ADAPTER_WEIGHTS, tuple(loaded))
        if not self.rest:
            return (weights,)
        beside = chain.from_iterable(slot.infos for slot in self.rest)
        return weights, Shard(SIDECAR_FILE, tuple(beside))

    @property
    def config_text(self) -> str:
        """The text of adapter_config.json."""
        return json.dumps(self.config.written(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @property
    def nbytes(self) -> int:
        """The total size of all files in bytes."""
        nbytes = len(self.config_text.encode())
        for shard in self.files:
            header, _ = layout(shard.tensors, METADATA)
            nbytes += len(header) + shard.nbytes
        return nbytes


def peft_config(
    architecture: Architecture, slots: Sequence[Slot], whole: Collection[str], *, base: BaseRef
) -> AdapterConfig:
    """Return the configuration with which PEFT creates the tensors of these slots.

    Args:
        architecture: The base model.
        slots: The tensors of adapter_model.safetensors.
        whole: Paths of the modules that are stored whole.
        base: The base model that adapter_config.json names.
    """
    loras = [slot for slot in slots if isinstance(slot, LoraSlot)]
    modules = sorted({slot.module.path for slot in loras if slot.module.kind != "parameters"})
    parameters = sorted(slot.parameter for slot in loras if slot.module.kind == "parameters")
    # The most frequent rank keeps the patterns short; of equally frequent ones, the largest is taken.
    counts = Counter(slot.rank for slot in loras)
    rank = max(counts, key=lambda rank: (counts[rank], rank), default=DEFAULT_RANK)
    # PEFT also targets every module whose path ends with a target's path.
    ends = tuple(f".{target}" for target in modules)
    also_matched = {path for path in architecture.modules if path.endswith(ends)} - set(modules) - set(whole)
    ranks = {}
    for slot in loras:
        if slot.rank != rank:
            # PEFT matches patterns with the parameter's name if that is targeted itself, else with the module's.
            name = slot.parameter if slot.module.kind == "parameters" else slot.module.path
            ranks[anchored(name)] = slot.rank
    ranks = dict(sorted(ranks.items()))
    # A task type makes PEFT store all heads of that task whole, so it is omitted if any of them isn't stored whole.
    task_type = architecture.task_type
    heads = HEADS_OF_TASK.get(task_type or "", ())
    stored_by_peft = {path for path in architecture.modules if heads and path.endswith(heads)}
    if not stored_by_peft <= set(whole):
        task_type = None
    return AdapterConfig(
        base_model_name_or_path=base.name,
        revision=base.revision,
        task_type=task_type,
        inference_mode=True,
        r=rank,
        lora_alpha=rank,  # so that the scale is 1
        rank_pattern=ranks,
        alpha_pattern={name: float(rank) for name, rank in ranks.items()},
        target_modules=modules or ([] if parameters else NO_TARGETS),
        exclude_modules=sorted(also_matched),
        target_parameters=parameters,
        modules_to_save=sorted(whole),
        lora_bias=any(slot.bias_size for slot in loras),
        fan_in_fan_out=bool(loras) and all(slot.module.kind == "conv1d" for slot in loras),
    )
