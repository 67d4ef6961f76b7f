"""An inspection as people and pages read it: shares, ratios and T x T matrices of T tasks, fit for JSON.

`hf_tsv.inspection.report` computes it; tables, pictures, the page and `--json` read it. Matrices are rows of floats
with four digits. What can't be measured, such as the interference of tensors that aren't matrices, is None, and absent
from the JSON.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class TaskFacts(_Data):
    """One task vector.

    Attributes:
        task: The task's name.
        norm: The Frobenius norm.
        changed: The share of all weights that it changes.
        energy: The share of its energy in the singular triplets that TSV-Merge keeps.
        rank: The rank above rounding noise as a share of the full rank, the median over its matrices.
        largest_rank: The largest of those ranks, in triplets.
        rank_for_90: The share of the full rank that holds 90% of a matrix's energy, the median over its matrices.
        rank_for_99: The same for 99%.
        bytes_for_99: Bytes that TSV-C stores at 99% of every matrix's energy.
    """

    task: str
    norm: float
    changed: float
    energy: float
    rank: float
    largest_rank: int
    rank_for_90: float
    rank_for_99: float
    bytes_for_99: int


class Use(_Data):
    """How many tasks use the weights that any task changed, as shares of them; by TALL-masks.

    Attributes:
        catastrophic: Used by none.
        selfish: Used by one.
        shared: Used by several.
    """

    catastrophic: float
    selfish: float
    shared: float


class InterferenceFacts(_Data):
    """Singular Task Interference at the rank that TSV-Merge keeps.

    Attributes:
        before: Of the task vectors as they are.
        left: After TSV-Merge's orthogonalisation.
        times_chance: `before` as a multiple of what unrelated subspaces would have.
    """

    before: float
    left: float
    times_chance: float


class Facts(_Data):
    """What was measured of some tensors together.

    Attributes:
        norms: The tasks' Frobenius norms, (T,).
        cosines: Cosines between the tasks, (T, T).
        opposed: Of the weights that both tasks of a pair changed, the share moved in opposite directions, (T, T).
        weights: How many tasks use the changed weights.
        interference: How the task matrices disturb each other; None where there are none.
        clashes: What two tasks leave in each other's directions, in multiples of chance, (T, T).
        energy: The share of each task's energy in the triplets that TSV-Merge keeps, (T,).
    """

    norms: list[float]
    cosines: list[list[float]]
    opposed: list[list[float]]
    weights: Use
    interference: InterferenceFacts | None = None
    clashes: list[list[float]] | None = None
    energy: list[float] | None = None


class Spectra(_Data):
    """Singular values of matrices of one shape, at R of their ranks.

    Attributes:
        ranks: The ranks, (R,).
        values: By task the singular values there, the root mean square over the matrices, (T, R).
        kept: By task the share of energy in the triplets up to there, (T, R).
    """

    ranks: list[int]
    values: list[list[float]]
    kept: list[list[float]]


class Place(_Data):
    """Which tensors.

    Attributes:
        group: The module type: a tensor's name with `*` for the layer's number.
        label: A short name of the module type.
        kind: The kind of module, such as `linear` or `norm`.
        shape: The first tensor's shape.
        tensors: How many tensors.
        stack: Which of several stacks of layers; "" where there is one.
        layer: The layer's number; None outside the layers.
    """

    group: str
    label: str
    kind: str
    shape: list[int]
    tensors: int
    stack: str
    layer: int | None


class Layer(Facts, Place):
    """The tensors of one layer; of the attributes of `Place` only `stack` and `layer` mean anything."""


class Group(Facts, Place):
    """Tensors of one module type and shape, over all layers or in one.

    Attributes:
        rank: The singular triplets of each task that TSV-Merge keeps.
        spectra: The tasks' spectra.
    """

    rank: int | None = None
    spectra: Spectra | None = None


class Summary(_Data):
    """The whole inspection.

    Attributes:
        base: What the base model is called.
        tasks: The tasks' names, in recipe order.
        checkpoint_bytes: Bytes of the base's tensors.
        mask_lambda: The lambda of the TALL-masks that `weights` is counted by.
        per_task: One entry per task.
        total: All tensors together.
        groups: By module type and shape.
        layers: By layer, stack by stack.
        cells: By module type and shape in one layer.
        advice: What this means for a merge, in sentences.
    """

    base: str
    tasks: list[str]
    checkpoint_bytes: int
    mask_lambda: float
    per_task: list[TaskFacts]
    total: Facts
    groups: list[Group]
    layers: list[Layer]
    cells: list[Group]
    advice: list[str] = []

    def plain(self) -> dict[str, Any]:
        """The summary as plain data for JSON and templates, without what couldn't be measured."""
        return self.model_dump(exclude_unset=True)
