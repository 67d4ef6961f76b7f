"""Write an adapter tensor by tensor, in any order."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch

from hf_tsv.checkpoints.protocol import Checkpoint
from hf_tsv.checkpoints.writer import CheckpointWriter
from hf_tsv.files.disk import full_disk_told, write_text
from hf_tsv.lora.format import ADAPTER_CONFIG
from hf_tsv.lora.write.changes import Change, LowRankChange, WholeChange, factored
from hf_tsv.lora.write.plan import AdapterPlan
from hf_tsv.lora.write.slots import Slot


@dataclass(frozen=True)
class AdapterReport:
    """A summary of a written adapter.

    Attributes:
        profile: The name of the adapter's format.
        nbytes: Total size of the folder's files in bytes.
        held: Number of changed tensors that PEFT loads.
        left_out: The reason why PEFT doesn't load a changed tensor, by its name.
        in_sidecar: The names of the tensors in the sidecar.
        left_out_share: Share of the task's squared change that PEFT won't load: tensors left out, and triplets beyond
            the rank. Only tensors that both the base and the fine-tune have are counted.
    """

    profile: str
    nbytes: int
    held: int
    left_out: Mapping[str, str]
    in_sidecar: tuple[str, ...]
    left_out_share: float


class AdapterWriter:
    """The files of one planned adapter.

    Tensors can be put in any order and from several threads. Changes that are stored together, such as those of stacked
    experts, stay in memory until the last of them is put. The files depend only on the plan and the changes.
    """

    def __init__(self, folder: Path, plan: AdapterPlan, base: Checkpoint) -> None:
        """
        Args:
            folder: The adapter's folder; created if it doesn't exist.
            plan: The plan of the adapter's contents.
            base: The base model's checkpoint, the source of unchanged tensors in modules that are stored whole.

        Raises:
            OutputError: the folder can't be written.
            ResourceError: the disk is full.
        """
        with full_disk_told(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._plan = plan
        self._base = base
        self._shapes = {name: base.info(name).shape for name in base.names()}
        self._files = CheckpointWriter(folder, plan.files)
        slots: defaultdict[str, list[Slot]] = defaultdict(list)
        for slot in (*plan.slots, *plan.rest):
            for name in slot.awaited:
                slots[name].append(slot)
        self._slots = dict(slots)  # by the name of each changed tensor that they need
        self._ranks = plan.factored
        self._missing = {id(slot): set(slot.awaited) for slot in (*plan.slots, *plan.rest)}
        self._uses = Counter({name: len(slots) for name, slots in self._slots.items()})
        self._waiting: dict[str, Change] = {}
        self._energies: dict[str, tuple[float, float]] = {}  # squared change, and the part that PEFT loads
        self._lock = Lock()

    def put(self, name: str, change: Change) -> None:
        """Write one tensor's change, or keep it until the changes that are stored with it are put.

        A tensor that the plan leaves out is counted but not written. A whole change of a tensor that is planned as
        factors is factored; a low-rank change of one that is planned whole is added to the base's tensor.

        Raises:
            CheckpointError: the base's tensor can't be read.
            MethodError: the change contains NaN or infinity.
            OutputError, ResourceError: the files can't be written.
        """
        if name in self._ranks and isinstance(change, WholeChange):
            change = factored(change, self._base.info(name), self._base.read(name), self._ranks[name])
        if isinstance(change, LowRankChange) or self._shapes.get(name) == change.value.shape:
            self._energies[name] = self._energy(name, change)
        if name not in self._slots:
            return
        # The thread that puts a slot's last change writes the slot, outside the lock.
        with self._lock:
            self._waiting[name] = change
            for slot in self._slots[name]:
                self._missing[id(slot)].discard(name)
            ready = [slot for slot in self._slots[name] if not self._missing[id(slot)]]
        for slot in ready:
            self._write(slot)

    def _write(self, slot: Slot) -> None:
        tensors = slot.make(self._waiting, self._base)
        for info, tensor in zip(slot.infos, tensors, strict=True):
            self._files.write(info.name, tensor)
        with self._lock:
            for name in slot.awaited:
                self._uses[name] -= 1
                if not self._uses[name]:
                    del self._waiting[name]  # so that no change stays in memory longer than needed

    def _energy(self, name: str, change: Change) -> tuple[float, float]:
        """Return the squared norm of a tensor's change, and the part of it that PEFT loads."""
        loaded = name in self._plan.held
        if isinstance(change, WholeChange):
            delta = change.value.float() - self._base.read(name).float()
            norm = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
            energy = norm**2
            return energy, energy if loaded else 0.0
        rank = self._ranks.get(name)  # None if the tensor is stored whole, or not at all
        total = loaded_energy = 0.0
        for factors in change.matrices:
            squares = factors.s.double().square()  # (k,)
            # The matrix may have more energy than the triplets that were computed.
            total += float(squares.sum()) if factors.energy is None else factors.energy
            if loaded:
                loaded_energy += float(squares[:rank].sum())
        return total, loaded_energy

    def finish(self) -> AdapterReport:
        """Write the unchanged tensors of modules stored whole, and adapter_config.json.

        Raises:
            ValueError: a planned tensor hasn't been put.
            OutputError, ResourceError, CheckpointError: as in `put`.
        """
        missing: set[str] = set()
        for names in self._missing.values():
            missing |= names
        if missing:
            raise ValueError(f"planned and not put: {sorted(missing)[:3]}")
        for slot in (*self._plan.slots, *self._plan.rest):
            if not slot.awaited:
                self._write(slot)
        self._files.sync()
        self._files.__exit__()
        # The configuration is written last, because it marks the folder as an adapter.
        write_text(self._folder / ADAPTER_CONFIG, self._plan.config_text)
        energies = [self._energies[name] for name in sorted(self._energies)]  # sums depend on the order
        total = sum(of_change for of_change, _ in energies)
        loaded = sum(of_loaded for _, of_loaded in energies)
        # The two sums are rounded separately, so `loaded` can slightly exceed `total`.
        left_out_share = max(0.0, 1 - loaded / total) if total else 0.0
        return AdapterReport(
            profile=self._plan.profile,
            nbytes=self._plan.nbytes,
            held=len(self._plan.held),
            left_out=self._plan.left_out,
            in_sidecar=tuple(slot.name for slot in self._plan.rest),
            left_out_share=left_out_share,
        )

    def __enter__(self) -> "AdapterWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.__exit__()
