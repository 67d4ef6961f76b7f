"""The state of one task's adapters while they are made."""

from dataclasses import dataclass, field

from hf_tsv.files.names import Profile
from hf_tsv.linalg.ranks import DENSE, Dense, Spectrum
from hf_tsv.lora.architecture import Architecture
from hf_tsv.lora.write.plan import AdapterPlan
from hf_tsv.merging.plan import Step


@dataclass
class TaskAdapters:
    """The state of one task's adapters while they are made.

    Attributes:
        name: Name of the task.
        index: Index of the task in the plan's tasks.
        architecture: Architecture of the adapters' model, with the task's own head where it has one.
        spectra: Singular values of the task's changed matrices, by tensor, in the plan's order.
        whole: Bytes of each tensor that is stored whole: changed and not a matrix, or the task's alone.
        ranks: Rank to keep of each changed tensor, or DENSE; tensors with rank 0 are left out.
        plans: Plans of the adapters, by profile.
    """

    name: str
    index: int
    architecture: Architecture
    spectra: dict[str, Spectrum] = field(default_factory=dict)
    whole: dict[str, int] = field(default_factory=dict)
    ranks: dict[str, int | Dense] = field(default_factory=dict)
    plans: dict[Profile, AdapterPlan] = field(default_factory=dict)

    def key(self, step: Step) -> str:
        """Return the name for findings about a tensor. It is unambiguous because a task's name has no slash."""
        return f"{self.name}/{step.name}"

    def rank_in(self, profile: Profile, name: str) -> int | Dense:
        """Return the rank that an adapter holds of a changed tensor, or DENSE.

        It differs from `ranks` where PEFT, or a server, can't take the chosen rank.
        """
        if name in self.whole:
            return DENSE
        return self.plans[profile].ranks.get(name, 0)

    def ranks_in(self, profile: Profile) -> dict[str, int | Dense]:
        """Return the rank that an adapter and its sidecar hold of each tensor, without zeros that fill up factors."""
        ranks: dict[str, int | Dense] = {}
        for name, rank in self.plans[profile].ranks.items():
            if not isinstance(rank, Dense) and name in self.spectra:
                rank = min(rank, self.spectra[name].full_rank)
            ranks[name] = rank
        return ranks

    def factored_rank(self, step: Step) -> int | None:
        """Return how many triplets of a tensor must be computed for all profiles; None if all store it whole."""
        if step.name not in self.spectra:  # unchanged, or stored whole
            return None
        ranks = [self.rank_in(profile, step.name) for profile in self.plans]
        return max((rank for rank in ranks if not isinstance(rank, Dense)), default=None)
