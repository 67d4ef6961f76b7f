"""PEFT's LoRA format in PEFT 0.18 to 0.21: each of its names is defined here once, for reading and writing.

An adapter's folder holds a configuration and the tensors. A tensor's key consists of `base_model.model.`, the path of
its module in the bare model, and its role in that module: see `KEYS`. A third file, the sidecar, is our own.
"""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PlainSerializer, PositiveInt

# Files in an adapter's folder

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLED_ADAPTER = "adapter_model.bin"
SIDECAR_FILE = "rest.safetensors"  # ours: what fine-tuning changed and PEFT can't hold

# Keys of the tensors. Factors A and B of a module's weight, in the order they are applied:

PREFIX = "base_model.model."
LINEAR = ("lora_A.weight", "lora_B.weight")  # for linear, convolution and stacked modules
EMBEDDING = ("lora_embedding_A", "lora_embedding_B")
BIAS = "lora_B.bias"  # the change of a module's bias, with lora_bias
TOKENS = "token_adapter.trainable_tokens_delta"  # an embedding's new rows, with trainable_token_indices
KEYS = (*LINEAR, *EMBEDDING, BIAS, TOKENS)
FACTOR_MARK = "lora_"  # starts a component of every factor's key, also in other kinds of adapters
DORA_MARK = "lora_magnitude_vector"
# A module whose parameters are targeted by name is wrapped once per parameter; each inner wrapper's key has one more.
BASE_LAYER = ".base_layer"
ATTENTION_OUT = ".base_layer.out_proj"  # for nn.MultiheadAttention, which PEFT wraps together with its in_proj
COPIES = ("original_module", "modules_to_save")  # components of the keys that PEFT doesn't read

# Keys of the sidecar: a tensor's name for its new value; the name and one of these endings for the factors of its
# change. No parameter's name contains a slash.

LEFT, RIGHT = "/left", "/right"

# Fields and values of the configuration

LORA: Final = "LORA"
NO_TARGETS = "dummy-target-modules"  # PEFT's target_modules for an adapter without factors
# Modules that PEFT stores whole for a task type, whatever modules_to_save says.
HEADS_OF_TASK = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score")}
# With any of these, the factors alone don't give the fine-tuned weights.
NOT_PLAIN = {
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
INIT = "init_lora_weights"
# These only set how training started; any other value changes the base's weights when PEFT loads the adapter.
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_OF_NO_CONSEQUENCE = {
    INIT,
    "auto_mapping",
    "runtime_config",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "velora_config",
}
# Fields that are always written, and fields that are written only if set: older versions of PEFT reject fields that
# they don't know.
_ALWAYS_WRITTEN = (
    "peft_type",
    "base_model_name_or_path",
    "inference_mode",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
)
_WRITTEN_IF_SET = (
    "revision",
    "task_type",
    "exclude_modules",
    "target_parameters",
    "modules_to_save",
    "lora_bias",
    "fan_in_fan_out",
)

T = TypeVar("T")


def _as_whole_number(value: float) -> float | int:
    """Return 8.0 as 8: PEFT writes lora_alpha as a whole number, and so do we."""
    return int(value) if value.is_integer() else value


Number = Annotated[float, Field(allow_inf_nan=False), PlainSerializer(_as_whole_number)]


class AdapterConfig(BaseModel):
    """The contents of adapter_config.json. PEFT's LoraConfig documents the fields; unknown ones are kept unchanged."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    # These fields determine the fine-tuned weights.
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
    # PEFT needs these fields to put the adapter on a model; the tensors' keys hold the same information.
    peft_type: Literal["LORA"] = LORA
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | str | None = None
    # These fields are for people and other tools.
    base_model_name_or_path: str | None = None
    revision: str | None = None
    task_type: str | None = None
    inference_mode: bool | None = None

    def rank(self, module: str) -> int:
        """Return the rank of a module, or of a parameter that LoRA targets directly, by its name in the model."""
        return _matching(self.rank_pattern, module, self.r)

    def scaling(self, module: str) -> float:
        """Return the scale that PEFT applies to the product of a module's factors."""
        rank = self.rank(module)
        alpha = _matching(self.alpha_pattern, module, self.lora_alpha)
        # Rank-stabilised LoRA: with the square root, the product doesn't shrink as the rank grows.
        divisor = math.sqrt(rank) if self.use_rslora else rank
        return alpha / divisor

    def parameters_of(self, module: str) -> list[str]:
        """Return the parameters of a module that `target_parameters` targets directly."""
        leaves = set()
        for target in self.target_parameters or []:
            leaf = target.rpartition(".")[2]
            if _ends_with(f"{module}.{leaf}", target):
                leaves.add(leaf)
        return sorted(leaves)

    def tokens_of(self, module: str) -> list[int] | None:
        """Return the rows of an embedding that were trained individually; None if the configuration lists none."""
        indices = self.trainable_token_indices
        if isinstance(indices, dict):
            for name, rows in indices.items():
                if _ends_with(module, name):
                    return rows
            return None
        return indices

    def unread(self) -> list[str]:
        """Return the names of unknown switches that are turned on."""
        switches = []
        for key, value in (self.model_extra or {}).items():
            is_on = value is True or (isinstance(value, dict) and value)
            if is_on and key not in _OF_NO_CONSEQUENCE:
                switches.append(key)
        return sorted(switches)

    def written(self) -> dict[str, Any]:
        """Return the fields to write to adapter_config.json: as few as PEFT needs."""
        fields = self.model_dump()
        optional = {key: fields[key] for key in _WRITTEN_IF_SET if fields[key]}
        return {key: fields[key] for key in _ALWAYS_WRITTEN} | optional


def anchored(name: str) -> str:
    """Return a key for rank_pattern and alpha_pattern that matches exactly this name."""
    return "^" + re.escape(name)


def pattern_at_end(pattern: str) -> str:
    """Return PEFT's regular expression for a pattern's key: it matches from the start of a name, or after any dot."""
    return rf"(.*\.)?({pattern})$"


def _matching(patterns: Mapping[str, T] | None, name: str, default: T) -> T:
    """Return the value of the first pattern that matches a name, which is PEFT's rule."""
    for key, value in (patterns or {}).items():
        if re.match(pattern_at_end(key), name):
            return value
    return default


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith("." + end)
