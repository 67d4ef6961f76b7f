"""The tables of a merged model's tensors, grouped by module type, with the treatment of each group."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from hf_tsv.checkpoints.dtypes import DTYPES
from hf_tsv.checkpoints.modules import group_of
from hf_tsv.checkpoints.protocol import TensorInfo
from hf_tsv.methods import METHODS
from hf_tsv.record import MergeRecord, TensorEntry


@dataclass(frozen=True)
class Group:
    """Tensors of one module type that were treated the same.

    Attributes:
        name: The tensors' common name, with `*` for the numbers in which they differ.
        shape: The tensors' shape, as people write it.
        method: The method that merged them.
        why: The reason why they are the base's; empty if they were merged.
        tensors: The tensors themselves.
    """

    name: str
    shape: str
    method: str
    why: str
    tensors: tuple[TensorEntry, ...]


@dataclass(frozen=True)
class MergedRow:
    """A row of the table of merged tensors.

    Attributes:
        group: The row's tensors.
        parameters: The method's parameters whose values differ between its tensors.
        rank: The range of the ranks that were kept; empty for a method without ranks.
        energy: The range of the shares of energy at these ranks.
    """

    group: Group
    parameters: list[str]
    rank: str
    energy: str


@dataclass(frozen=True)
class MethodRow:
    """A method that merged tensors.

    Attributes:
        name: The method's name in recipes.
        paper: The address of its paper; empty if it has none.
        summary: A sentence on what it does; empty if the method isn't installed.
        count: The number of tensors that it merged.
        parameters: The parameters that have the same value for all its tensors.
    """

    name: str
    paper: str
    summary: str
    count: int
    parameters: list[str]


@dataclass(frozen=True)
class TensorTables:
    """The facts about tensors in a card.

    Attributes:
        methods: The methods that were used.
        merged: The tensors that were merged.
        kept: The tensors that are the base's.
        dtypes: The floating-point dtypes of the weights, the one with the most bytes first.
        nbytes: The bytes of all weights.
    """

    methods: list[MethodRow]
    merged: list[MergedRow]
    kept: list[Group]
    dtypes: list[str]
    nbytes: int


def tensor_tables(record: MergeRecord) -> TensorTables:
    """Make the tables of a merge's record."""
    merged = {name: entry for name, entry in record.tensors.items() if not _why_kept(entry)}
    kept = {name: entry for name, entry in record.tensors.items() if name not in merged}
    by_method: dict[str, list[TensorEntry]] = {name: [] for name in record.methods}
    for entry in merged.values():
        by_method.setdefault(entry.method, []).append(entry)

    methods: list[MethodRow] = []
    varying: dict[str, list[str]] = {}  # by method, the parameters in which its tensors differ
    for name, entries in by_method.items():
        if not entries:
            continue
        keys: dict[str, None] = {}  # names of all its tensors' parameters, each once
        for entry in entries:
            keys |= dict.fromkeys(entry.parameters)
        shared: list[str] = []
        varying[name] = []
        for key in keys:
            values = {repr(entry.parameters.get(key)) for entry in entries}  # lists can't be hashed
            if len(values) > 1:
                varying[name].append(key)
            else:
                shared.append(key)
        # A plug-in's method may be missing on the machine that writes a card again.
        summary = METHODS[name].summary if name in METHODS else ""
        paper = record.methods[name].paper if name in record.methods else ""
        methods.append(MethodRow(name, paper, summary, len(entries), _parameters(entries, shared)))

    rows: list[MergedRow] = []
    for group in _grouped(merged):
        ranks: list[float] = []
        energies: list[float] = []
        for entry in group.tensors:
            ranks += _numbers(entry.notes.get("rank"))
            energies += _numbers(entry.notes.get("energy"))
        parameters = _parameters(group.tensors, varying[group.method])
        rows.append(MergedRow(group, parameters, _range(ranks, str), _range(energies, "{:.1%}".format)))

    bytes_by_dtype: Counter[str] = Counter()
    for name, entry in record.tensors.items():
        if entry.dtype in DTYPES:
            bytes_by_dtype[entry.dtype] += TensorInfo(name, entry.shape, entry.dtype).nbytes
    dtypes = [DTYPES[dtype].word for dtype, _ in bytes_by_dtype.most_common() if DTYPES[dtype].is_float]
    return TensorTables(methods, rows, _grouped(kept), dtypes, bytes_by_dtype.total())


def _why_kept(entry: TensorEntry) -> str:
    """Return the reason why a tensor is the base's; empty if it was merged."""
    if entry.why:
        return entry.why
    return "no task changed it" if entry.unchanged else ""


def _grouped(tensors: Mapping[str, TensorEntry]) -> list[Group]:
    """Group tensors of one module type and shape that were treated the same, in order of first appearance."""
    members: dict[tuple[str, str, str, str], list[TensorEntry]] = {}
    for name, entry in tensors.items():
        shape = " × ".join(map(str, entry.shape)) or "scalar"
        key = (group_of(name), shape, entry.method, _why_kept(entry))
        members.setdefault(key, []).append(entry)
    return [Group(*key, tuple(entries)) for key, entries in members.items()]


def _parameters(entries: Iterable[TensorEntry], keys: Iterable[str]) -> list[str]:
    """Return each of these parameters with its values, if any are given."""
    given = [entry.parameters for entry in entries]
    shown: list[str] = []
    for key in keys:
        values = [parameters[key] for parameters in given if key in parameters]
        if not values:
            continue
        # bool is a subclass of int in Python.
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(numbers) == len(values):
            text = _range(numbers, "{:g}".format)
        else:
            text = " or ".join(dict.fromkeys(map(value_text, values)))
        shown.append(f"{key} {text}")
    return shown


def value_text(value: JsonValue) -> str:
    """Return a parameter as the recipe writes it; of one value per task, all of them, or one if they are equal."""
    if not isinstance(value, list):
        return str(value).lower()
    texts = list(map(value_text, value))
    if len(set(texts)) == 1:  # all tasks have the same value
        return texts[0]
    return "/".join(texts)


def _numbers(value: JsonValue) -> Iterator[float]:
    """Yield the numbers in nested lists, if any: one per task, or for stacked experts one list per expert."""
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


def _range(values: Sequence[float], show: Callable[[float], str]) -> str:
    """Return the smallest and the largest value, or one if both look the same; empty without values."""
    if not values:
        return ""
    # Compared as shown: 0.5011 and 0.5012 are both 50.1%.
    ends = dict.fromkeys((show(min(values)), show(max(values))))
    return " to ".join(ends)
