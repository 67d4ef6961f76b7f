"""What `adapter_config.json` says of a LoRA adapter, read as PEFT reads it; and which adapters can't be read."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from hf_tsv.errors import CheckpointError

CONFIG_FILE = "adapter_config.json"
MERGE_IT = "Merge it into its base with PEFT's merge_and_unload, and give the model that this makes"
MAX_PATTERN = 500  # letters; the longest name of a module, escaped, has fewer

# Each changes what the adapter means, so that its factors alone don't give the fine-tuned weights.
_NOT_PLAIN = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow routing",
    "alora_invocation_tokens": "aLoRA, which acts on some tokens only,",
    "layer_replication": "layer replication",
    "megatron_config": "Megatron's parallel layers",
}
# These only say how training began; any other word changes the base's weights when PEFT loads the adapter.
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_OF_NO_CONSEQUENCE = {
    *("inference_mode", "init_lora_weights", "auto_mapping", "runtime_config", "loftq_config", "eva_config"),
    *("corda_config", "lora_ga_config", "velora_config"),
}

T = TypeVar("T")
Number = Annotated[float, Field(allow_inf_nan=False)]


class AdapterConfig(BaseModel):
    """The fields that decide the fine-tuned weights. See PEFT's LoraConfig for what each means."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    r: PositiveInt
    lora_alpha: Number
    use_rslora: bool = False
    rank_pattern: dict[str, PositiveInt] | None = None
    alpha_pattern: dict[str, Number] | None = None
    fan_in_fan_out: bool = False
    lora_bias: bool = False
    target_parameters: list[str] | None = None
    trainable_token_indices: list[NonNegativeInt] | dict[str, list[NonNegativeInt]] | None = None
    ensure_weight_tying: bool = False
    base_model_name_or_path: str | None = None

    def rank(self, module: str) -> int:
        """The rank of a module, or of a parameter that LoRA is put on directly, by its name in the model."""
        return _matching(self.rank_pattern, module, self.r)

    def scaling(self, module: str) -> float:
        """The factor on its product of factors."""
        rank = self.rank(module)
        return _matching(self.alpha_pattern, module, self.lora_alpha) / (math.sqrt(rank) if self.use_rslora else rank)

    def parameters_of(self, module: str) -> list[str]:
        """The parameters of a module that LoRA was put on directly, by `target_parameters`."""
        targets = self.target_parameters or []
        leaves = {target.rpartition(".")[2] for target in targets}
        return sorted(leaf for leaf in leaves if any(_ends_with(f"{module}.{leaf}", target) for target in targets))

    def tokens_of(self, module: str) -> list[int] | None:
        """The rows of an embedding that were trained alone; None where the config doesn't say."""
        found = self.trainable_token_indices
        if isinstance(found, dict):
            return next((rows for name, rows in found.items() if _ends_with(module, name)), None)
        return found

    def unread(self) -> list[str]:
        """Switches that are on and that nothing here knows."""
        extra = {key: value for key, value in (self.model_extra or {}).items() if key not in _OF_NO_CONSEQUENCE}
        return sorted(key for key, value in extra.items() if value is True or (isinstance(value, dict) and value))


def read_config(folder: Path, label: str) -> AdapterConfig:
    """The configuration of the adapter in a folder.

    Raises:
        CheckpointError: it can't be read, or isn't that of a plain LoRA; every such mistake is told.
    """
    path = folder / CONFIG_FILE
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{label}: its {CONFIG_FILE} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{label}: its {CONFIG_FILE} is no JSON. Get it again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{label}: its {CONFIG_FILE} is no mapping. Get it again")
    if problems := [f"{label}: {problem}" for problem in _not_plain(data)]:
        raise CheckpointError(problems)
    try:
        config = AdapterConfig.model_validate(data)
    except ValidationError as error:
        raise CheckpointError(_told(label, detail) for detail in error.errors()) from error
    if problems := [f"{label}: {problem}" for problem in _bad_patterns(config)]:
        raise CheckpointError(problems)
    return config


def _not_plain(data: Mapping[str, Any]) -> list[str]:
    """Why an adapter is no plain LoRA."""
    kind = data.get("peft_type")
    if kind != "LORA":
        return [f"an adapter of type {_shown(kind)}, expected LORA. {MERGE_IT}"]
    problems = [
        f"uses {what} ({key} in {CONFIG_FILE}), expected a plain LoRA. {MERGE_IT}"
        for key, what in _NOT_PLAIN.items()
        if data.get(key)
    ]
    init = data.get("init_lora_weights", True)
    if init not in _PLAIN_INITS:
        problems.append(
            f"init_lora_weights is {_shown(init)}, which changes the base's weights, expected a plain LoRA. Save it"
            " with path_initial_model_for_weight_conversion, as PEFT's documentation says"
        )
    return problems


def _bad_patterns(config: AdapterConfig) -> list[str]:
    """Patterns that are no regular expressions, or that could take for ever: they come from strangers."""
    return [
        f"the key {_shown(key)} of {field} in {CONFIG_FILE} {why}. Write the module's name"
        for field in ("rank_pattern", "alpha_pattern")
        for key in getattr(config, field) or {}
        if (why := _why_bad(key))
    ]


def _why_bad(pattern: str) -> str:
    signs = re.sub(r"\\.", "", pattern)
    if len(pattern) > MAX_PATTERN or re.search(r"\)[*+{]", signs) or len(re.findall(r"[*+{]", signs)) > 3:
        return "is too costly a pattern"
    try:
        re.compile(pattern)
        re.compile(_anywhere(pattern))
    except (re.error, OverflowError, RecursionError) as error:
        return f"is no regular expression: {error}"
    return ""


def _told(label: str, detail: Any) -> str:
    where = ".".join(map(str, detail["loc"]))
    if detail["type"] == "missing":
        return f"{label}: its {CONFIG_FILE} has no '{where}', without which the size of its change is unknown"
    return f"{label}: {where} in {CONFIG_FILE} is {_shown(detail['input'])}. {detail['msg']}"


def _matching(patterns: Mapping[str, T] | None, name: str, default: T) -> T:
    """PEFT's rule: the first key that matches the end of the name, from a dot or the beginning on."""
    for key, value in (patterns or {}).items():
        if re.match(_anywhere(key), name):
            return value
    return default


def _anywhere(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith("." + end)


def _shown(value: object) -> str:
    """A stranger's value in a message: short, on one line, without control characters."""
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
