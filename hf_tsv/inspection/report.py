"""What was measured -> one plain summary, by task, pair, module type and layer; tables, pictures and pages read it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from torch import Tensor

from hf_tsv.checkpoints.modules import group_of, layer_of
from hf_tsv.inspection.advice import advice
from hf_tsv.inspection.measure import MASK_LAMBDA, Entries, Inspected, Inspection, Interference, Matrices
from hf_tsv.linalg.ranks import DENSE, Energy, Spectrum, choose_ranks, pooled

POINTS = 32  # of a spectrum's curve
ROUNDING = 1e-6  # of an interference: what is left of it below that is arithmetic's
MOST, NEARLY_ALL = 0.9, 0.99  # shares of a task matrix's energy


def summarize(inspection: Inspection) -> dict[str, Any]:
    """The whole inspection as plain data, fit for JSON.

    Returns:
        `base`, `tasks`, `mask_lambda`; `advice`, sentences; `per_task`, one mapping a task; `total`, `groups` (module
        types), `layers` and `cells` (a module type in a layer), each with the tasks' `norms`, the T x T matrices
        `cosines` and `opposed`, and `weights`: of what any task changed the shares that several tasks use (`shared`),
        one (`selfish`) and none (`catastrophic`), as TALL-masks tell it. Where there are task matrices also
        `interference` and T x T `clashes` in units of chance; of one shape also `spectra`: at some `ranks`, by task,
        the singular `values` and the energy `kept`.
    """
    cells, groups, layers = (_gathered(inspection.tensors, key) for key in (_cell, _group, _layer))
    stacks = _short_names({layer_of(one.info.name)[0] for one in inspection.tensors} - {""})
    summary = {
        "base": inspection.base,
        "tasks": list(inspection.tasks),
        "checkpoint_bytes": inspection.checkpoint_bytes,
        "mask_lambda": MASK_LAMBDA,
        "per_task": [_task(inspection, t) for t in range(len(inspection.tasks))],
        "total": _facts(inspection.tensors),
        "groups": [_named(group, stacks) | _facts(group) | _of_one_shape(group) for group in groups],
        "layers": [_named(layer, stacks) | _facts(layer) for layer in _by_depth(layers)],
        "cells": [_named(cell, stacks) | _facts(cell) | _of_one_shape(cell) for cell in cells],
    }
    return summary | {"advice": advice(summary)}


def _cell(one: Inspected) -> tuple[Any, ...]:
    return _group(one) + layer_of(one.info.name)


def _group(one: Inspected) -> tuple[Any, ...]:
    return group_of(one.info.name), one.info.shape


def _layer(one: Inspected) -> tuple[Any, ...]:
    return layer_of(one.info.name)


def _gathered(tensors: Iterable[Inspected], key: Any) -> list[list[Inspected]]:
    found: dict[Any, list[Inspected]] = {}
    for one in tensors:
        found.setdefault(key(one), []).append(one)
    return list(found.values())


def _by_depth(layers: Sequence[list[Inspected]]) -> list[list[Inspected]]:
    """Stack by stack, layer 2 before layer 10: files hold them by name."""
    names = [layer_of(layer[0].info.name) for layer in layers]
    stacks = list(dict.fromkeys(stack for stack, _ in names))
    order = sorted(range(len(layers)), key=lambda i: (stacks.index(names[i][0]), names[i][1] or 0))
    return [layers[i] for i in order]


def _named(tensors: Sequence[Inspected], stacks: Mapping[str, str]) -> dict[str, Any]:
    """What a group of tensors is called; of a layer's tensors only stack and number mean anything."""
    first, (stack, layer) = tensors[0].info, layer_of(tensors[0].info.name)
    group = group_of(first.name)
    short = ".".join(filter(None, (stacks[stack], group.removeprefix(f"{stack}*.")))) if stack else group
    return {
        "group": group,
        "label": short.removesuffix(".weight"),
        "kind": tensors[0].kind,
        "shape": list(first.shape),
        "tensors": len(tensors),
        "stack": stacks.get(stack, ""),
        "layer": layer,
    }


def _short_names(stacks: Iterable[str]) -> dict[str, str]:
    """What tells stacks of layers apart: `text_model` and `vision_model` of `text_model.encoder.layers.` and
    `vision_model.encoder.layers.`; nothing where there is one."""
    parts = {stack: stack.rstrip(".").split(".") for stack in stacks}
    for end in (0, -1):
        while len({own[end] for own in parts.values() if own}) == 1 and all(parts.values()):
            parts = {stack: own[1:] if end == 0 else own[:-1] for stack, own in parts.items()}
    return {stack: ".".join(own) for stack, own in parts.items()}


def _facts(tensors: Sequence[Inspected]) -> dict[str, Any]:
    entries = Entries.sum(one.entries for one in tensors)
    facts = {
        "norms": _plain(entries.norms),
        "cosines": _plain(entries.cosines),
        "opposed": _plain(entries.opposed_shares),
        "weights": {whose: _short(share) for whose, share in entries.use.shares().items()},
    }
    looked = [one.matrices for one in tensors if one.matrices]
    if not looked:
        return facts
    interference = Interference.sum(one.interference for one in looked)
    return facts | {
        "interference": {
            "before": _short(interference.before),
            "left": _short(interference.left) if interference.left > ROUNDING * interference.before else 0.0,
            "times_chance": _short(interference.times_chance),
        },
        "clashes": _plain(interference.clashes),
        "energy": [_short(_energy_kept(looked, t)) for t in range(len(entries.inner))],
    }


def _of_one_shape(tensors: Sequence[Inspected]) -> dict[str, Any]:
    looked = [one.matrices for one in tensors if one.matrices]
    if not looked:
        return {}
    spectra = [pooled(task) for task in zip(*(one.spectra for one in looked), strict=True)]  # one a task
    side = min(looked[0].spectra[0].m, looked[0].spectra[0].n)
    ranks = sorted({round(side ** (i / (POINTS - 1))) for i in range(POINTS)})
    return {
        "rank": looked[0].rank,
        "spectra": {
            "ranks": ranks,
            "values": [[_short(_value(s, k) / len(looked) ** 0.5) for k in ranks] for s in spectra],
            "kept": [[_short(_kept(s, k)) for k in ranks] for s in spectra],
        },
    }


@dataclass(frozen=True)
class _Ranks:
    """What a task's matrices need, each as a share of its smaller side."""

    above_noise: list[float]
    for_most: list[float]
    for_nearly_all: list[float]


def _task(inspection: Inspection, t: int) -> dict[str, Any]:
    entries = Entries.sum(one.entries for one in inspection.tensors)
    looked = [one for one in inspection.tensors if one.matrices and one.entries.both[t, t]]
    spectra = {one.info.name: one.matrices.spectra[t] for one in looked if one.matrices}
    ranks = _ranks(list(spectra.values()))
    return {
        "task": inspection.tasks[t],
        "norm": _short(float(entries.norms[t])),
        "changed": _short(float(entries.both[t, t]) / max(1, entries.numel)),
        "energy": _short(_energy_kept([one.matrices for one in looked if one.matrices], t)),
        "rank": _short(median(ranks.above_noise)) if spectra else 0.0,
        "largest_rank": max((spectrum.full_rank for spectrum in spectra.values()), default=0),
        "rank_for_90": _short(median(ranks.for_most)) if spectra else 0.0,
        "rank_for_99": _short(median(ranks.for_nearly_all)) if spectra else 0.0,
        "bytes_for_99": _bytes(inspection, t, spectra),
    }


def _ranks(spectra: Sequence[Spectrum]) -> _Ranks:
    def shares(ranks: Iterable[int]) -> list[float]:
        return [rank / min(s.m, s.n) for rank, s in zip(ranks, spectra, strict=True)]

    return _Ranks(
        shares(s.full_rank for s in spectra),
        shares(_fewest(s, MOST) for s in spectra),
        shares(_fewest(s, NEARLY_ALL) for s in spectra),
    )


def _fewest(spectrum: Spectrum, share: float) -> int:
    return int((spectrum.kept < share * spectrum.kept[-1]).sum())


def _bytes(inspection: Inspection, t: int, spectra: Mapping[str, Spectrum]) -> int:
    """What TSV-C stores of a task at 99% of each matrix's energy: factors, and what has none as a whole."""
    ranks = choose_ranks(spectra, Energy(NEARLY_ALL))
    total = 0
    for one in inspection.tensors:
        rank = ranks.get(one.info.name, DENSE)
        if not one.entries.both[t, t] or not one.info.numel:
            continue
        item = one.info.nbytes // one.info.numel
        total += one.info.nbytes if rank is DENSE else int(rank) * spectra[one.info.name].rank_bytes // 4 * item
    return total


def _energy_kept(looked: Sequence[Matrices], t: int) -> float:
    """Share of task t's energy in the triplets that TSV-Merge keeps; 0 where it changed nothing."""
    whole = sum(float(one.spectra[t].kept[-1]) for one in looked)
    return sum(one.spectra[t].energy_at(one.rank) for one in looked) / whole if whole else 0.0


def _value(spectrum: Spectrum, rank: int) -> float:
    return float(spectrum.values[rank - 1]) if rank <= len(spectrum.values) else 0.0


def _kept(spectrum: Spectrum, rank: int) -> float:
    whole = float(spectrum.kept[-1])
    return spectrum.energy_at(rank) / whole if whole else 0.0


def _plain(values: Tensor) -> Any:
    def short(value: Any) -> Any:
        return [short(item) for item in value] if isinstance(value, list) else _short(value)

    return short(values.tolist())


def _short(value: float) -> float:
    """Four digits: what anybody reads, and a page of a tenth the size."""
    return float(f"{value:.4g}")
