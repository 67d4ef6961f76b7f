"""A suite: the tasks that models are scored on, in YAML.

The reader is as strict as the recipe's: it reports all mistakes at once, with their lines.
"""

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
    """A mapping in the suite file."""

    # strict: "3" is not a number, and 1 is not a boolean; extra="forbid": a misspelt key is an error, not ignored.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class HubData(Keys):
    """`{hub: org/name, split: test}`: a data set on the Hub, read by the package `datasets`."""

    hub: str
    config: str | None = None
    split: str = "test"
    revision: str | None = None


# Distinguished by type, so that an error names the keys of the intended one.
Data = Annotated[
    Annotated[HubData, Tag("<mapping>")] | Annotated[str, Tag("<text>")],
    Discriminator(lambda value: "<mapping>" if isinstance(value, dict | HubData) else "<text>"),
]


class Task(Keys):
    """The keys of every task.

    Attributes:
        name: The task's name in the results.
        finetuned: The recipe's task whose fine-tuned model and adapter are scored; by default `name`.
        limit: The number of examples, drawn by the seed; for perplexity, of leading tokens. By default all are used.
    """

    metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = True

    name: str
    finetuned: str | None = None
    limit: Count | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that a score depends on."""
        # Names don't change a score: a renamed task isn't scored again.
        return self.model_dump(exclude={"name", "finetuned"})


class Classification(Task):
    """Accuracy on labelled examples.

    Attributes:
        data: A .jsonl, .json, .csv or .tsv file, or a data set on the Hub.
        label: The column that holds the labels: names from the model's configuration or the head, or numbers.
        head: A safetensors file with `weight` (C, d) and optionally `bias` (C,), applied to the embeddings of a
            model without a head. Its metadata may hold `labels`, a JSON list of names. By default the model's own
            head is used.
        pooling: How the embedding is computed: the `mean` of the last hidden states, the first of them (`cls`), or
            the output of the model's pooler (`pooled`).
        normalize: True if embeddings are scaled to length 1.
    """

    metric = "accuracy"

    data: Data
    label: str = "label"  # a column's name
    head: str | None = None
    pooling: Literal["mean", "cls", "pooled"] = "mean"
    normalize: bool = True


class TextClassification(Classification):
    """Accuracy on texts: `text` names their column, or two for pairs; `max_length` is in tokens."""

    kind: Literal["text-classification"]
    text: str | Annotated[list[str], Field(min_length=1, max_length=2)] = "text"
    max_length: Count | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.text,) if isinstance(self.text, str) else tuple(self.text)


class ImageClassification(Classification):
    """Accuracy on images: `image` names the column of their paths, relative to the data file's folder."""

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
        seed: The seed that draws the examples of a task with a `limit`.
        batch_size: The number of examples in one batch.
        dtype: The dtype that models compute in; `auto` is the one they are stored in.
    """

    seed: int = 0
    batch_size: Count = 32
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    tasks: Annotated[list[Annotated[AnyTask, Field(discriminator="kind")]], Field(min_length=1)]


@dataclass(frozen=True)
class Suite:
    """A suite and its file.

    Attributes:
        file: The file's content.
        source: The file's path.
        sha256: The SHA-256 of the file's text.
        lines: The line number of each task.
    """

    file: SuiteFile
    source: Path
    sha256: str
    lines: tuple[int, ...]

    def where(self, task: AnyTask) -> str:
        """Return a task's place, FILE:LINE, for messages."""
        return f"{self.source}:{self.lines[self.file.tasks.index(task)]}"

    def path(self, written: str) -> Path:
        """Resolve a path written in the suite, relative to the suite's folder."""
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
    # pydantic puts the tags of unions into paths; the file has no such level.
    path = tuple(step for step in error["loc"] if step not in {*KINDS, "<mapping>", "<text>"})
    place = " in a task" if path[:1] == ("tasks",) and len(path) > 2 else ""
    if error["type"] == "extra_forbidden":
        # Show the keys of the level that contains the unknown key.
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
        # For a task, a member of a union, pydantic has another type for the same mistake.
        problem = wrong_value(f"'{_label(path)}'", [{**error, "type": "model_type"}])
    else:
        problem = wrong_value(f"'{_label(path)}'", [error])
    document.tell(path, problem)


def _label(path: Sequence[int | str]) -> str:
    """Return the last key of a path, which the numbers of a list's items may follow."""
    return next((str(step) for step in reversed(path) if isinstance(step, str)), "the suite")
