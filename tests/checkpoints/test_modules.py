"""What a tensor is, from its name and shape alone."""

import pytest

from hf_tsv.checkpoints.modules import (
    Depths,
    Kind,
    MatrixView,
    group_of,
    kind_of,
    matrix_view,
    paper_matrix_view,
    vocabulary_axes,
)
from hf_tsv.checkpoints.protocol import TensorInfo

KINDS = [
    ("encoder.layer.0.attention.self.query.weight", (32, 32), "linear"),
    ("embeddings.word_embeddings.weight", (90, 32), "embedding"),
    ("embeddings.position_embeddings.weight", (20, 32), "embedding"),
    ("model.embed_tokens.weight", (64, 32), "embedding"),
    ("transformer.wte.weight", (64, 32), "embedding"),
    ("shared.weight", (64, 32), "embedding"),
    ("lm_head.weight", (64, 32), "head"),
    ("classifier.weight", (3, 32), "head"),
    ("visual_projection.weight", (24, 32), "head"),
    ("classifier.bias", (3,), "bias"),
    ("embeddings.LayerNorm.weight", (32,), "norm"),
    ("model.norm.weight", (32,), "norm"),
    ("transformer.ln_f.weight", (32,), "norm"),
    ("vision_model.pre_layrnorm.weight", (32,), "norm"),
    ("vit.embeddings.patch_embeddings.projection.weight", (32, 3, 4, 4), "conv"),
    ("model.encoder.conv1.weight", (32, 8, 3), "conv"),
    ("model.layers.0.block_sparse_moe.gate.weight", (4, 32), "router"),
    ("model.layers.0.mlp.gate_proj.weight", (48, 32), "linear"),
    ("model.layers.0.mlp.experts.gate_up_proj", (4, 96, 32), "expert"),
    ("model.layers.0.block_sparse_moe.experts.3.w1.weight", (48, 32), "expert"),
    ("vit.embeddings.cls_token", (1, 1, 32), "other"),
    ("logit_scale", (), "other"),
]


@pytest.mark.parametrize(("name", "shape", "kind"), KINDS, ids=[k[0] for k in KINDS])
def test_kinds(name: str, shape: tuple[int, ...], kind: str) -> None:
    assert kind_of(TensorInfo(name, shape, "F32")) == kind


def test_integers_are_other_whatever_their_name() -> None:
    assert kind_of(TensorInfo("embeddings.position_ids", (1, 20), "I64")) == "other"


@pytest.mark.parametrize(
    ("shape", "kind", "view"),
    [
        ((6, 4), "linear", MatrixView(1, 6, 4)),
        ((6, 3, 2, 2), "conv", MatrixView(1, 6, 12)),
        ((6, 1, 3, 3), "conv", None),  # depthwise: mixes no channels
        ((4, 6, 5), "expert", MatrixView(4, 6, 5)),
        ((1, 20, 32), "other", None),
        ((7,), "norm", None),
        ((0, 4), "linear", None),
    ],
)
def test_task_matrices(shape: tuple[int, ...], kind: Kind, view: MatrixView | None) -> None:
    assert matrix_view(TensorInfo("x", shape, "F32"), kind) == view


def test_the_papers_matrices() -> None:
    assert paper_matrix_view(TensorInfo("a.weight", (6, 4), "F32")) == MatrixView(1, 6, 4)
    assert paper_matrix_view(TensorInfo("text_projection.weight", (6, 4), "F32")) is None
    assert paper_matrix_view(TensorInfo("conv.weight", (6, 3, 2, 2), "F32")) is None


def test_depth_runs_from_the_first_layer_to_the_last() -> None:
    names = [f"model.layers.{i}.w" for i in range(5)] + [f"decoder.block.{i}.w" for i in range(3)]
    depth = Depths(names)
    assert [depth(f"model.layers.{i}.w") for i in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert depth("decoder.block.1.w") == 0.5
    assert depth("model.embed_tokens.weight") == 0
    assert depth("model.norm.weight") == depth("lm_head.weight") == 1


def test_groups_leave_out_the_numbers_of_layers() -> None:
    assert group_of("layers.3.experts.10.w1.weight") == "layers.*.experts.*.w1.weight"
    assert group_of("mlp.fc1.weight") == "mlp.fc1.weight"


@pytest.mark.parametrize(
    ("shapes", "axes"),
    [
        ({"model.embed_tokens.weight": (64, 8), "lm_head.weight": (64, 8)}, [0, 0]),
        ({"transformer.wte.weight": (64, 8), "transformer.wpe.weight": (64, 8)}, [0, None]),
        ({"shared.weight": (64, 8), "final_logits_bias": (1, 64)}, [0, 1]),
        (
            {
                "bert.embeddings.word_embeddings.weight": (64, 64),
                "bert.embeddings.position_embeddings.weight": (64, 64),
                "bert.embeddings.token_type_embeddings.weight": (2, 64),
                "cls.predictions.bias": (64,),
                "cls.predictions.decoder.weight": (64, 64),
                "bert.encoder.layer.0.attention.self.query.bias": (64,),
                "classifier.weight": (64, 64),
            },
            [0, None, None, 0, 0, None, None],
        ),
        ({"model.embed_tokens.weight": (64, 8), "model.embed_tokens_per_layer.weight": (62, 99)}, [0, 0]),
        ({"text_model.embeddings.token_embedding.weight": (64, 8), "text_projection.weight": (64, 8)}, [0, None]),
        ({"vit.embeddings.cls_token": (1, 1, 8), "classifier.weight": (5, 8), "lm_head.weight": (5, 8)}, [None] * 3),
        ({"model.embed_tokens.weight": (64, 8), "score.weight": (2, 8), "lm_head.weight": (63, 8)}, [0, None, None]),
    ],
)
def test_which_tensors_have_one_row_a_token(shapes: dict[str, tuple[int, ...]], axes: list[int | None]) -> None:
    found = vocabulary_axes([TensorInfo(name, shape, "F32") for name, shape in shapes.items()])
    assert [found.get(name) for name in shapes] == axes
