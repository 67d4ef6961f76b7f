"""Tiny models of many architectures, made by transformers, and fine-tunes of them: every weight perturbed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import nn

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def bert() -> nn.Module:
    return tf.BertModel(tf.BertConfig(vocab_size=90, max_position_embeddings=20, **SMALL))


def bert_classifier(labels: int = 3) -> nn.Module:
    config = tf.BertConfig(vocab_size=90, max_position_embeddings=20, num_labels=labels, **SMALL)
    return tf.BertForSequenceClassification(config)


def vit() -> nn.Module:
    return tf.ViTForImageClassification(tf.ViTConfig(image_size=16, patch_size=4, num_labels=5, **SMALL))


def bare_vit() -> nn.Module:
    """With modules named alike in each other: embeddings, and in it patch_embeddings."""
    return tf.ViTModel(tf.ViTConfig(image_size=16, patch_size=4, **SMALL))


def clip() -> nn.Module:
    text = {"vocab_size": 60, "max_position_embeddings": 12, **SMALL}
    vision = {"image_size": 16, "patch_size": 8, **SMALL}
    return tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))


def gpt2() -> nn.Module:
    return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=70, n_positions=16, n_embd=32, n_layer=2, n_head=4))


def llama(tied: bool = False) -> nn.Module:
    config = tf.LlamaConfig(vocab_size=64, num_key_value_heads=2, tie_word_embeddings=tied, **SMALL)
    return tf.LlamaForCausalLM(config)


def mixtral() -> nn.Module:
    return tf.MixtralForCausalLM(
        tf.MixtralConfig(vocab_size=64, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, **SMALL)
    )


def t5() -> nn.Module:
    config = tf.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return tf.T5ForConditionalGeneration(config)


def whisper() -> nn.Module:
    sizes = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = tf.WhisperConfig(
        vocab_size=80, d_model=32, encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8, max_source_positions=10,
        max_target_positions=12, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None, **sizes,
    )  # fmt: skip
    return tf.WhisperForConditionalGeneration(config)


TOKENS = torch.tensor([[5, 6, 7, 8]])
INPUTS: dict[str, dict[str, torch.Tensor]] = {
    "bert": {"input_ids": TOKENS},
    "vit": {"pixel_values": torch.ones(1, 3, 16, 16)},
    "clip": {"input_ids": TOKENS, "pixel_values": torch.ones(1, 3, 16, 16)},
    "t5": {"input_ids": TOKENS, "decoder_input_ids": TOKENS},
    "whisper": {"input_features": torch.ones(1, 8, 20), "decoder_input_ids": TOKENS},
}
ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "bert": bert,
    "vit": vit,
    "clip": clip,
    "gpt2": gpt2,
    "llama": llama,
    "llama-tied": lambda: llama(tied=True),
    "mixtral": mixtral,
    "t5": t5,
    "whisper": whisper,
}


def save(model: nn.Module, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """`save_pretrained`, without its progress bars."""
    tf.utils.logging.disable_progress_bar()
    assert isinstance(model, tf.PreTrainedModel)
    model.to(dtype=dtype)
    model.save_pretrained(folder, **options)
    return folder


def perturbed(model: nn.Module, seed: int, size: float = 0.02) -> nn.Module:
    """The same model with every weight changed, full rank."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return model


def zoo(make: Callable[[], nn.Module], folder: Path, tasks: int = 3, **options: Any) -> Path:
    """A base model and fine-tunes of it in `folder`: base, t0, t1, ..."""
    for name, seed in [("base", None), *((f"t{t}", t + 1) for t in range(tasks))]:
        torch.manual_seed(0)
        model = make()
        save(model if seed is None else perturbed(model, seed), folder / name, **options)
    return folder


def recipe(folder: Path, method: str = "tsv_m", tasks: int = 3, more: str = "") -> Path:
    """A recipe file that merges such a zoo."""
    models = "".join(f"  - model: {folder}/t{t}\n" for t in range(tasks))
    path = folder / "recipe.yaml"
    path.write_text(f"merge_method: {method}\nbase_model: {folder}/base\nmodels:\n{models}{more}")
    return path


def bert_wide() -> nn.Module:
    """Large enough for a merge to take a moment."""
    config = tf.BertConfig(
        vocab_size=90, max_position_embeddings=20, hidden_size=384, num_hidden_layers=4, num_attention_heads=6,
        intermediate_size=1536,
    )  # fmt: skip
    return tf.BertModel(config)
