"""Random inputs for a transformers model, of the kinds that can be made up from its configuration."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

TOKENS = 8
PIXELS = 224  # a side, where the configuration doesn't say
SAMPLES = 4000  # of audio: a quarter of a second


def random_inputs(model: Any) -> dict[str, Tensor] | None:
    """Inputs that the model runs on, the same at each call; None when none are known."""
    for inputs in _candidates(model):
        try:
            model(**inputs)
        except (ValueError, TypeError, RuntimeError, LookupError, AttributeError):
            continue
        return inputs
    return None


def _candidates(model: Any) -> Iterator[dict[str, Tensor]]:
    """The model's main input, then all that it takes."""
    taken = inspect.signature(model.forward).parameters
    inputs = {name: value for name, value in _made_up(model).items() if name in taken}
    for_decoder = {}
    if "decoder_input_ids" in inputs:
        for_decoder["decoder_input_ids"] = inputs.pop("decoder_input_ids")
    if model.main_input_name in inputs:
        yield {model.main_input_name: inputs[model.main_input_name], **for_decoder}
    yield {**inputs, **for_decoder}


def _made_up(model: Any) -> dict[str, Tensor]:
    """Inputs of every kind, in the sizes that the configuration names."""
    config, inputs = model.config, {}
    random = torch.Generator().manual_seed(0)
    # Models of text and images have a configuration for each.
    text = getattr(config, "text_config", config)
    vision = getattr(config, "vision_config", config)
    if vocabulary := getattr(text, "vocab_size", 0):
        inputs["input_ids"] = torch.randint(0, vocabulary, (1, TOKENS), generator=random)
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.randint(0, vocabulary, (1, TOKENS), generator=random)
    size = getattr(vision, "image_size", PIXELS)
    height, width = (size, size) if isinstance(size, int) else size
    inputs["pixel_values"] = torch.randn(1, getattr(vision, "num_channels", 3), height, width, generator=random)
    if mels := getattr(config, "num_mel_bins", 0):
        frames = 2 * getattr(config, "max_source_positions", 1500)
        inputs["input_features"] = torch.randn(1, mels, frames, generator=random)
    inputs["input_values"] = torch.randn(1, SAMPLES, generator=random)
    for name, value in inputs.items():
        if value.is_floating_point():
            inputs[name] = value.to(model.dtype)
    return inputs
