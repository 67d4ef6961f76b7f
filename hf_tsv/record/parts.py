"""The parts that records are made of."""

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

LARGEST_COUNT = 2**63 - 1  # so that no number of a stranger's file is too large to be printed or divided


class Part(BaseModel):
    """Base of everything in a record: immutable, without unknown fields, without converting values."""

    # Infinity and NaN are written as Python's json writes them: an infinite perplexity has to stay one.
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", ser_json_inf_nan="constants")


def _inside(file: str) -> str:
    """A path that stays in the folder it is joined to, on any operating system."""
    windows = PureWindowsPath(file)
    # A backslash is part of a name on POSIX, and a slash separates on both.
    parts = {*PurePosixPath(file).parts, *windows.parts}
    if not file or "\0" in file or windows.drive or windows.root or ".." in parts:
        raise PydanticCustomError("path", "expected a path inside the output folder")
    return file


def _one_component(name: str) -> str:
    """A name without any separator, on any operating system: Windows takes both kinds."""
    parts = PureWindowsPath(_inside(name)).parts
    if len(parts) != 1:
        raise PydanticCustomError("task", "expected a name that a folder can have")
    return name


def _integer_or_dense(value: object, validate: ValidatorFunctionWrapHandler) -> int | str:
    """Pydantic would report a wrong member of a union once for each of its types."""
    try:
        rank: int | str = validate(value)
    except ValidationError:
        raise PydanticCustomError("rank", "expected a whole number or 'dense'") from None
    return rank


FilePath = Annotated[str, AfterValidator(_inside)]
TaskName = Annotated[str, AfterValidator(_one_component)]  # of a task that has a folder of its own
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Rank = Annotated[Count | Literal["dense"], WrapValidator(_integer_or_dense)]  # dense: stored whole, not as factors


class Versions(Part):
    """What the bits of an output depend on besides recipe and sources, and the version of Python.

    Attributes:
        hf_tsv: Version of this package.
        numerics: Counts up whenever this package gives other bits for the same inputs.
        torch: Version of torch.
        python: Version of Python.
        processor: Where methods computed: `CPU ...` or `GPU ...`.
    """

    hf_tsv: str
    numerics: str
    torch: str
    python: str
    processor: str


class Terms(Part):
    """What a model or adapter says about itself.

    Attributes:
        license: The Hub's word for its licence, such as `apache-2.0` or `other`.
        license_name: The licence's name when it is `other`.
        license_link: Where the licence can be read.
        language: The languages it is for.
        datasets: The datasets it was trained on.
        private: Whether only its owners see it. None where that isn't known, because the run was offline.
        gated: Whether one has to ask for access. None likewise.
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
        """How people call its licence; empty where it names none."""
        return self.license_name or self.license or ""

    @property
    def may_be_private(self) -> bool:
        """Whether only its owners see it, as far as that is known."""
        return self.private is not False  # None, after an offline run, may mean either


class SourceEntry(Part):
    """One model that an output was made from.

    Attributes:
        role: Whether it is the base model or a fine-tune.
        task: The fine-tune's task; None for the base.
        model: A Hub id, or the path of a local folder.
        revision: The commit on the Hub; None for a local folder.
        fingerprint: A value that changes when the files of a local folder do; None on the Hub.
        adapter: The adapter on top of the model, `ID@COMMIT` or a folder.
        terms: What the model, and then the adapter, say about themselves; empty if they weren't read.
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
    """What was done with one tensor of a merged model.

    Attributes:
        kind: What it is: `linear`, `embedding`, `norm`, ...
        shape: Its shape in the output.
        dtype: Its dtype in the output, as safetensors names it.
        method: The method that merged it; `base` for a tensor that was copied.
        sha256: Hash of its bytes in the output.
        seconds: How long it took.
        why: Why it was not merged; empty if it was, or if no task changed it.
        unchanged: Whether no task changed it, so that it is the base's.
        parameters: The method's parameters.
        notes: Facts that the method reports, such as the rank and energy that TSV-M kept for each task.
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
    """A tensor of a restored checkpoint. Attributes: `sha256` of its bytes."""

    sha256: Sha256


class VerifiedReport(Part):
    """How an adapter as PEFT reads it compares with the intended change.

    Attributes:
        tensors: How many tensors were compared.
        largest_error: The largest relative error of a tensor.
        logits_error: The largest error of the logits, where the model was run.
    """

    tensors: Count
    largest_error: float
    logits_error: float | None


class AdapterReport(Part):
    """One adapter.

    Attributes:
        bytes: Size of its weights.
        tensors: How many tensors of the model it changes.
        left_out: The changed tensors that it lacks, each with the reason.
        in_sidecar: The tensors that PEFT can't load, in a file beside it.
        left_out_share: Share of the whole squared change that it lacks.
        energy: Share of the task matrices' squared singular values that the chosen triplets hold.
        errors: Relative error of each task matrix.
        ranks: The rank that it holds of each tensor, or `dense` for the whole tensor.
        verified: The comparison with what PEFT reads; None until it was made.
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
        file: Where it lies.
        bytes: Its size.
        own: Share of the masked weights that are the task's own.
        factor: What the merged change is multiplied by to give the task's (EMR); 1 for other masks.
    """

    file: FilePath
    bytes: Count
    own: float
    factor: float


class MaskUse(Part):
    """How many tasks use the weights that any of them changed, as shares.

    Attributes:
        catastrophic: Used by no task.
        selfish: Used by one.
        shared: Used by several.
    """

    catastrophic: float
    selfish: float
    shared: float


class Masks(Part):
    """The masks beside a merged model. Attributes: `tasks`, a mask each; `weights`, how they overlap."""

    tasks: dict[TaskName, MaskReport]
    weights: MaskUse


class TaskPart(Part):
    """Tensors that only one task has, such as its head. Attributes: the `file`, and the `tensors` in it."""

    file: FilePath
    tensors: tuple[str, ...]


class MethodEntry(Part):
    """A method that was used. Attributes: `paper`, the address of its source; empty if it has none."""

    paper: str


class Arithmetic(Part):
    """How tensors were computed.

    Attributes:
        dtype: Dtype of intermediate results.
        svd: The kind of singular value decomposition.
    """

    dtype: str
    svd: str


class Traffic(Part):
    """Bytes of weights. Attributes: how many were `read` and `written`."""

    read: Count
    written: Count


class VocabularyEntry(Part):
    """The output's vocabulary, where the models' differ.

    Attributes:
        source: `base`, `union`, or a task.
        tokens: How many tokens it has.
        new: How many of them the base lacks.
        rows: Rows of each tensor that has one a token.
    """

    source: str
    tokens: Count
    new: Count
    rows: dict[str, Count]
