"""Makes random inputs for a transformers model, of the kinds that its configuration describes."""

import inspect
from typing import Any

import torch
from torch import Tensor

TOKENS = 8
PIXELS = 224  # per side, if the configuration doesn't set the image size
SAMPLES = 4000  # of audio: a quarter of a second at 16 kHz


def random_inputs(model: Any) -> dict[str, Tensor] | None:
    """Return inputs that the model accepts, the same at each call; None if none of those tried work."""
    taken = inspect.signature(model.forward).parameters
    inputs = {name: value for name, value in _made_up(model).items() if name in taken}
    # Try the main input alone, then all inputs that the model takes: CLIP needs text and image, others only one.
    candidates = [inputs]
    if model.main_input_name in inputs:
        main_names = (model.main_input_name, "decoder_input_ids")
        main = {name: value for name, value in inputs.items() if name in main_names}
        candidates.insert(0, main)
    for candidate in candidates:
        try:
            model(**candidate)
        except (ValueError, TypeError, RuntimeError, LookupError, AttributeError):
            continue
        return candidate
    return None


def _made_up(model: Any) -> dict[str, Tensor]:
    """Make inputs of every kind, in the sizes that the configuration sets."""
    config = model.config
    inputs = {}
    random = torch.Generator().manual_seed(0)
    # Models for both text and images have a separate configuration for each.
    text = getattr(config, "text_config", config)
    vision = getattr(config, "vision_config", config)
    vocabulary = getattr(text, "vocab_size", 0)
    if vocabulary:
        inputs["input_ids"] = torch.randint(0, vocabulary, (1, TOKENS), generator=random)
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.randint(0, vocabulary, (1, TOKENS), generator=random)
    size = getattr(vision, "image_size", PIXELS)
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(vision, "num_channels", 3)
    inputs["pixel_values"] = torch.randn(1, channels, height, width, generator=random)
    mels = getattr(config, "num_mel_bins", 0)
    if mels:
        # Whisper's encoder halves the number of frames.
        frames = 2 * getattr(config, "max_source_positions", 1500)
        inputs["input_features"] = torch.randn(1, mels, frames, generator=random)
    inputs["input_values"] = torch.randn(1, SAMPLES, generator=random)
    for name, value in inputs.items():
        if value.is_floating_point():
            inputs[name] = value.to(model.dtype)
    return inputs
