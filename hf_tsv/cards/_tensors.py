"""The tables of a merged model's tensors: grouped by module type, with what was done with each group."""

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
    """Tensors of one module type that are treated alike.

    Attributes:
        name: Their names, with `*` for the numbers in which they differ.
        shape: Their shape, as people write it.
        method: The method that merged them.
        why: Why they are the base's; empty if they were merged.
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
        group: The tensors.
        parameters: The method's parameters that other tensors have otherwise.
        rank: The range of the ranks that were kept; empty for a method without any.
        energy: The range of the shares that these hold.
    """

    group: Group
    parameters: list[str]
    rank: str
    energy: str


@dataclass(frozen=True)
class MethodRow:
    """A method that merged tensors.

    Attributes:
        name: Its name in recipes.
        paper: The address of its source; empty if it has none.
        summary: What it does, in a sentence; empty where it isn't known here.
        count: How many tensors it merged.
        parameters: Those that all its tensors share.
    """

    name: str
    paper: str
    summary: str
    count: int
    parameters: list[str]


@dataclass(frozen=True)
class TensorTables:
    """All that a card says of tensors.

    Attributes:
        methods: The methods that were used.
        merged: What was merged.
        kept: What is the base's.
        dtypes: The floating-point dtypes of the weights, the one of the most bytes first.
        nbytes: How much all weights take.
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
        keys: dict[str, None] = {}  # of all its tensors' parameters, each once
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
        # A plug-in's method may not be installed where a card is written again.
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
    """Why a tensor is the base's; empty when it was merged."""
    if entry.why:
        return entry.why
    return "no task changed it" if entry.unchanged else ""


def _grouped(tensors: Mapping[str, TensorEntry]) -> list[Group]:
    """Tensors of one module type and shape that were treated alike, in the order of the first of each."""
    members: dict[tuple[str, str, str, str], list[TensorEntry]] = {}
    for name, entry in tensors.items():
        shape = " × ".join(map(str, entry.shape)) or "scalar"
        key = (group_of(name), shape, entry.method, _why_kept(entry))
        members.setdefault(key, []).append(entry)
    return [Group(*key, tuple(entries)) for key, entries in members.items()]


def _parameters(entries: Iterable[TensorEntry], keys: Iterable[str]) -> list[str]:
    """Each of these parameters with its values, as far as they are given."""
    given = [entry.parameters for entry in entries]
    shown: list[str] = []
    for key in keys:
        values = [parameters[key] for parameters in given if key in parameters]
        if not values:
            continue
        # True and False are ints in Python.
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(numbers) == len(values):
            text = _range(numbers, "{:g}".format)
        else:
            text = " or ".join(dict.fromkeys(map(value_text, values)))
        shown.append(f"{key} {text}")
    return shown


def value_text(value: JsonValue) -> str:
    """A parameter as the recipe has it; of one value for each task, those that differ."""
    if not isinstance(value, list):
        return str(value).lower()
    texts = list(map(value_text, value))
    if len(set(texts)) == 1:  # all tasks have the same value
        return texts[0]
    return "/".join(texts)


def _numbers(value: JsonValue) -> Iterator[float]:
    """The numbers within nested lists: one a task, and for stacked experts one list an expert, or none."""
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


def _range(values: Sequence[float], show: Callable[[float], str]) -> str:
    """The smallest and the largest value, or the one that they both are."""
    if not values:
        return ""
    # Compared as they are shown: 0.501 and 0.502 are both 50%.
    ends = dict.fromkeys((show(min(values)), show(max(values))))
    return " to ".join(ends)
