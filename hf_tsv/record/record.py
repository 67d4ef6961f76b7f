"""The record of a run, `hf_tsv.json`: sources and output, tensor by tensor. Cards and reports read nothing else."""

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

FORMAT = 2  # repeated in `_Common.format`, because a Literal can't contain a name


@dataclass(frozen=True)
class PushedTo:
    """A repository that an output was pushed to. Attributes: the `repo_id`, and the `url` of the commit."""

    repo_id: str
    url: str


class _Common(Part):
    """The fields that all records have in common.

    Attributes:
        format: Version of the record's format.
        versions: The versions that the output's bits depend on.
        sources: The models, the base first.
        checksums: SHA-256 of every file without a checksum per tensor, except cards and the record itself.
    """

    format: Literal[2]
    versions: Versions
    sources: tuple[SourceEntry, ...] = Field(min_length=1)
    checksums: dict[FilePath, Sha256] = Field(default_factory=dict)

    # A private attribute isn't a field, so the repositories that one call pushed to are not written into the file.
    _pushed: tuple[PushedTo, ...] = PrivateAttr(default=())

    @property
    def pushed(self) -> tuple[PushedTo, ...]:
        """The repositories pushed to by the call that returned this record; empty if it was read from a file."""
        return self._pushed

    # `model_copy` doesn't check its arguments, so these methods fix the fields that can be changed, and their types.

    def with_pushed(self, pushed: Sequence[PushedTo]) -> Self:
        """Return a copy of the record with the repositories that it was pushed to."""
        record = self.model_copy()  # a frozen model's private attributes can still be set
        record._pushed = tuple(pushed)
        return record

    def with_checksums(self, checksums: Mapping[str, str]) -> Self:
        """Return a copy of the record with the checksums of the files beside the weights."""
        return self.model_copy(update={"checksums": dict(checksums)})


class _Made(_Common):
    """The fields that records of merges and compressions have in common.

    Attributes:
        method: The recipe's method.
        arithmetic: The settings of the arithmetic.
        seconds: Wall time in seconds.
        warnings: The plan's warnings.
        adapters: The adapters, by task and profile; on the merged model if one was written, else on the base.
        evaluation: The results of evaluating the output.
    """

    method: str
    arithmetic: Arithmetic
    seconds: float
    warnings: tuple[str, ...] = ()
    adapters: AdapterReports = Field(default_factory=dict)
    evaluation: Evaluation | None = None

    def with_evaluation(self, evaluation: Evaluation) -> Self:
        """Return a copy of the record with the results of an evaluation."""
        return self.model_copy(update={"evaluation": evaluation})


class MergeRecord(_Made):
    """The record of a merged model, maybe with adapters, masks and parts of single tasks beside it.

    Attributes:
        methods: The methods that merged tensors.
        bytes: Bytes of weights read and written.
        vocabulary: The output's vocabulary if the models' differ, else None.
        files: Paths of the weight files.
        task_parts: The tensors that only one task has, by task.
        masks: The tasks' masks on the merged change.
        tensors: The record of each tensor, by name.
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
        checkpoint_bytes: Size of each task's checkpoint in bytes.
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
        task: Name of the task.
        files: Paths of the weight files.
        tensors: The checksum of each tensor, by name.
    """

    kind: Literal["restored"]
    task: str
    files: tuple[FilePath, ...]
    tensors: dict[str, TensorSum]


Record = Annotated[MergeRecord | AdaptersRecord | RestoredRecord, Field(discriminator="kind")]
