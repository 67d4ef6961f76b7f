"""The record of a run, `hf_tsv.json`: what was made of what, tensor by tensor. Cards and reports read nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from hf_tsv.record.evaluation import Evaluation
from hf_tsv.record.parts import (
    AdapterReports,
    Arithmetic,
    Count,
    FilePath,
    Masks,
    MethodEntry,
    Part,
    Sha256,
    SourceEntry,
    TaskName,
    TaskPart,
    TensorEntry,
    TensorSum,
    Traffic,
    Versions,
    VocabularyEntry,
)

FORMAT = 2  # repeated in `_Common.format`, because a Literal can't take a name


@dataclass(frozen=True)
class PushedTo:
    """A repository that an output was pushed to. Attributes: its `repo_id`; the `url` of the commit."""

    repo_id: str
    url: str


class _Common(Part):
    """What all records have in common.

    Attributes:
        format: Version of the record's format.
        versions: Versions of what the bits depend on.
        sources: The models, the base first.
        checksums: SHA-256 of every file whose tensors have none of their own, but for cards and the record itself.
    """

    format: Literal[2]
    versions: Versions
    sources: tuple[SourceEntry, ...] = Field(min_length=1)
    checksums: dict[FilePath, Sha256] = Field(default_factory=dict)

    # A private attribute is no field: what one call pushed is not written into the file.
    _pushed: tuple[PushedTo, ...] = PrivateAttr(default=())

    @property
    def pushed(self) -> tuple[PushedTo, ...]:
        """Where the call that returned this record has pushed the output; empty in a record that was read."""
        return self._pushed

    # `model_copy` doesn't check what it is given, so these say what may be changed, and to what.

    def with_pushed(self, pushed: Sequence[PushedTo]) -> Self:
        """The same record, saying where it was pushed."""
        record = self.model_copy()  # a frozen model's private attributes can still be set
        record._pushed = tuple(pushed)
        return record

    def with_checksums(self, checksums: Mapping[str, str]) -> Self:
        """The same record with the checksums of the files that lie beside the weights."""
        return self.model_copy(update={"checksums": dict(checksums)})


class _Made(_Common):
    """What the records of merges and compressions have in common.

    Attributes:
        method: The recipe's method.
        arithmetic: How tensors were computed.
        seconds: Wall time.
        warnings: What the plan warned of.
        adapters: The adapters, by task and profile. On the merged model, where one was written; else on the base.
        evaluation: The results of evaluating the output.
    """

    method: str
    arithmetic: Arithmetic
    seconds: float
    warnings: tuple[str, ...] = ()
    adapters: AdapterReports = Field(default_factory=dict)
    evaluation: Evaluation | None = None

    def with_evaluation(self, evaluation: Evaluation) -> Self:
        """The same record with the results of an evaluation."""
        return self.model_copy(update={"evaluation": evaluation})


class MergeRecord(_Made):
    """The record of a merged model, maybe with adapters, masks and parts of single tasks beside it.

    Attributes:
        methods: The methods that merged tensors.
        bytes: Weights read and written.
        vocabulary: The output's vocabulary, where the models' differ.
        files: The weight files.
        task_parts: The tensors that only one task has, by task.
        masks: The tasks' masks on the merged change.
        tensors: What was done with each tensor.
    """

    kind: Literal["merge"]
    methods: dict[str, MethodEntry]
    bytes: Traffic
    vocabulary: VocabularyEntry | None = None
    files: tuple[FilePath, ...]
    task_parts: dict[str, TaskPart] = Field(default_factory=dict)
    masks: Masks | None = None
    tensors: dict[str, TensorEntry]


class AdaptersRecord(_Made):
    """The record of a compression, or of a merge as one adapter.

    Attributes:
        checkpoint_bytes: Size of each task's checkpoint.
    """

    kind: Literal["adapters"]
    checkpoint_bytes: dict[TaskName, Annotated[Count, Field(gt=0)]]

    @model_validator(mode="after")
    def _tasks_have_sizes(self) -> Self:
        # Readers compare an adapter with its checkpoint, task by task, without checking this again.
        if not self.adapters or self.adapters.keys() != self.checkpoint_bytes.keys():
            raise PydanticCustomError("tasks", "expected adapters and checkpoint_bytes to name the same tasks")
        return self


class RestoredRecord(_Common):
    """The record of one task's restored checkpoint.

    Attributes:
        task: The task.
        files: The weight files.
        tensors: A checksum for each tensor.
    """

    kind: Literal["restored"]
    task: str
    files: tuple[FilePath, ...]
    tensors: dict[str, TensorSum]


Record = Annotated[MergeRecord | AdaptersRecord | RestoredRecord, Field(discriminator="kind")]
