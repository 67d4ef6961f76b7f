"""adapter_config.json as PEFT reads it, and which adapters can't be read."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hf_tsv.errors import CheckpointError
from hf_tsv.lora.format import ADAPTER_CONFIG, INIT, LORA, NOT_PLAIN, PLAIN_INITS, AdapterConfig, pattern_at_end

MERGE_IT = "Merge it into its base with PEFT's merge_and_unload, and use the model that this makes"
MAX_PATTERN = 500  # letters; the longest name of a module, escaped, has fewer


def read_config(folder: Path, label: str) -> AdapterConfig:
    """The configuration of the adapter in a folder.

    Raises:
        CheckpointError: it can't be read, or isn't that of a plain LoRA; every such mistake is reported.
    """
    path = folder / ADAPTER_CONFIG
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{label}: its {ADAPTER_CONFIG} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{label}: its {ADAPTER_CONFIG} is not valid JSON. Download it again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{label}: its {ADAPTER_CONFIG} is not a JSON object. Download it again")
    if problems := [f"{label}: {problem}" for problem in _not_plain(data)]:
        raise CheckpointError(problems)
    try:
        config = AdapterConfig.model_validate(data)
    except ValidationError as error:
        raise CheckpointError(_wrong_field(label, detail) for detail in error.errors()) from error
    if problems := [f"{label}: {problem}" for problem in _bad_patterns(config)]:
        raise CheckpointError(problems)
    return config


def _not_plain(data: Mapping[str, Any]) -> list[str]:
    """Why an adapter is not a plain LoRA."""
    kind = data.get("peft_type")
    if kind != LORA:
        return [f"an adapter of type {_shown(kind)}, expected {LORA}. {MERGE_IT}"]
    problems = []
    for key, what in NOT_PLAIN.items():
        if data.get(key):
            problems.append(f"uses {what} ({key} in {ADAPTER_CONFIG}), expected a plain LoRA. {MERGE_IT}")
    init = data.get(INIT, True)
    if init not in PLAIN_INITS:
        problems.append(
            f"{INIT} is {_shown(init)}, which changes the base's weights, expected a plain LoRA. Save it with"
            " path_initial_model_for_weight_conversion, as PEFT's documentation says"
        )
    return problems


def _bad_patterns(config: AdapterConfig) -> list[str]:
    """Patterns that are not regular expressions, or that could take forever to match: strangers write them."""
    keys = [(key, "rank_pattern") for key in config.rank_pattern or {}]
    keys += [(key, "alpha_pattern") for key in config.alpha_pattern or {}]
    return [
        f"the key {_shown(key)} of {field} in {ADAPTER_CONFIG} {why}. Write the module's name"
        for key, field in keys
        if (why := _why_bad(key))
    ]


def _why_bad(pattern: str) -> str:
    # A repeated group, or many repeated signs, can take time exponential in the name's length.
    signs = re.sub(r"\\.", "", pattern)
    if len(pattern) > MAX_PATTERN or re.search(r"\)[*+{]", signs) or len(re.findall(r"[*+{]", signs)) > 3:
        return "is too costly a pattern"
    try:
        re.compile(pattern)
        re.compile(pattern_at_end(pattern))
    except (re.error, OverflowError, RecursionError) as error:
        return f"is not a regular expression: {error}"
    return ""


def _wrong_field(label: str, detail: ErrorDetails) -> str:
    where = ".".join(map(str, detail["loc"]))
    if detail["type"] == "missing":
        return f"{label}: its {ADAPTER_CONFIG} has no '{where}', without which the size of its change is unknown"
    return f"{label}: {where} in {ADAPTER_CONFIG} is {_shown(detail['input'])}. {detail['msg']}"


def _shown(value: object) -> str:
    """A stranger's value in a message: short, on one line, without control characters."""
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
