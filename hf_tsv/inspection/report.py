"""Measurements -> the summary, by task, pair, module type and layer."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from torch import Tensor

from hf_tsv.checkpoints.modules import group_of, layer_of
from hf_tsv.inspection.advice import advice
from hf_tsv.inspection.measure import MASK_LAMBDA, Entries, Inspected, Inspection, Interference, Matrices
from hf_tsv.inspection.summary import Facts, Group, InterferenceFacts, Layer, Place, Spectra, Summary, TaskFacts, Use
from hf_tsv.linalg.ranks import DENSE, Energy, Spectrum, choose_ranks, pooled

POINTS = 32  # on a spectrum's curve
ROUNDING = 1e-6  # a smaller share of the interference left is due to rounding, not to the tasks
MOST, NEARLY_ALL = 0.9, 0.99  # shares of a task matrix's energy


def summarize(inspection: Inspection) -> Summary:
    """Summarize the whole inspection, with advice."""
    tensors = inspection.tensors
    stacks = _short_names({layer_of(tensor.info.name)[0] for tensor in tensors} - {""})

    def group_key(tensor: Inspected) -> Hashable:
        return group_of(tensor.info.name), tensor.info.shape

    def layer_key(tensor: Inspected) -> Hashable:
        return layer_of(tensor.info.name)

    def cell_key(tensor: Inspected) -> Hashable:
        return group_key(tensor), layer_key(tensor)

    by_layer = _gathered(tensors, layer_key)
    names = [layer_of(layer[0].info.name) for layer in by_layer]  # (stack, number) of each layer
    in_order = list(dict.fromkeys(stack for stack, _ in names))
    # Stack by stack, and by number: sorted by name, as in files, layer 10 would come before layer 2.
    order = sorted(range(len(by_layer)), key=lambda i: (in_order.index(names[i][0]), names[i][1] or 0))
    layers: list[Layer] = []
    for i in order:
        place = _place(by_layer[i], stacks)
        facts = _facts(by_layer[i])
        layers.append(Layer(**_fields(place), **_fields(facts)))
    summary = Summary(
        base=inspection.base,
        tasks=list(inspection.tasks),
        checkpoint_bytes=inspection.checkpoint_bytes,
        mask_lambda=MASK_LAMBDA,
        per_task=[_task_facts(inspection, t) for t in range(len(inspection.tasks))],
        total=_facts(tensors),
        groups=[_group(group, stacks) for group in _gathered(tensors, group_key)],
        layers=layers,
        cells=[_group(cell, stacks) for cell in _gathered(tensors, cell_key)],
    )
    return summary.model_copy(update={"advice": advice(summary)})


def _fields(model: Place | Facts) -> dict[str, Any]:
    """Return the fields that are set in a model, to be copied into a larger one."""
    return {name: getattr(model, name) for name in model.model_fields_set}


def _gathered(tensors: Iterable[Inspected], key: Callable[[Inspected], Hashable]) -> list[list[Inspected]]:
    """Group tensors by key, in the order in which the keys appear."""
    groups: dict[Hashable, list[Inspected]] = {}
    for tensor in tensors:
        groups.setdefault(key(tensor), []).append(tensor)
    return list(groups.values())


def _place(tensors: Sequence[Inspected], stacks: Mapping[str, str]) -> Place:
    """Return the names, shape and layer of a group of tensors."""
    first = tensors[0].info
    stack, layer = layer_of(first.name)
    group = group_of(first.name)
    label = group
    if stack:
        # The short name of its stack replaces the long one and the layer.
        within = group.removeprefix(f"{stack}*.")
        label = f"{stacks[stack]}.{within}" if stacks[stack] else within
    return Place(
        group=group,
        label=label.removesuffix(".weight"),
        kind=tensors[0].kind,
        shape=list(first.shape),
        tensors=len(tensors),
        stack=stacks.get(stack, ""),
        layer=layer,
    )


def _short_names(stacks: Iterable[str]) -> dict[str, str]:
    """Return a short distinguishing name of each stack of layers; "" if there is only one.

    For example, `text_model` and `vision_model` for `text_model.encoder.layers.` and `vision_model.encoder.layers.`.
    """
    parts = {stack: stack.rstrip(".").split(".") for stack in stacks}
    # Cut at the start, then at the end, as long as all of them agree there.
    while all(parts.values()) and len({own[0] for own in parts.values()}) == 1:
        for own in parts.values():
            own.pop(0)
    while all(parts.values()) and len({own[-1] for own in parts.values()}) == 1:
        for own in parts.values():
            own.pop()
    return {stack: ".".join(own) for stack, own in parts.items()}


def _facts(tensors: Sequence[Inspected]) -> Facts:
    """Sum the measurements of some tensors."""
    entries = Entries.sum(tensor.entries for tensor in tensors)
    shares = entries.use.shares()
    measured: dict[str, Any] = {
        "norms": _vector(entries.norms),
        "cosines": _matrix(entries.cosines),
        "opposed": _matrix(entries.opposed_shares),
        "weights": Use(**{user: _short(share) for user, share in shares.items()}),
    }
    matrices = [tensor.matrices for tensor in tensors if tensor.matrices]
    if not matrices:
        return Facts(**measured)
    interference = Interference.sum(one.interference for one in matrices)
    is_left = interference.left > ROUNDING * interference.before
    return Facts(
        **measured,
        interference=InterferenceFacts(
            before=_short(interference.before),
            left=_short(interference.left) if is_left else 0.0,
            times_chance=_short(interference.times_chance),
        ),
        clashes=_matrix(interference.clashes),
        energy=[_short(_energy_share(matrices, t)) for t in range(len(entries.inner))],
    )


def _group(tensors: Sequence[Inspected], stacks: Mapping[str, str]) -> Group:
    """Summarize tensors of one module type and shape, with their spectra if they are matrices."""
    known = _fields(_place(tensors, stacks)) | _fields(_facts(tensors))
    matrices = [tensor.matrices for tensor in tensors if tensor.matrices]
    if not matrices:
        return Group(**known)
    by_matrix = [one.spectra for one in matrices]
    spectra = [pooled(of_task) for of_task in zip(*by_matrix, strict=True)]  # one per task
    side = min(spectra[0].m, spectra[0].n)
    # Evenly spaced on a logarithmic axis, from 1 to the full rank; small matrices have fewer ranks than points.
    ranks = sorted({round(side ** (i / (POINTS - 1))) for i in range(POINTS)})
    values: list[list[float]] = []
    kept: list[list[float]] = []
    for spectrum in spectra:
        whole = float(spectrum.kept[-1])
        values_of_task: list[float] = []
        kept_of_task: list[float] = []
        for rank in ranks:
            # A decomposition may give fewer values than the full rank: the rest are 0.
            value = float(spectrum.values[rank - 1]) if rank <= len(spectrum.values) else 0.0
            # Pooled values are root sums of squares over the matrices; the summary shows root mean squares.
            values_of_task.append(_short(value / len(matrices) ** 0.5))
            kept_of_task.append(_short(spectrum.energy_at(rank) / whole if whole else 0.0))
        values.append(values_of_task)
        kept.append(kept_of_task)
    return Group(**known, rank=matrices[0].rank, spectra=Spectra(ranks=ranks, values=values, kept=kept))


def _task_facts(inspection: Inspection, t: int) -> TaskFacts:
    """Summarize the measurements of task t alone."""
    entries = Entries.sum(tensor.entries for tensor in inspection.tensors)
    matrices: dict[str, Matrices] = {}  # of the tensors that this task changed
    for tensor in inspection.tensors:
        if tensor.matrices and tensor.entries.both[t, t]:
            matrices[tensor.info.name] = tensor.matrices
    spectra = {name: one.spectra[t] for name, one in matrices.items()}
    ranks = [spectrum.full_rank for spectrum in spectra.values()]
    ranks_for_most = [_fewest(spectrum, MOST) for spectrum in spectra.values()]
    ranks_for_nearly_all = [_fewest(spectrum, NEARLY_ALL) for spectrum in spectra.values()]

    def median_share(ranks: Sequence[int]) -> float:
        """Return the median of ranks, each as a share of its matrix's smaller side."""
        sides = [min(spectrum.m, spectrum.n) for spectrum in spectra.values()]
        shares = [rank / side for rank, side in zip(ranks, sides, strict=True)]
        return _short(median(shares)) if shares else 0.0

    return TaskFacts(
        task=inspection.tasks[t],
        norm=_short(float(entries.norms[t])),
        changed=_short(float(entries.both[t, t]) / max(1, entries.numel)),
        energy=_short(_energy_share(list(matrices.values()), t)),
        rank=median_share(ranks),
        largest_rank=max(ranks, default=0),
        rank_for_90=median_share(ranks_for_most),
        rank_for_99=median_share(ranks_for_nearly_all),
        bytes_for_99=_bytes(inspection, t, spectra),
    )


def _fewest(spectrum: Spectrum, share: float) -> int:
    """Return the smallest number of singular triplets that hold a share of a matrix's energy."""
    return int((spectrum.kept < share * spectrum.kept[-1]).sum())


def _bytes(inspection: Inspection, t: int, spectra: Mapping[str, Spectrum]) -> int:
    """Count the bytes that TSV-C stores for a task at 99% of each matrix's energy: factors, or tensors if smaller."""
    ranks = choose_ranks(spectra, Energy(NEARLY_ALL))
    total = 0
    for tensor in inspection.tensors:
        info = tensor.info
        if not tensor.entries.both[t, t] or not info.numel:
            continue
        rank = ranks.get(info.name, DENSE)
        if rank is DENSE:
            total += info.nbytes
        else:
            item_bytes = info.nbytes // info.numel
            numbers = spectra[info.name].rank_bytes // 4  # per rank; `rank_bytes` counts them as float32, 4 bytes each
            total += int(rank) * numbers * item_bytes
    return total


def _energy_share(matrices: Sequence[Matrices], t: int) -> float:
    """Compute the share of task t's energy in the triplets that TSV-Merge keeps; 0 if it changed nothing."""
    whole = sum(float(one.spectra[t].kept[-1]) for one in matrices)
    kept = sum(one.spectra[t].energy_at(one.rank) for one in matrices)
    return kept / whole if whole else 0.0


def _vector(values: Tensor) -> list[float]:
    return [_short(value) for value in values.tolist()]


def _matrix(values: Tensor) -> list[list[float]]:
    return [_vector(row) for row in values]


def _short(value: float) -> float:
    """Round to four digits: enough for a reader, and the page is a tenth of the size."""
    return float(f"{value:.4g}")
