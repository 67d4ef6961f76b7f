"""The recipe's grammar: one class per level, one field per key. A new key is a new field.

Only shapes are checked here. Every key of a recipe may be missing, and null counts as missing: the required keys
depend on the method, and are checked when the meaning is read.
"""

import copy
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

from hf_tsv.checkpoints.dtypes import FactorWord, FloatWord
from hf_tsv.checkpoints.modules import Kind
from hf_tsv.linalg.ranks import RULES
from hf_tsv.lora.formats import FORMATS
from hf_tsv.methods import METHODS
from hf_tsv.recipe._document import Document, Path
from hf_tsv.recipe._messages import did_you_mean, wrong_value
from hf_tsv.recipe._settings import ABSENT, by_name


class Keys(BaseModel):
    """Base class of the grammar's levels.

    Attributes:
        place: Words for the level in messages; empty for the recipe itself.
        refused: mergekit's keys that this level refuses, each with the reason and the way out.
    """

    # Strict: "2" isn't read as a number, nor 1 as true, so that a value means what it looks like.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    place: ClassVar[str] = ""
    refused: ClassVar[Mapping[str, str]] = {}


def _scalar(value: Any) -> Any:
    """Return the value if it is a scalar, else raise. The method checks later which scalars its parameter takes."""
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("scalar_type", "{expected}", {"expected": "a finite number"})
    if not isinstance(value, bool | int | float | str | None):
        raise PydanticCustomError("scalar_type", "{expected}", {"expected": "a number, a word, true or false"})
    return value


# A value's shape alone selects the member of a union, so that only the mistakes by that member are reported.
# The tags are in the paths of pydantic's errors; the brackets distinguish them from a recipe's own words.
_TAGS = {"<mapping>", "<text>", "<scalar>", "<gradient>", "<filters>"}


def _text_or_mapping(value: Any) -> str:
    return "<mapping>" if isinstance(value, dict) else "<text>"


def _scalar_or_gradient(value: Any) -> str:
    return "<gradient>" if isinstance(value, list) else "<scalar>"


def _setting_shape(value: Any) -> str:
    """The tag of a parameter's value. A list with a mapping in it is one of filters, where numbers are mistakes."""
    if not isinstance(value, list):
        return "<scalar>"
    has_filters = any(isinstance(item, dict) for item in value)
    return "<filters>" if has_filters else "<gradient>"


_TEXT_OR_MAPPING = Discriminator(_text_or_mapping)
_T = TypeVar("_T")
TextOr = Annotated[Annotated[_T, Tag("<mapping>")] | Annotated[str, Tag("<text>")], _TEXT_OR_MAPPING]
Scalar = Annotated[Any, BeforeValidator(_scalar)]
Gradient = Annotated[list[Scalar], Field(min_length=1)]


class KindFilter(Keys):
    """A filter by kind: `{kind: embedding}`."""

    place = " in a filter"

    kind: Kind


def _name_filter(text: str) -> str:
    by_name(text, line=0)  # only for the error that it raises: the line isn't known here
    return text


FilterKey = Annotated[
    Annotated[KindFilter, Tag("<mapping>")] | Annotated[str, AfterValidator(_name_filter), Tag("<text>")],
    _TEXT_OR_MAPPING,
]


class Location(Keys):
    """A model's location: `{path: org/name, revision: main}`."""

    place = " in a model's location"

    path: str
    revision: str | None = None

    @property
    def text(self) -> str:
        return self.path if self.revision is None else f"{self.path}@{self.revision}"


def _in_one_line(location: Location | str) -> str:
    return location.text if isinstance(location, Location) else location


class Reference(Keys):
    """A reference to a model: `{model: {path: org/name, revision: main}, lora: {path: org/adapter}}`."""

    place = " in a model"
    refused = {"override_architecture": "tensors are matched by name, whatever the architecture. Leave it out."}

    model: TextOr[Location]
    lora: TextOr[Location] | None = None

    @property
    def text(self) -> str:
        """The same reference in one line."""
        model = _in_one_line(self.model)
        return model if self.lora is None else f"{model}+{_in_one_line(self.lora)}"


class Choice(Keys):
    """A parameter's value for the tensors that a filter chooses: `{filter: q_proj, value: 0.5}`."""

    place = " in a list of filter and value"

    filter: FilterKey | None = None
    value: Annotated[
        Annotated[Scalar, Tag("<scalar>")] | Annotated[Gradient, Tag("<gradient>")],
        Discriminator(_scalar_or_gradient),
    ] = ABSENT


Setting = Annotated[
    Annotated[Scalar, Tag("<scalar>")]
    | Annotated[Gradient, Tag("<gradient>")]
    | Annotated[list[Choice], Tag("<filters>")],
    Discriminator(_setting_shape),
]


class ModelEntry(Keys):
    """An entry of `models`."""

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
    """An entry of `overrides`."""

    place = " in 'overrides'"

    filter: FilterKey | None = None
    merge_method: str | None = None
    parameters: dict[str, Setting] | None = None


class RankRuleKeys(Keys):
    """One rule for ranks, in the form that `tsv_c` takes: a field for each rule of `hf_tsv.linalg.ranks.RULES`."""


if not TYPE_CHECKING:  # the fields come from the registry, which type checkers can't read
    _rules = {word: (rule.value | None, None) for word, rule in RULES.items()}
    RankRuleKeys = create_model("RankRuleKeys", __base__=RankRuleKeys, **_rules)


class Residuals(RankRuleKeys):
    """The rule for the ranks of residual adapters: `residuals: {budget: 5%}`."""

    place = " in residuals"


def _one_of(words: Sequence[str | int], value: Any) -> Any:
    """Return the value if it is one of those words; else raise the error that a Literal of them would raise."""
    if not isinstance(value, str | int) or value not in words:
        expected = " or ".join(repr(word) for word in words)
        raise PydanticCustomError("literal_error", "{expected}", {"expected": expected})
    return value


def _format_name(value: Any) -> Any:
    return _one_of(tuple(FORMATS), value)


def _format_rank(value: Any) -> Any:
    """Return the rank if some format takes it, else raise. The plan checks that the chosen formats take it."""
    ranks: set[int] = set()
    for one in FORMATS.values():
        ranks.update(one.ranks)
    return _one_of(sorted(ranks), value)


# Functions rather than Literals, because formats are registered: the words are those registered when a recipe is read.
FormatName = Annotated[str, BeforeValidator(_format_name)]
FormatRank = Annotated[int, BeforeValidator(_format_rank)]


class Adapters(Keys):
    """How adapters are written: `adapters: {profiles: [faithful, serving], rank: 64, together: true}`."""

    place = " in adapters"

    profiles: Annotated[list[FormatName], Field(min_length=1)] | None = None
    rank: FormatRank | None = None
    factor_dtype: FactorWord | None = None
    together: bool | None = None
    verify: Literal["weights", "forward"] | None = None


class Output(RankRuleKeys):
    """The form of the output, and the rule for an adapter's ranks: `output: {form: adapter, rank: 16}`."""

    place = " in output"

    form: Literal["model", "adapter"]


class TokenizerKeys(Keys):
    """The output's tokenizer: `tokenizer: {source: union, pad_to_multiple_of: 64}`."""

    place = " in tokenizer"
    refused = {
        "tokens": "a token has the value that the models give it. Leave it out, or set rows in the merged model.",
    }

    source: TextOr[Reference] | None = None
    pad_to_multiple_of: Annotated[int, Field(ge=1)] | None = None


def _without_fast(value: Any) -> Any:
    """Return any value but `fast`, which recipes of earlier versions may have; raise for that."""
    if value == "fast":
        raise ValueError("fast was removed, because it was slower than exact. Leave 'svd' out, or write svd: sketch.")
    return value


Svd = Annotated[Literal["exact", "sketch"], BeforeValidator(_without_fast)]


class RecipeFile(Keys):
    """A whole recipe."""

    refused = {
        "slices": "layers keep their places. List the models under 'models', and treat single layers by 'overrides'.",
        "modules": "one recipe merges all parts of a model. Use 'models', and 'overrides' for single parts.",
    }

    merge_method: str | None = None
    base_model: TextOr[Reference] | None = None
    models: list[ModelEntry] | None = None
    parameters: dict[str, Setting] | None = None
    overrides: list[Override] | None = None
    dtype: FloatWord | None = None
    out_dtype: FloatWord | None = None
    tokenizer_source: TextOr[Reference] | None = None
    tokenizer: TokenizerKeys | None = None
    chat_template: str | None = None
    svd: Svd | None = None
    residuals: Residuals | None = None
    adapters: Adapters | None = None
    output: Output | None = None


def read_shape(document: Document) -> RecipeFile:
    """Read the recipe without the parts that don't fit the grammar, and note those in the document."""
    try:
        return RecipeFile.model_validate(document.data)
    except ValidationError as error:
        details = error.errors(include_url=False)
    # The rest is still read, so that mistakes in the meaning are reported together with those in the shape.
    sound = copy.deepcopy(document.data)
    for detail in details:
        path = _untagged(detail["loc"])
        if detail["type"] == "extra_forbidden":
            *above, key = detail["loc"]
            path = (*_untagged(above), key)  # the key is the recipe's own, even if it looks like a tag
        document.tell(path, _problem(path, detail))
        _drop_unusable(sound, path, detail)
    return RecipeFile.model_validate(sound)


def _problem(path: Path, error: ErrorDetails) -> str:
    """The message about one of pydantic's errors for a recipe's author."""
    *above, last = path
    level = _level(tuple(above))
    if error["type"] == "missing":
        return f"'{last}' is missing{level.place}."
    if error["type"] == "extra_forbidden":
        key = str(last)
        if key in level.refused:
            return f"'{key}' isn't taken{level.place}: {level.refused[key]}"
        parameters = {"weight"}  # every method takes it
        for method in METHODS.values():
            parameters.update(method.parameters, method.aliases)
        if "parameters" in level.model_fields and key in parameters:
            return f"'{key}' is a parameter, expected it under 'parameters'. Write parameters: {{{key}: ...}}."
        known = list(level.model_fields)
        return f"unknown key '{key}'{level.place}.{did_you_mean(key, known)} Known keys: {', '.join(known)}."
    label = f"'{last}'" if isinstance(last, str) else f"entry {last + 1} of '{path[-2]}'"
    problem = wrong_value(label, [error])
    if error["type"] != "model_type":
        return problem
    # A mapping belongs here, so its keys are the way out.
    if path[0] == "models" and isinstance(error["input"], str):
        return f"{problem} Write - model: {error['input']}."
    return f"{problem} Its keys: {', '.join(_level(path).model_fields)}."


def _untagged(loc: Sequence[int | str]) -> Path:
    """A path in the file, from pydantic's path with the tags of unions. A parameter's name may look like a tag."""
    parameters = _parameters_at(loc)
    name_at = None if parameters is None else parameters + 1
    return tuple(step for i, step in enumerate(loc) if step not in _TAGS or i == name_at)


def _parameters_at(path: Sequence[int | str]) -> int | None:
    """Index of `parameters` in a path: 0 in the recipe, 2 in an entry of a list; None if it isn't in either place."""
    for at in (0, 2):
        if list(path[at : at + 1]) == ["parameters"]:
            return at
    return None


def _level(path: Path) -> type[Keys]:
    """The grammar's class for the mapping at a path."""
    match path:
        case ("models", int()):
            return ModelEntry
        case ("overrides", int()):
            return Override
        case ("residuals",):
            return Residuals
        case ("adapters",):
            return Adapters
        case ("output",):
            return Output
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


def _drop_unusable(data: Any, path: Path, error: ErrorDetails) -> None:
    """Remove from a recipe's data the piece that an error at `path` makes useless.

    The piece is a key of the recipe, of an entry or of a list of filter and value, or a whole gradient. An entry of
    a list becomes an empty one, so that the others keep their places.
    """
    parameters = _parameters_at(path)
    if error["type"] == "extra_forbidden":
        length = len(path)
    elif parameters is not None:
        setting = parameters + 2  # the length of the parameter's own path
        in_filters = list(error["loc"][setting : setting + 1]) == ["<filters>"]
        length = setting + 2 if in_filters else setting
    else:
        in_entry = len(path) > 1 and isinstance(path[1], int)
        length = 3 if in_entry else 1
    *above, last = path[:length]
    for step in above:
        if isinstance(data, dict) and step not in data:
            return  # an earlier error has already removed a part around it
        data = data[step]
    if isinstance(data, list):
        data[int(last)] = {}
    else:
        data.pop(last, None)
