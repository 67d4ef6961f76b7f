"""What a tensor is, by its name and shape alone: there is no list of architectures."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from hf_tsv.checkpoints.protocol import TensorInfo

Kind = Literal["linear", "embedding", "head", "norm", "bias", "conv", "router", "expert", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Component by component of a tensor's name, as the transformers and diffusers libraries name their modules.
_EMBEDDING = re.compile(r"embed|^wte$|^wpe$|^shared$|relative_attention_bias")
_HEAD = re.compile(
    r"^(lm_head|classifier|score|qa_outputs|heads?|cls|.*_(head|projection|predictor)|predictions|output_projection)$"
)
_NORM = re.compile(r"norm|layrnorm|^ln(_|$|\d)|^bn\d*$")
_ROUTER = re.compile(r"^(router|gate|shared_expert_gate)$")
_EXPERT = re.compile(r"^experts$")
# What lies before the stack of layers, for its depth.
_BEFORE_LAYERS = re.compile(r"embed|^wte$|^wpe$|^shared$|^pre_|patch|^conv\d*$|stem|cls_token|class_embedding")
# Embeddings of other things than tokens, and heads that score every token.
_OF_NO_TOKENS = re.compile(r"pos|type|wpe|relative|patch|time|speaker|label|class|query|segment|lang|image|visual")
_OVER_TOKENS = re.compile(r"^(lm_head|predictions|output_projection|output|final_logits_bias)$")


@dataclass(frozen=True)
class MatrixView:
    """A tensor seen as `count` task matrices of m rows and n columns each; count is 1 but for stacked experts."""

    count: int
    m: int
    n: int


def kind_of(info: TensorInfo) -> Kind:
    """What a tensor is. A name that says nothing leaves the shape to decide."""
    *owners, leaf = info.name.split(".")  # the modules around it, and the parameter's own name
    owner = owners[-1] if owners else leaf
    rank = len(info.shape)
    if not info.is_float:
        return "other"
    if leaf.endswith("bias") and rank == 1:
        return "bias"
    if rank <= 1:
        return "norm" if _NORM.search(owner.lower()) else "other"
    if any(_EXPERT.search(part) for part in (*owners, leaf)):
        return "expert"
    # Before "head" and "linear": a router is called gate in many models, as is a part of every MLP (gate_proj).
    if _ROUTER.search(owner):
        return "router"
    if rank == 2 and any(_EMBEDDING.search(part) for part in (owner, leaf)):
        return "embedding"
    if rank == 2 and any(_HEAD.search(part) for part in (owner, *owners)):
        return "head"
    if rank == 2:
        return "linear"
    return "conv" if rank > 3 or any("conv" in part for part in owners) else "other"


def matrix_view(info: TensorInfo, kind: Kind) -> MatrixView | None:
    """How a tensor is cut into task matrices; None for what is averaged instead.

    A conv kernel (out, in / groups, *k) is one matrix (out, in / groups * k). A depthwise one mixes no channels and is
    averaged. Stacked experts (E, m, n) are E matrices. Other tensors of three and more axes are averaged.
    """
    shape = info.shape
    if not info.numel:
        return None  # an empty matrix has no singular values
    if len(shape) == 2:
        return MatrixView(1, *shape)
    if kind == "expert" and len(shape) == 3:
        return MatrixView(*shape)
    if kind != "conv":
        return None
    is_depthwise = shape[1] == 1 and shape[0] > 1  # as many groups as there are channels
    return None if is_depthwise else MatrixView(1, shape[0], info.numel // shape[0])


def paper_matrix_view(info: TensorInfo) -> MatrixView | None:
    """The authors' rule: every two-dimensional tensor but `text_projection`, and nothing else."""
    if len(info.shape) != 2 or "text_projection" in info.name:
        return None
    return MatrixView(1, *info.shape)


class Depths:
    """How deep in its stack of layers a tensor sits, from 0 at the first layer to 1 at the last.

    What comes before the layers is at 0, what comes after them at 1. A layer is a number in a name; the stack is
    the name up to it, so encoder and decoder count apart.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._last: Counter[str] = Counter()
        for name in names:
            stack, layer = layer_of(name)
            if layer is not None:
                self._last[stack] = max(self._last[stack], layer)

    @property
    def layers(self) -> int:
        """Layers of the largest stack."""
        return max(self._last.values(), default=-1) + 1

    def __call__(self, name: str) -> float:
        stack, layer = layer_of(name)
        if layer is not None:
            last = self._last[stack]
            return layer / last if last else 0.0
        is_before = any(_BEFORE_LAYERS.search(part) for part in name.split("."))
        return 0.0 if is_before else 1.0


_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a whole component of a name


def group_of(name: str) -> str:
    """The module type of a tensor: its name with every layer and expert number replaced by `*`."""
    return _NUMBER.sub("*", name)


def layer_of(name: str) -> tuple[str, int | None]:
    """The stack of layers that a tensor is in, and its number there; None for what is in no layer."""
    match = _NUMBER.search(name)
    return (name[: match.start()], int(match.group())) if match else ("", None)


def vocabulary_axes(tensors: Sequence[TensorInfo]) -> dict[str, int]:
    """The tensors that have one row a token, and the axis: embeddings of tokens, language model heads, their biases.

    A head has as many rows as the largest embedding of tokens, and a name of one.
    """
    embeddings = []
    for info in tensors:
        # The names of its module and of itself are looked at: those around them may say anything.
        own_name = ".".join(info.name.lower().split(".")[-2:])
        if kind_of(info) == "embedding" and not _OF_NO_TOKENS.search(own_name):
            embeddings.append(info)
    rows = max((info.shape[0] for info in embeddings), default=0)
    if not rows:
        return {}
    axes = {info.name: 0 for info in embeddings if info.shape[0] > 0.9 * rows}  # a second one may be a bit smaller
    for info in tensors:
        has_row_each = len(info.shape) <= 2 and info.shape[:1] == (rows,)
        is_row_of_all = info.shape == (1, rows)  # final_logits_bias
        is_named_so = any(_OVER_TOKENS.search(part) for part in info.name.split(".")[-3:])
        if info.is_float and is_named_so and (has_row_each or is_row_of_all):
            axes[info.name] = info.shape.index(rows)
    return axes
