"""PEFT's format of LoRA adapters, as PEFT 0.18 to 0.21 has it: every name in it once, for reading and for writing.

A folder holds a configuration and the tensors. A tensor's key is `base_model.model.`, the path of its module in the
bare model, and what it is of that module: see `KEYS`. Beside these two files lies our own, the sidecar.
"""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PlainSerializer, PositiveInt

# Files of an adapter's folder

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLED_ADAPTER = "adapter_model.bin"
SIDECAR_FILE = "rest.safetensors"  # ours: what fine-tuning changed and PEFT can't hold

# Keys of the tensors. Factors A and B of a module's weight, in the orders of their use:

PREFIX = "base_model.model."
LINEAR = ("lora_A.weight", "lora_B.weight")  # of linear, convolution and stacked modules
EMBEDDING = ("lora_embedding_A", "lora_embedding_B")
BIAS = "lora_B.bias"  # the change of a module's bias, with lora_bias
TOKENS = "token_adapter.trainable_tokens_delta"  # an embedding's new rows, with trainable_token_indices
KEYS = (*LINEAR, *EMBEDDING, BIAS, TOKENS)
FACTOR_MARK = "lora_"  # begins a component in the key of every factor, those of other kinds of adapters too
DORA_MARK = "lora_magnitude_vector"
# A module whose parameters are targeted by name is wrapped once for each of them: the inner ones get one more of these.
BASE_LAYER = ".base_layer"
ATTENTION_OUT = ".base_layer.out_proj"  # of nn.MultiheadAttention, which PEFT wraps with its in_proj
COPIES = ("original_module", "modules_to_save")  # components of keys that PEFT doesn't read

# Keys of the sidecar: a tensor's name for its new value, or these behind it for factors of its change. No parameter's
# name holds a slash.

LEFT, RIGHT = "/left", "/right"

# Words of the configuration

LORA: Final = "LORA"
NO_TARGETS = "dummy-target-modules"  # PEFT's target_modules for an adapter without factors
# Modules that PEFT stores whole for a task type, whatever modules_to_save says.
HEADS_OF_TASK = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score")}
# Each changes what the adapter means, so that its factors alone don't give the fine-tuned weights.
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
# These only say how training began; any other word changes the base's weights when PEFT loads the adapter.
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
# What is written in any case, and what only where it says something: older versions of PEFT refuse fields that they
# don't know.
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
    """8.0 as 8: PEFT writes lora_alpha as a whole number, and so do we."""
    return int(value) if value.is_integer() else value


Number = Annotated[float, Field(allow_inf_nan=False), PlainSerializer(_as_whole_number)]


class AdapterConfig(BaseModel):
    """adapter_config.json. See PEFT's LoraConfig for what each field means; others are kept as they are."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    # These decide the fine-tuned weights.
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
    # These PEFT needs when it puts the adapter on a model; the tensors' keys say as much.
    peft_type: Literal["LORA"] = LORA
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | str | None = None
    # These are for people and other tools.
    base_model_name_or_path: str | None = None
    revision: str | None = None
    task_type: str | None = None
    inference_mode: bool | None = None

    def rank(self, module: str) -> int:
        """The rank of a module, or of a parameter that LoRA is put on directly, by its name in the model."""
        return _matching(self.rank_pattern, module, self.r)

    def scaling(self, module: str) -> float:
        """What PEFT multiplies the product of a module's factors by."""
        rank = self.rank(module)
        alpha = _matching(self.alpha_pattern, module, self.lora_alpha)
        # Rank-stabilised LoRA: with the square root a product's size doesn't shrink as its rank grows.
        divisor = math.sqrt(rank) if self.use_rslora else rank
        return alpha / divisor

    def parameters_of(self, module: str) -> list[str]:
        """The parameters of a module that LoRA was put on directly, by `target_parameters`."""
        leaves = set()
        for target in self.target_parameters or []:
            leaf = target.rpartition(".")[2]
            if _ends_with(f"{module}.{leaf}", target):
                leaves.add(leaf)
        return sorted(leaves)

    def tokens_of(self, module: str) -> list[int] | None:
        """The rows of an embedding that were trained alone; None if the configuration doesn't say."""
        indices = self.trainable_token_indices
        if isinstance(indices, dict):
            for name, rows in indices.items():
                if _ends_with(module, name):
                    return rows
            return None
        return indices

    def unread(self) -> list[str]:
        """Unknown switches that are on."""
        switches = []
        for key, value in (self.model_extra or {}).items():
            is_on = value is True or (isinstance(value, dict) and value)
            if is_on and key not in _OF_NO_CONSEQUENCE:
                switches.append(key)
        return sorted(switches)

    def written(self) -> dict[str, Any]:
        """What an adapter that we write says: as few fields as PEFT needs."""
        fields = self.model_dump()
        optional = {key: fields[key] for key in _WRITTEN_IF_SET if fields[key]}
        return {key: fields[key] for key in _ALWAYS_WRITTEN} | optional


def anchored(name: str) -> str:
    """A name as a key of rank_pattern and alpha_pattern, that matches nothing else."""
    return "^" + re.escape(name)


def pattern_at_end(pattern: str) -> str:
    """The regular expression that PEFT makes of a pattern's key: it matches behind any dot, or at the beginning."""
    return rf"(.*\.)?({pattern})$"


def _matching(patterns: Mapping[str, T] | None, name: str, default: T) -> T:
    """The value of the first pattern that matches a name, which is PEFT's rule."""
    for key, value in (patterns or {}).items():
        if re.match(pattern_at_end(key), name):
            return value
    return default


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith("." + end)
