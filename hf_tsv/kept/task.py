"""One task's adapters in the making."""

from dataclasses import dataclass, field

from hf_tsv.files.names import Profile
from hf_tsv.linalg.ranks import DENSE, Dense, Spectrum
from hf_tsv.lora.architecture import Architecture
from hf_tsv.lora.write.plan import AdapterPlan
from hf_tsv.merging.plan import Step


@dataclass
class TaskAdapters:
    """What is known of one task's adapters on the way.

    Attributes:
        name: The task.
        index: Its place in the plan's tasks.
        architecture: The model that its adapters are put on, with the task's own head where it has one.
        spectra: Singular values of its changed matrices, by tensor, in the plan's order.
        whole: Bytes of each tensor that is stored whole: changed and not a matrix, or the task's alone.
        ranks: What is to be kept of every changed tensor.
        plans: The adapters, by profile.
    """

    name: str
    index: int
    architecture: Architecture
    spectra: dict[str, Spectrum] = field(default_factory=dict)
    whole: dict[str, int] = field(default_factory=dict)
    ranks: dict[str, int | Dense] = field(default_factory=dict)
    plans: dict[Profile, AdapterPlan] = field(default_factory=dict)

    def key(self, step: Step) -> str:
        """The name under which findings about a tensor are kept; a task's name has no slash."""
        return f"{self.name}/{step.name}"

    def rank_in(self, profile: Profile, name: str) -> int | Dense:
        """What an adapter holds of a changed tensor.

        It differs from `ranks` where PEFT, or a server, can't take what was chosen.
        """
        if name in self.whole:
            return DENSE
        return self.plans[profile].ranks.get(name, 0)

    def ranks_in(self, profile: Profile) -> dict[str, int | Dense]:
        """What an adapter holds of each tensor, its sidecar included; factors of zeros, which fill up, don't count."""
        ranks: dict[str, int | Dense] = {}
        for name, rank in self.plans[profile].ranks.items():
            if not isinstance(rank, Dense) and name in self.spectra:
                rank = min(rank, self.spectra[name].full_rank)
            ranks[name] = rank
        return ranks

    def factored_rank(self, step: Step) -> int | None:
        """How many triplets of a tensor have to be computed to serve every profile; None for none."""
        if step.name not in self.spectra:
            return None
        ranks = [self.rank_in(profile, step.name) for profile in self.plans]
        return max((rank for rank in ranks if not isinstance(rank, Dense)), default=None)
