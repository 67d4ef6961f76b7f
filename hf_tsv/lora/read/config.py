"""Reads adapter_config.json as PEFT does, and rejects adapters that can't be read."""

import json
import re
from pathlib import Path

from pydantic import ValidationError

from hf_tsv.errors import CheckpointError
from hf_tsv.lora.format import ADAPTER_CONFIG, INIT, LORA, NOT_PLAIN, PLAIN_INITS, AdapterConfig, pattern_at_end

MERGE_IT = "Merge it into its base with PEFT's merge_and_unload, and use the model that this makes"
MAX_PATTERN = 500  # characters; the longest name of a module, escaped, has fewer


def read_config(folder: Path, label: str) -> AdapterConfig:
    """Read the configuration of the adapter in a folder.

    Raises:
        CheckpointError: the file can't be read, or isn't for a plain LoRA; all problems of a kind are reported.
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
    kind = data.get("peft_type")
    if kind != LORA:
        raise CheckpointError(f"{label}: an adapter of type {_shown(kind)}, expected {LORA}. {MERGE_IT}")
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
    if problems:
        raise CheckpointError(f"{label}: {problem}" for problem in problems)
    try:
        config = AdapterConfig.model_validate(data)
    except ValidationError as error:
        mistakes = []
        for detail in error.errors():
            where = ".".join(map(str, detail["loc"]))
            if detail["type"] == "missing":
                mistakes.append(
                    f"its {ADAPTER_CONFIG} has no '{where}', without which the size of its change is unknown"
                )
            else:
                mistakes.append(f"{where} in {ADAPTER_CONFIG} is {_shown(detail['input'])}. {detail['msg']}")
        raise CheckpointError(f"{label}: {mistake}" for mistake in mistakes) from error
    problems = _bad_patterns(config)
    if problems:
        raise CheckpointError(f"{label}: {problem}" for problem in problems)
    return config


def _bad_patterns(config: AdapterConfig) -> list[str]:
    """Report patterns that are invalid or could take forever to match: adapters come from strangers."""
    keys = [(key, "rank_pattern") for key in config.rank_pattern or {}]
    keys += [(key, "alpha_pattern") for key in config.alpha_pattern or {}]
    problems = []
    for key, field in keys:
        # Matching a repeated group, or many quantifiers, can take time exponential in the name's length.
        signs = re.sub(r"\\.", "", key)  # without escaped characters
        repeats_group = re.search(r"\)[*+{]", signs)
        repeats_often = len(re.findall(r"[*+{]", signs)) > 3
        why = ""
        if len(key) > MAX_PATTERN or repeats_group or repeats_often:
            why = "is too costly a pattern"
        else:
            try:
                re.compile(key)
                re.compile(pattern_at_end(key))
            except (re.error, OverflowError, RecursionError) as error:
                why = f"is not a regular expression: {error}"
        if why:
            problems.append(f"the key {_shown(key)} of {field} in {ADAPTER_CONFIG} {why}. Write the module's name")
    return problems


def _shown(value: object) -> str:
    """Format a stranger's value for a message: short, on one line, without control characters."""
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
