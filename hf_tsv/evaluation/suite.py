"""A suite: the tasks that models are scored on, in YAML. As strict as a recipe: all mistakes at once, with lines."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError
from pydantic_core import ErrorDetails

from hf_tsv.recipe import Document, did_you_mean, read_text, read_yaml, wrong_value

Count = Annotated[int, Field(ge=1)]


class Keys(BaseModel):
    """A level of the grammar."""

    # strict: "3" is no number, and 1 is no truth value; extra="forbid": a misspelt key is an error, not ignored.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class HubData(Keys):
    """`{hub: org/name, split: test}`: a data set on the Hub, read by the package `datasets`."""

    hub: str
    config: str | None = None
    split: str = "test"
    revision: str | None = None


# Told apart by their type, so that an error names the keys of the one that was meant.
Data = Annotated[
    Annotated[HubData, Tag("<mapping>")] | Annotated[str, Tag("<text>")],
    Discriminator(lambda value: "<mapping>" if isinstance(value, dict | HubData) else "<text>"),
]


class Task(Keys):
    """What every task has.

    Attributes:
        name: What the results call it.
        finetuned: The recipe's task whose fine-tuned model and adapter it is for; `name` unless given.
        limit: How many examples are used, drawn by the seed; for perplexity, how many leading tokens. All by default.
    """

    metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = True

    name: str
    finetuned: str | None = None
    limit: Count | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What a score depends on."""
        # Names don't change a score: a task that is renamed isn't scored again.
        return self.model_dump(exclude={"name", "finetuned"})


class Classification(Task):
    """Accuracy on labelled examples.

    Attributes:
        data: A .jsonl, .json, .csv or .tsv file, or a data set on the Hub.
        label: The column of the label: its name in the model's configuration or in the head, or its number.
        head: A safetensors file with `weight` (C, d) and optionally `bias` (C,), put on the embedding of a model
            without a head, and optionally, in its metadata, `labels`, a JSON list of names. By default the model's
            own head.
        pooling: What the embedding is: the `mean` of the last hidden states, their first (`cls`), or the model's
            pooler's output (`pooled`).
        normalize: Whether embeddings are scaled to length 1.
    """

    metric = "accuracy"

    data: Data
    label: str = "label"  # a column's name
    head: str | None = None
    pooling: Literal["mean", "cls", "pooled"] = "mean"
    normalize: bool = True


class TextClassification(Classification):
    """`text` names the text's column, or the two of a pair; `max_length` is in tokens."""

    kind: Literal["text-classification"]
    text: str | Annotated[list[str], Field(min_length=1, max_length=2)] = "text"
    max_length: Count | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.text,) if isinstance(self.text, str) else tuple(self.text)


class ImageClassification(Classification):
    """`image` names the column that holds the path of an image file, from the data file's folder."""

    kind: Literal["image-classification"]
    image: str = "image"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.image,)


class Perplexity(Task):
    """exp(mean negative log-likelihood) of a text file under a causal language model, `context` tokens at a time."""

    metric = "perplexity"
    higher_is_better = False

    kind: Literal["perplexity"]
    data: str
    context: Annotated[int, Field(ge=2)] = 512


class LmEval(Task):
    """A task of lm-evaluation-harness (`task`), for causal language models; `include` is a folder of task files."""

    metric = "lm-eval"

    kind: Literal["lm-eval"]
    task: str
    score: str = "acc"
    num_fewshot: Annotated[int, Field(ge=0)] = 0
    include: str | None = None


Labelled: TypeAlias = TextClassification | ImageClassification
AnyTask: TypeAlias = Labelled | Perplexity | LmEval
KINDS: Mapping[str, type[AnyTask]] = {
    "text-classification": TextClassification,
    "image-classification": ImageClassification,
    "perplexity": Perplexity,
    "lm-eval": LmEval,
}


class SuiteFile(Keys):
    """A whole suite.

    Attributes:
        seed: Draws the examples of a task with a `limit`.
        batch_size: Examples in one batch.
        dtype: The dtype that models compute in; `auto` is the one they are stored in.
    """

    seed: int = 0
    batch_size: Count = 32
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    tasks: Annotated[list[Annotated[AnyTask, Field(discriminator="kind")]], Field(min_length=1)]


@dataclass(frozen=True)
class Suite:
    """A suite, and where it lies.

    Attributes:
        source: Its file.
        sha256: The SHA-256 of its text.
        lines: The line of each task.
    """

    file: SuiteFile
    source: Path
    sha256: str
    lines: tuple[int, ...]

    def where(self, task: AnyTask) -> str:
        """A task's place as messages call it."""
        return f"{self.source}:{self.lines[self.file.tasks.index(task)]}"

    def path(self, written: str) -> Path:
        """A path in it, from the suite's own folder."""
        return self.source.parent / Path(written).expanduser()


def load_suite(path: str | Path) -> Suite:
    """Read a suite file.

    Raises:
        RecipeError: the file can't be read, or anything in it is wrong.
    """
    path = Path(path)
    text = read_text(path, "suite")
    document = read_yaml(text, str(path), keys="tasks", example="tasks: [...]")
    file: SuiteFile | None = None
    try:
        file = SuiteFile.model_validate(document.data)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            _tell(document, detail)
    names = [task.name for task in file.tasks] if file else []
    for i, name in enumerate(names):
        if name in names[:i]:
            document.tell(("tasks", i, "name"), f"the name '{name}' is taken already. Choose another.")
    document.raise_problems()
    assert file is not None  # else there was a problem
    lines = tuple(document.line(("tasks", i)) for i in range(len(file.tasks)))
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Suite(file, path, sha256, lines)


def _tell(document: Document, error: ErrorDetails) -> None:
    """Add a mistake that pydantic found to the document's problems, at its line."""
    # pydantic puts the tags of unions into paths, where the file has nothing.
    path = tuple(step for step in error["loc"] if step not in {*KINDS, "<mapping>", "<text>"})
    place = " in a task" if path[:1] == ("tasks",) and len(path) > 2 else ""
    if error["type"] == "extra_forbidden":
        # The keys of the level that the unknown one is in.
        level: type[Keys] = next((KINDS[str(step)] for step in error["loc"] if step in KINDS), SuiteFile)
        if "<mapping>" in error["loc"]:
            level = HubData
        known = list(level.model_fields)
        hint = did_you_mean(str(path[-1]), known)
        problem = f"unknown key '{path[-1]}'{place}.{hint} Known keys: {', '.join(known)}."
    elif error["type"] == "missing":
        problem = f"'{path[-1]}' is missing{place}."
    elif error["type"] == "union_tag_not_found" and path[:1] == ("tasks",):
        problem = f"'kind' is missing in a task. Write one of: {', '.join(KINDS)}."
    elif error["type"] == "union_tag_invalid" and path[:1] == ("tasks",):
        given = str(error["ctx"]["tag"])
        path = (*path, "kind")
        hint = did_you_mean(given, KINDS.keys())
        problem = f"unknown kind '{given}'.{hint} Known kinds: {', '.join(KINDS)}."
    elif error["type"] in ("model_type", "model_attributes_type"):
        # For a task, a member of a union, pydantic has a type of its own for the same mistake.
        problem = wrong_value(f"'{_label(path)}'", [{**error, "type": "model_type"}])
    else:
        problem = wrong_value(f"'{_label(path)}'", [error])
    document.tell(path, problem)


def _label(path: Sequence[int | str]) -> str:
    """The last key of a path, after which there may be numbers of a list's items."""
    return next((str(step) for step in reversed(path) if isinstance(step, str)), "the suite")
