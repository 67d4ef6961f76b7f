"""The summary of an inspection: shares, ratios and T x T matrices of T tasks, ready for JSON.

`hf_tsv.inspection.report` computes it; tables, pictures, the page and `--json` read it. Matrices are rows of floats
with four digits. Values that can't be measured, such as the interference of tensors that aren't matrices, are None,
and absent from the JSON.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class TaskFacts(_Data):
    """Measurements of one task vector.

    Attributes:
        task: The task's name.
        norm: The Frobenius norm of the task vector.
        changed: The share of all weights that it changes.
        energy: The share of its energy in the singular triplets that TSV-Merge keeps.
        rank: The rank above rounding noise as a share of the full rank, the median over its matrices.
        largest_rank: The largest of those ranks, in triplets.
        rank_for_90: The share of the full rank that holds 90% of a matrix's energy, the median over its matrices.
        rank_for_99: The same share for 99%.
        bytes_for_99: The bytes that TSV-C stores at 99% of every matrix's energy.
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
    """The weights that any task changed, by how many tasks use them: shares, counted by TALL-masks.

    Attributes:
        catastrophic: The share that no task uses.
        selfish: The share that one task uses.
        shared: The share that several tasks use.
    """

    catastrophic: float
    selfish: float
    shared: float


class InterferenceFacts(_Data):
    """Singular Task Interference at the rank that TSV-Merge keeps.

    Attributes:
        before: The interference of the task vectors as they are.
        left: The interference after TSV-Merge's orthogonalisation.
        times_chance: `before` as a multiple of the interference of unrelated subspaces.
    """

    before: float
    left: float
    times_chance: float


class Facts(_Data):
    """Measurements of some tensors together.

    Attributes:
        norms: The tasks' Frobenius norms, (T,).
        cosines: Cosines between the tasks, (T, T).
        opposed: The share of the weights changed by both of a pair that they moved in opposite directions, (T, T).
        weights: The changed weights by how many tasks use them.
        interference: How the task matrices disturb each other; None if there are no matrices.
        clashes: The interference of each pair of tasks, in multiples of chance, (T, T); None without matrices.
        energy: The share of each task's energy in the triplets that TSV-Merge keeps, (T,); None without matrices.
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
        values: The singular values at these ranks by task, root mean squares over the matrices, (T, R).
        kept: The share of energy in the triplets up to each rank, by task, (T, R).
    """

    ranks: list[int]
    values: list[list[float]]
    kept: list[list[float]]


class Place(_Data):
    """The identity of a group of tensors.

    Attributes:
        group: The module type: a tensor's name with `*` for the layer's number.
        label: A short name of the module type.
        kind: The kind of module, such as `linear` or `norm`.
        shape: The first tensor's shape.
        tensors: The number of tensors.
        stack: The short name of the stack of layers; "" if there is only one.
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
    """Measurements of one layer's tensors; of the attributes of `Place`, only `stack` and `layer` are meaningful."""


class Group(Facts, Place):
    """Measurements of tensors of one module type and shape, over all layers or in one.

    Attributes:
        rank: The number of singular triplets of each task that TSV-Merge keeps; None without matrices.
        spectra: The tasks' spectra; None without matrices.
    """

    rank: int | None = None
    spectra: Spectra | None = None


class Summary(_Data):
    """The whole inspection.

    Attributes:
        base: The base model's name.
        tasks: The tasks' names, in recipe order.
        checkpoint_bytes: The bytes of the base's tensors.
        mask_lambda: The lambda of the TALL-masks that `weights` is counted with.
        per_task: Measurements of each task vector, one entry per task.
        total: Measurements of all tensors together.
        groups: Measurements by module type and shape.
        layers: Measurements by layer, stack by stack.
        cells: Measurements by module type and shape within one layer.
        advice: Sentences on what this means for a merge.
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
        """Return the summary as plain data for JSON and templates, without values that couldn't be measured."""
        return self.model_dump(exclude_unset=True)
