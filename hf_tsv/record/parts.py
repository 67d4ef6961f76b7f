"""The parts of records."""

from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

LARGEST_COUNT = 2**63 - 1  # a stranger's larger number might be too large to print or divide


class Part(BaseModel):
    """Base of all models in a record: immutable, without unknown fields, without converting values."""

    # Infinity and NaN are written as Python's json writes them: an infinite perplexity must stay infinite.
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", ser_json_inf_nan="constants")


def _inside(file: str) -> str:
    """Check that a path stays in the folder it is joined to, on any operating system, and return it."""
    windows = PureWindowsPath(file)
    # A backslash is part of a name on POSIX, and a slash separates on both.
    parts = {*PurePosixPath(file).parts, *windows.parts}
    if not file or "\0" in file or windows.drive or windows.root or ".." in parts:
        raise PydanticCustomError("path", "expected a path inside the output folder")
    return file


def _one_component(name: str) -> str:
    """Check that a name has no separator on any operating system (Windows has two), and return it."""
    parts = PureWindowsPath(_inside(name)).parts
    if len(parts) != 1:
        raise PydanticCustomError("task", "expected a name that a folder can have")
    return name


def _integer_or_dense(value: object, validate: ValidatorFunctionWrapHandler) -> int | str:
    """Check an integer or `dense` with one error. Pydantic alone would report one per type of the union."""
    try:
        rank: int | str = validate(value)
    except ValidationError:
        raise PydanticCustomError("rank", "expected a whole number or 'dense'") from None
    return rank


FilePath = Annotated[str, AfterValidator(_inside)]
TaskName = Annotated[str, AfterValidator(_one_component)]  # used as the name of the task's folder
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Rank = Annotated[Count | Literal["dense"], WrapValidator(_integer_or_dense)]  # dense: stored whole, not as factors


class Versions(Part):
    """The versions that an output's bits depend on besides recipe and sources, and the version of Python.

    Attributes:
        hf_tsv: Version of this package.
        numerics: Number that is increased whenever this package gives other bits for the same inputs.
        torch: Version of torch.
        python: Version of Python.
        processor: The processor that computed: `CPU ...` or `GPU ...`.
    """

    hf_tsv: str
    numerics: str
    torch: str
    python: str
    processor: str


class Terms(Part):
    """A model's or adapter's statements about itself: licence, languages, datasets and access.

    Attributes:
        license: The Hub's identifier of the licence, such as `apache-2.0` or `other`.
        license_name: Name of the licence if `license` is `other`.
        license_link: Link to the text of the licence.
        language: Languages of the model.
        datasets: Datasets that the model was trained on.
        private: True if only its owners can see the model; None if unknown, because the run was offline.
        gated: True if access has to be requested; None if unknown, because the run was offline.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    private: bool | None = False
    gated: bool | None = False

    @property
    def license_label(self) -> str:
        """The licence's name for people; empty if there is none."""
        return self.license_name or self.license or ""

    @property
    def may_be_private(self) -> bool:
        """True if only its owners can see the model, or if that isn't known."""
        return self.private is not False  # None (after an offline run) means unknown


class SourceEntry(Part):
    """One of the models that an output was made from.

    Attributes:
        role: Role of the model: `base`, or `task` for a fine-tune.
        task: The fine-tune's task; None for the base.
        model: A Hub id, or the path of a local folder.
        revision: The model's commit on the Hub; None for a local folder.
        fingerprint: A value that changes when the files of a local folder do; None on the Hub.
        adapter: The adapter on top of the model, `ID@COMMIT` or a folder.
        terms: The terms of the model, then of the adapter; empty if they weren't read.
    """

    role: Literal["base", "task"]
    task: str | None
    model: str
    revision: str | None
    fingerprint: str | None
    adapter: str | None = None
    terms: tuple[Terms, ...] = ()

    @model_validator(mode="after")
    def _terms_fit(self) -> "SourceEntry":
        expected = 2 if self.adapter else 1
        if self.terms and len(self.terms) != expected:
            raise PydanticCustomError("terms", "expected one entry in terms for the model and one for its adapter")
        return self


class TensorEntry(Part):
    """The record of one tensor of a merged model.

    Attributes:
        kind: The tensor's kind: `linear`, `embedding`, `norm`, ...
        shape: Shape in the output.
        dtype: Dtype in the output, as safetensors names it.
        method: The method that merged the tensor; `base` for a copied tensor.
        sha256: SHA-256 of the tensor's bytes in the output.
        seconds: Time taken by the tensor, in seconds.
        why: Reason why the tensor wasn't merged; empty if it was, or if no task changed it.
        unchanged: True if no task changed the tensor, so that it is the base's.
        parameters: The method's parameters.
        notes: Facts reported by the method, such as the rank and energy that TSV-M kept for each task.
    """

    kind: str
    shape: tuple[Count, ...]
    dtype: str
    method: str
    sha256: Sha256
    seconds: float = 0.0
    why: str = ""
    unchanged: bool = False
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    notes: dict[str, JsonValue] = Field(default_factory=dict)


class TensorSum(Part):
    """A tensor of a restored checkpoint. Attributes: `sha256`, the SHA-256 of the tensor's bytes."""

    sha256: Sha256


class VerifiedReport(Part):
    """The comparison of an adapter, as PEFT reads it, with the intended change.

    Attributes:
        tensors: Number of compared tensors.
        largest_error: The largest relative error of a tensor.
        logits_error: The largest error of the logits; None if the model wasn't run.
    """

    tensors: Count
    largest_error: float
    logits_error: float | None


class AdapterReport(Part):
    """The record of one adapter.

    Attributes:
        bytes: Size of the adapter's weights in bytes.
        tensors: Number of the model's tensors that the adapter changes.
        left_out: The changed tensors that the adapter lacks, each with the reason.
        in_sidecar: The tensors that PEFT can't load, stored in a file beside the adapter.
        left_out_share: Share of the whole squared change that the adapter lacks.
        energy: Share of the task matrices' squared singular values in the chosen triplets.
        errors: Relative error of each task matrix.
        ranks: The rank stored for each tensor, or `dense` for the whole tensor.
        verified: The comparison of the adapter, as PEFT reads it, with the intended change; None until it is made.
    """

    bytes: Count
    tensors: Count
    left_out: dict[str, str]
    in_sidecar: tuple[str, ...]
    left_out_share: float
    energy: float
    errors: dict[str, float]
    ranks: dict[str, Rank]
    verified: VerifiedReport | None = None


AdapterReports = dict[TaskName, dict[TaskName, AdapterReport]]  # by task and profile


class MaskReport(Part):
    """One task's mask.

    Attributes:
        file: Path of the mask's file.
        bytes: Size of the file in bytes.
        own: Share of the masked weights that are the task's own.
        factor: Factor by which the merged change is multiplied to give the task's (EMR); 1 for other masks.
    """

    file: FilePath
    bytes: Count
    own: float
    factor: float


class MaskUse(Part):
    """Shares of the weights that any task changed, by the number of tasks that use them.

    Attributes:
        catastrophic: Share used by no task.
        selfish: Share used by one task.
        shared: Share used by several tasks.
    """

    catastrophic: float
    selfish: float
    shared: float


class Masks(Part):
    """The masks beside a merged model. Attributes: `tasks`, the mask of each task; `weights`, the masks' overlap."""

    tasks: dict[TaskName, MaskReport]
    weights: MaskUse


class TaskPart(Part):
    """Tensors that only one task has, such as its head. Attributes: the `file`, and its `tensors`."""

    file: FilePath
    tensors: tuple[str, ...]


class MethodEntry(Part):
    """A method that was used. Attributes: `paper`, the address of the method's source; empty if it has none."""

    paper: str


class Arithmetic(Part):
    """The settings of the arithmetic.

    Attributes:
        dtype: Dtype of intermediate results.
        svd: The kind of singular value decomposition.
    """

    dtype: str
    svd: str


class Traffic(Part):
    """Bytes of weights. Attributes: the numbers of bytes `read` and `written`."""

    read: Count
    written: Count


class VocabularyEntry(Part):
    """The output's vocabulary, if the models' differ.

    Attributes:
        source: Source of the vocabulary: `base`, `union`, or a task.
        tokens: Number of tokens.
        new: Number of tokens that the base lacks.
        rows: Number of rows of each tensor with one row per token.
    """

    source: str
    tokens: Count
    new: Count
    rows: dict[str, Count]
