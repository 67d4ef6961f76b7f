"""The recipe's grammar: one class a level, one field a key. A new key is a new field.

Only shapes are told here. Every key of a recipe may be missing, and null counts as missing: which ones are needed
depends on the method, and is told where the meaning is read.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    create_model,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from hf_tsv.checkpoints.modules import Kind
from hf_tsv.linalg import SvdMode
from hf_tsv.linalg.ranks import RULES
from hf_tsv.methods import METHODS
from hf_tsv.recipe._messages import did_you_mean, wrong_value
from hf_tsv.recipe._settings import ABSENT, by_name
from hf_tsv.recipe._yaml import Document, Path

DType = Literal["float32", "float64", "bfloat16", "float16"]


class Keys(BaseModel):
    """A level of the grammar.

    Attributes:
        place: Where its keys stand, for messages; nothing for the recipe itself.
        refused: Keys of mergekit's that aren't taken here, each with the reason and the way out.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    place: ClassVar[str] = ""
    refused: ClassVar[Mapping[str, str]] = {}


def _scalar(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("scalar_type", "{expected}", {"expected": "a finite number"})
    if not isinstance(value, bool | int | float | str | None):
        raise PydanticCustomError("scalar_type", "{expected}", {"expected": "a number, a word, true or false"})
    return value


def _setting_shape(value: Any) -> str:
    if not isinstance(value, list):
        return "<scalar>"
    return "<filters>" if any(isinstance(item, dict) for item in value) else "<gradient>"


# A value's shape alone tells which member of a union it is meant to be, so that only that one's mistakes are told.
_TAGS = {"<mapping>", "<text>", "<scalar>", "<gradient>", "<filters>"}
_TEXT_OR_MAPPING = Discriminator(lambda value: "<mapping>" if isinstance(value, dict) else "<text>")
_T = TypeVar("_T")
TextOr = Annotated[Annotated[_T, Tag("<mapping>")] | Annotated[str, Tag("<text>")], _TEXT_OR_MAPPING]
Scalar = Annotated[Any, BeforeValidator(_scalar)]
Gradient = Annotated[list[Scalar], Field(min_length=1)]


class KindFilter(Keys):
    """`{kind: embedding}`"""

    place = " in a filter"

    kind: Kind


def _name_filter(text: str) -> str:
    by_name(text, line=0)
    return text


FilterKey = Annotated[
    Annotated[KindFilter, Tag("<mapping>")] | Annotated[str, AfterValidator(_name_filter), Tag("<text>")],
    _TEXT_OR_MAPPING,
]


class Location(Keys):
    """`{path: org/name, revision: main}`"""

    place = " in a model's location"

    path: str
    revision: str | None = None

    @property
    def text(self) -> str:
        return self.path if self.revision is None else f"{self.path}@{self.revision}"


class Reference(Keys):
    """`{model: {path: org/name, revision: main}, lora: {path: org/adapter}}`"""

    place = " in a model"
    refused = {"override_architecture": "tensors go by their names, whatever the architecture. Leave it out."}

    model: TextOr[Location]
    lora: TextOr[Location] | None = None

    @property
    def text(self) -> str:
        """The same reference in one line."""
        return "+".join(
            part.text if isinstance(part, Location) else part for part in (self.model, self.lora) if part is not None
        )


class Choice(Keys):
    """`{filter: q_proj, value: 0.5}`"""

    place = " in a list of filter and value"

    filter: FilterKey | None = None
    value: Annotated[
        Annotated[Scalar, Tag("<scalar>")] | Annotated[Gradient, Tag("<gradient>")],
        Discriminator(lambda value: "<gradient>" if isinstance(value, list) else "<scalar>"),
    ] = ABSENT


Setting = Annotated[
    Annotated[Scalar, Tag("<scalar>")]
    | Annotated[Gradient, Tag("<gradient>")]
    | Annotated[list[Choice], Tag("<filters>")],
    Discriminator(_setting_shape),
]


class ModelEntry(Keys):
    """One of `models`."""

    place = " in 'models'"
    refused = {
        "filter": "a model is merged as a whole. Choose tensors by 'overrides', or by filters on the model's weight.",
        "layer_range": "a model is merged as a whole. Treat layers differently by 'overrides' with filters.",
        "lora": "an adapter is written behind its base. Write model: BASE+ADAPTER.",
    }

    model: TextOr[Reference] | None = None
    name: str | None = None
    parameters: dict[str, Setting] | None = None


class Override(Keys):
    """One of `overrides`."""

    place = " in 'overrides'"

    filter: FilterKey | None = None
    merge_method: str | None = None
    parameters: dict[str, Setting] | None = None


class _Residuals(Keys):
    """`residuals: {budget: 5%}`: one rule for the ranks, as `tsv_c` takes it."""

    place = " in residuals"


if TYPE_CHECKING:
    Residuals = _Residuals
else:  # with a field for each rule there is
    rules = {word: (rule.value | None, None) for word, rule in RULES.items()}
    Residuals = create_model("Residuals", __base__=_Residuals, **rules)


class Adapters(Keys):
    """`adapters: {profiles: [faithful, serving], rank: 64}`"""

    place = " in adapters"

    profiles: Annotated[list[Literal["faithful", "serving"]], Field(min_length=1)] | None = None
    rank: Literal[8, 16, 32, 64, 128] | None = None
    factor_dtype: Literal["float32", "bfloat16", "float16"] | None = None


class TokenizerKeys(Keys):
    """`tokenizer: {source: union, pad_to_multiple_of: 64}`"""

    place = " in tokenizer"
    refused = {
        "tokens": "a token has the value that the models give it. Leave it out, or set rows in the merged model.",
    }

    source: TextOr[Reference] | None = None
    pad_to_multiple_of: Annotated[int, Field(ge=1)] | None = None


class RecipeFile(Keys):
    """A whole recipe."""

    refused = {
        "slices": "layers keep their places. List the models under 'models', and treat layers apart by 'overrides'.",
        "modules": "one recipe merges all parts of a model. Use 'models', and 'overrides' for single parts.",
    }

    merge_method: str | None = None
    base_model: TextOr[Reference] | None = None
    models: list[ModelEntry] | None = None
    parameters: dict[str, Setting] | None = None
    overrides: list[Override] | None = None
    dtype: DType | None = None
    out_dtype: DType | None = None
    tokenizer_source: TextOr[Reference] | None = None
    tokenizer: TokenizerKeys | None = None
    chat_template: str | None = None
    svd: SvdMode | None = None
    residuals: Residuals | None = None
    adapters: Adapters | None = None


def read_shape(document: Document) -> RecipeFile:
    """What a recipe says, less what isn't shaped as the grammar has it; that is noted in the document."""
    data = document.data
    while True:
        try:
            return RecipeFile.model_validate(data)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                data = _without(data, _tell(document, detail))


def _tell(document: Document, error: ErrorDetails) -> Path:
    """Note one of pydantic's errors; the path of what must be left out for it."""
    *above, last = error["loc"]
    if error["type"] == "extra_forbidden":
        key = (*_untagged(above), last)
        document.tell(key, _unknown_key(key))
        return key
    path = _untagged(error["loc"])
    if error["type"] == "missing":
        document.tell(path, f"'{last}' is missing{_level(path[:-1]).place}.")
    else:
        document.tell(path, wrong_value(_label(path), [error]) + _way_out(path, error))
    return _whole(path, error["loc"])


def _untagged(loc: Sequence[int | str]) -> Path:
    """A path as the file has it, from one that holds the tags of unions. A parameter may be called like a tag."""
    name_at = _parameters_at(loc) + 1
    return tuple(step for i, step in enumerate(loc) if step not in _TAGS or i == name_at)


def _parameters_at(path: Sequence[int | str]) -> int:
    """Where a path enters the parameters of the recipe (0) or of an entry (2); -2 if it doesn't."""
    return next((at for at in (0, 2) if list(path[at : at + 1]) == ["parameters"]), -2)


def _unknown_key(path: Path) -> str:
    level, key = _level(path[:-1]), str(path[-1])
    if key in level.refused:
        return f"'{key}' isn't taken{level.place}: {level.refused[key]}"
    if "parameters" in level.model_fields and key in _parameter_names():
        return f"'{key}' is a parameter, expected it under 'parameters'. Write parameters: {{{key}: ...}}."
    known = list(level.model_fields)
    return f"unknown key '{key}'{level.place}.{did_you_mean(key, known)} Known keys: {', '.join(known)}."


def _way_out(path: Path, error: ErrorDetails) -> str:
    if error["type"] != "model_type":
        return ""
    if path[:1] == ("models",) and isinstance(error["input"], str):
        return f" Write - model: {error['input']}."
    return f" Its keys: {', '.join(_level(path).model_fields)}."


def _parameter_names() -> set[str]:
    return {"weight"}.union(*(method.parameters.keys() | method.aliases.keys() for method in METHODS.values()))


def _level(path: Path) -> type[Keys]:
    """The grammar of the mapping at a path."""
    match path:
        case ("models", int()):
            return ModelEntry
        case ("overrides", int()):
            return Override
        case ("residuals",):
            return Residuals
        case ("adapters",):
            return Adapters
        case ("tokenizer",):
            return TokenizerKeys
        case ("base_model",) | ("tokenizer_source",) | ("tokenizer", "source") | ("models", int(), "model"):
            return Reference
        case (*_, "model" | "lora"):
            return Location
        case (*_, "filter"):
            return KindFilter
        case (*_, "parameters", str(), int()):
            return Choice
    return RecipeFile


def _label(path: Path) -> str:
    """What messages call the value at a path."""
    *_, last = path
    return f"'{last}'" if isinstance(last, str) else f"entry {last + 1} of '{path[-2]}'"


def _whole(path: Path, loc: Sequence[int | str]) -> Path:
    """The piece of a recipe that is of no use when the value at `path`, `loc` to pydantic, is wrong.

    That is a key of the recipe, of an entry or of a list of filter and value; of a gradient it is the whole.
    """
    setting = _parameters_at(path) + 2
    if setting:
        return path[: setting + 2] if list(loc[setting : setting + 1]) == ["<filters>"] else path[:setting]
    return path[:3] if len(path) > 1 and isinstance(path[1], int) else path[:1]


def _without(data: Any, path: Path) -> Any:
    """`data` less the value at `path`: a key is dropped, and an entry of a list becomes one that says nothing."""
    step, *rest = path
    if isinstance(data, list):
        return [(_without(item, tuple(rest)) if rest else {}) if i == step else item for i, item in enumerate(data)]
    if not rest or step not in data:
        return {key: value for key, value in data.items() if key != step}
    return {**data, step: _without(data[step], tuple(rest))}
