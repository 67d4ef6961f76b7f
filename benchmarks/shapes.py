"""The checkpoints that the benchmarks merge: names, sizes and places. Imports no torch; `checkpoints` writes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from benchmarks.peers import CACHE

Tensors = dict[str, tuple[int, ...]]
ITEM_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Sizes:
    """An encoder's or decoder's sizes, in the words of transformers."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    vocab_size: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int


@dataclass(frozen=True)
class Shape:
    """A base model and its fine-tunes.

    Attributes:
        name: Its folder in the cache.
        model: Which of `MODELS` it has the tensors and configuration of.
        dtype: What weights are stored in.
        num_tasks: How many fine-tunes there are.
        sample: Tensors whose merged delta is compared with a float64 reference.
    """

    name: str
    model: str
    sizes: Sizes
    dtype: str
    num_tasks: int
    sample: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return CACHE / "checkpoints" / self.name

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def tasks(self) -> tuple[Path, ...]:
        return tuple(self.folder / f"task{t}" for t in range(self.num_tasks))

    @property
    def tensors(self) -> Tensors:
        return MODELS[self.model].tensors(self.sizes)

    @property
    def config(self) -> dict[str, Any]:
        return {**MODELS[self.model].config, **vars(self.sizes), "dtype": self.dtype, "torch_dtype": self.dtype}

    @property
    def nbytes(self) -> int:
        """Bytes of one model."""
        return sum(map(prod, self.tensors.values())) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Model:
    """What transformers calls an architecture."""

    config: Mapping[str, Any]
    tensors: Callable[[Sizes], Tensors]


def bert(sizes: Sizes) -> Tensors:
    """The tensors of a BertModel."""
    d, wide = sizes.hidden_size, sizes.intermediate_size
    found: Tensors = {
        "embeddings.word_embeddings.weight": (sizes.vocab_size, d),
        "embeddings.position_embeddings.weight": (sizes.max_position_embeddings, d),
        "embeddings.token_type_embeddings.weight": (2, d),
        **_norm("embeddings.LayerNorm", d),
    }
    for i in range(sizes.num_hidden_layers):
        layer = f"encoder.layer.{i}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            found |= _linear(f"{layer}.{part}", d, d)
        found |= _linear(f"{layer}.intermediate.dense", wide, d) | _linear(f"{layer}.output.dense", d, wide)
        found |= _norm(f"{layer}.attention.output.LayerNorm", d) | _norm(f"{layer}.output.LayerNorm", d)
    return found | _linear("pooler.dense", d, d)


def llama(sizes: Sizes) -> Tensors:
    """The tensors of a LlamaForCausalLM whose embeddings are tied."""
    d, wide = sizes.hidden_size, sizes.intermediate_size
    narrow = d // sizes.num_attention_heads * sizes.num_key_value_heads
    found: Tensors = {"model.embed_tokens.weight": (sizes.vocab_size, d), "model.norm.weight": (d,)}
    for i in range(sizes.num_hidden_layers):
        shapes = {
            "input_layernorm": (d,),
            "post_attention_layernorm": (d,),
            "self_attn.q_proj": (d, d),
            "self_attn.k_proj": (narrow, d),
            "self_attn.v_proj": (narrow, d),
            "self_attn.o_proj": (d, d),
            "mlp.gate_proj": (wide, d),
            "mlp.up_proj": (wide, d),
            "mlp.down_proj": (d, wide),
        }
        found |= {f"model.layers.{i}.{part}.weight": shape for part, shape in shapes.items()}
    return found


def _linear(name: str, m: int, n: int) -> Tensors:
    return {f"{name}.weight": (m, n), f"{name}.bias": (m,)}


def _norm(name: str, d: int) -> Tensors:
    return {f"{name}.weight": (d,), f"{name}.bias": (d,)}


MODELS = {
    "bert": Model({"model_type": "bert", "architectures": ["BertModel"], "type_vocab_size": 2}, bert),
    "llama": Model({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}, llama),
}

BERT_SAMPLE = (
    "embeddings.word_embeddings.weight",
    "encoder.layer.0.attention.self.query.weight",
    "encoder.layer.0.intermediate.dense.weight",
    "encoder.layer.1.output.dense.weight",
    "encoder.layer.1.output.LayerNorm.weight",
)
LLAMA_SAMPLE = (
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
    "model.norm.weight",
)
SMOLLM = Sizes(576, 1536, 30, 49152, 9, 3, 2048)

BERT_BASE = Shape("bert-base", "bert", Sizes(768, 3072, 12, 30522, 12, 12, 512), "float32", 8, BERT_SAMPLE)
LLAMA_135M = Shape("llama-135m", "llama", SMOLLM, "bfloat16", 4, LLAMA_SAMPLE)
LLAMA_540M = Shape("llama-540m", "llama", Sizes(576, 1536, 144, 49152, 9, 3, 2048), "bfloat16", 4, LLAMA_SAMPLE)
TINY = Shape("tiny", "llama", Sizes(64, 128, 2, 256, 4, 2, 128), "bfloat16", 4)

# For trying the benchmark itself: every job in seconds, and figures that mean nothing.
QUICK = {
    BERT_BASE: Shape("quick-bert", "bert", Sizes(192, 768, 2, 4000, 4, 4, 128), "float32", 8, BERT_SAMPLE),
    LLAMA_135M: Shape("quick-llama", "llama", Sizes(192, 512, 4, 4000, 6, 2, 128), "bfloat16", 4, LLAMA_SAMPLE),
    LLAMA_540M: Shape("quick-llama-4", "llama", Sizes(192, 512, 23, 4000, 6, 2, 128), "bfloat16", 4, LLAMA_SAMPLE),
    TINY: TINY,
}
SHAPES = {shape.name: shape for pair in QUICK.items() for shape in pair}
