"""The examples of a task, read from a file or a data set on the Hub."""

import csv
import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional

from hf_tsv.errors import HfTsvError
from hf_tsv.evaluation.suite import AnyTask, HubData, Labelled, Perplexity, Suite


class DataError(HfTsvError):
    """A task's examples or head can't be used."""


@dataclass(frozen=True)
class Examples:
    """The data that a task is scored on.

    Attributes:
        inputs: The values of the task's columns, one tuple per example.
        labels: The labels as the data has them, one per example.
        folder: The folder that images' paths are relative to.
        sha256: The SHA-256 of the file, or the fingerprint of a data set on the Hub.
    """

    inputs: Sequence[tuple[Any, ...]]
    labels: Sequence[Any]
    folder: Path
    sha256: str

    @property
    def text(self) -> str:
        """The one text of a language modelling task."""
        return str(self.inputs[0][0])


@dataclass(frozen=True)
class Head:
    """A linear classifier on embeddings: weight (C, d), bias (C,) or None, and the labels' names, if any."""

    weight: Tensor
    bias: Tensor | None
    labels: tuple[str, ...]
    sha256: str

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Compute the logits, (N, C), of embeddings (N, d)."""
        bias = None if self.bias is None else self.bias.to(embeddings)
        return functional.linear(embeddings, self.weight.to(embeddings), bias)


def read_examples(suite: Suite, task: Labelled | Perplexity) -> Examples:
    """Read the examples of a task in the data's order; with a `limit`, a sample drawn by the suite's seed.

    Raises:
        DataError: the data can't be read, or lack a column; names the task and the file.
    """
    if isinstance(task, Perplexity):
        path = suite.path(task.data)
        text = _text(suite, task, path)
        return Examples([(text,)], [], path.parent, file_sha256(path))
    rows, folder, digest = _read_rows(suite, task)
    columns = (*task.columns, task.label)
    for column in columns:
        if rows and column not in rows[0]:
            raise DataError(
                f"{suite.where(task)}: the data of '{task.name}' have no column '{column}', expected one of"
                f" {', '.join(map(str, rows[0]))}."
            )
    if not rows:
        raise DataError(f"{suite.where(task)}: the data of '{task.name}' contain no examples.")
    chosen = list(range(len(rows)))
    # Sorted, so that a limit changes which examples are used, but not their order.
    if task.limit and task.limit < len(rows):
        chosen = sorted(random.Random(suite.file.seed).sample(chosen, task.limit))
    try:
        if isinstance(rows, list):
            in_memory = _Inputs(rows, task.columns, chosen)
            # Read now, so that a row that lacks a column is reported before any model is loaded.
            inputs: Sequence[tuple[Any, ...]] = [in_memory[i] for i in range(len(chosen))]
            labels = [rows[i][task.label] for i in chosen]
        else:
            inputs = _Inputs(rows, task.columns, chosen)
            all_labels = list(rows[task.label])  # as a column: reading rows would decode each image
            labels = [all_labels[i] for i in chosen]
    except KeyError as error:
        raise DataError(f"{suite.where(task)}: an example of '{task.name}' has no {error}. Fill it in.") from None
    return Examples(inputs, labels, folder, digest)


def read_head(suite: Suite, task: Labelled) -> Head | None:
    """Read the head that a task names, if any.

    Raises:
        DataError: the file can't be read, or doesn't contain a head.
    """
    if task.head is None:
        return None
    path = suite.path(task.head)
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            metadata = file.metadata() or {}
            labels = json.loads(metadata.get("labels", "[]"))
            weight = file.get_tensor("weight")  # (C, d)
            bias = file.get_tensor("bias") if "bias" in names else None  # (C,)
            head = Head(weight, bias, tuple(labels), file_sha256(path))
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise DataError(f"{suite.where(task)}: the head {path} can't be read: {error}.") from None
    if head.weight.ndim != 2 or (head.bias is not None and head.bias.shape != head.weight.shape[:1]):
        bias_shape = None if head.bias is None else tuple(head.bias.shape)
        raise DataError(
            f"{suite.where(task)}: expected in {path} a weight (C, d) and a bias (C,) but got"
            f" {tuple(head.weight.shape)} and {bias_shape}."
        )
    return head


def label_numbers(labels: Sequence[Any], names: Mapping[str, int], count: int, where: str) -> Tensor:
    """Convert labels, names or numbers, to numbers below `count`, (N,) int64.

    Raises:
        DataError: a label is neither a known name nor such a number.
    """

    def number(label: Any) -> int:
        if isinstance(label, str) and label in names:
            return names[label]
        try:
            index = int(label)
        except (TypeError, ValueError):
            index = -1
        # int(1.7) is 1: a column of floats doesn't hold labels.
        if not 0 <= index < count or isinstance(label, float):
            known = ", ".join(list(names)[:8])
            more = ", …" if len(names) > 8 else ""
            raise DataError(
                f"{where}: unknown label {label!r}, expected one of {known}{more} or a number below {count}."
            )
        return index

    return torch.tensor([number(label) for label in labels])  # (N,)


def _read_rows(suite: Suite, task: Labelled) -> tuple[Any, Path, str]:
    """Open a task's labelled data: its rows, the folder that its paths are relative to, and its SHA-256 or fingerprint.

    Rows of a file are a list of dictionaries. Those of the Hub are a data set of the package `datasets`, which reads a
    row when it is used.
    """
    if isinstance(task.data, HubData):
        try:
            import datasets
        except ImportError:
            raise DataError(
                f"{suite.where(task)}: reading data from the Hub needs the package datasets. Run pip install datasets,"
                " or name a local file."
            ) from None
        hub, config, split, revision = task.data.hub, task.data.config, task.data.split, task.data.revision
        try:
            dataset = datasets.load_dataset(hub, config, split=split, revision=revision)
        except Exception as error:  # a data set's reader may raise any kind
            raise DataError(f"{suite.where(task)}: {hub} can't be read: {error}") from error
        return dataset, suite.source.parent, str(dataset._fingerprint)
    path = suite.path(task.data)
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise DataError(f"{suite.where(task)}: {path} has an unknown ending. Use one of {', '.join(_READERS)}.")
    try:
        rows = read(_text(suite, task, path))
    except (ValueError, RecursionError, csv.Error) as error:
        raise DataError(f"{suite.where(task)}: {path} can't be read: {error}.") from None
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{suite.where(task)}: {path} must contain a mapping of columns to values for each example.")
    return rows, path.parent, file_sha256(path)


def _text(suite: Suite, task: AnyTask, path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")  # spreadsheet exports begin with a byte order mark
    except UnicodeDecodeError as error:
        raise DataError(f"{suite.where(task)}: {path} isn't UTF-8 text ({error.reason}).") from None
    except OSError as error:
        raise DataError(f"{suite.where(task)}: {path} can't be read: {error.strerror}.") from None


def _json_lines(text: str) -> list[Any]:
    # Not splitlines(), which also splits at characters that JSON allows within strings, such as U+2028.
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _table(text: str, delimiter: str) -> list[Any]:
    lines = text.splitlines(keepends=True)  # a quoted value may span lines
    return list(csv.DictReader(lines, delimiter=delimiter, strict=True))


_READERS: Mapping[str, Callable[[str], list[Any]]] = {
    ".jsonl": _json_lines,
    ".json": json.loads,
    ".csv": lambda text: _table(text, ","),
    ".tsv": lambda text: _table(text, "\t"),
}


@dataclass(frozen=True)
class _Inputs(Sequence[tuple[Any, ...]]):
    """Chosen rows of a data set, each read when it is used: a task's decoded images don't all fit in memory."""

    rows: Any
    columns: Sequence[str]
    chosen: Sequence[int]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: Any) -> Any:
        row = self.rows[self.chosen[i]]
        return tuple(row[column] for column in self.columns)


def file_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def image(task: Labelled, examples: Examples, value: Any) -> Any:
    """Read an image as RGB with PIL, from a path or an image of `datasets`.

    Raises:
        DataError: Pillow isn't installed, or the file can't be read.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise DataError(f"'{task.name}': reading images needs Pillow. Run pip install pillow") from None
    if isinstance(value, Image.Image):
        return value.convert("RGB")
    try:
        with Image.open(examples.folder / str(value)) as opened:
            return opened.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"'{task.name}': the image {value} can't be read: {error}.") from None
