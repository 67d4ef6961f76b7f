"""Recognise what a tensor is by its name and shape alone: there is no list of architectures."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from hf_tsv.checkpoints.protocol import TensorInfo

Kind = Literal["linear", "embedding", "head", "norm", "bias", "conv", "router", "expert", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Patterns for single components of a tensor's name, as the transformers and diffusers libraries name their modules.
_EMBEDDING = re.compile(r"embed|^wte$|^wpe$|^shared$|relative_attention_bias")
_HEAD = re.compile(
    r"^(lm_head|classifier|score|qa_outputs|heads?|cls|.*_(head|projection|predictor)|predictions|output_projection)$"
)
_NORM = re.compile(r"norm|layrnorm|^ln(_|$|\d)|^bn\d*$")
_ROUTER = re.compile(r"^(router|gate|shared_expert_gate)$")
_EXPERT = re.compile(r"^experts$")
# Modules before the stack of layers, whose depth is 0.
_BEFORE_LAYERS = re.compile(r"embed|^wte$|^wpe$|^shared$|^pre_|patch|^conv\d*$|stem|cls_token|class_embedding")
# Embeddings of things other than tokens, and heads that score every token.
_OF_NO_TOKENS = re.compile(r"pos|type|wpe|relative|patch|time|speaker|label|class|query|segment|lang|image|visual")
_OVER_TOKENS = re.compile(r"^(lm_head|predictions|output_projection|output|final_logits_bias)$")


@dataclass(frozen=True)
class MatrixView:
    """A tensor seen as `count` task matrices of m rows and n columns each; count is 1 except for stacked experts."""

    count: int
    m: int
    n: int


def kind_of(info: TensorInfo) -> Kind:
    """Return a tensor's kind. If the name says nothing, the shape decides."""
    *owners, leaf = info.name.split(".")  # the enclosing modules, and the parameter's own name
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
    # Before "head" and "linear": many models call a router gate, and a part of every MLP gate_proj.
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
    """Return how a tensor is cut into task matrices; None for a tensor that is averaged instead.

    A conv kernel (out, in / groups, *k) is one matrix (out, in / groups * k). A depthwise kernel mixes no channels and
    is averaged. Stacked experts (E, m, n) are E matrices. Other tensors with three or more axes are averaged.
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
    """Return a tensor's view by the authors' rule: one matrix if it has two axes and isn't `text_projection`."""
    if len(info.shape) != 2 or "text_projection" in info.name:
        return None
    return MatrixView(1, *info.shape)


class Depths:
    """The depth of a tensor in its stack of layers, from 0 at the first layer to 1 at the last.

    Tensors before the layers are at 0, tensors after them at 1. A layer is a number in a name; the stack is the name
    up to that number, so encoder and decoder are counted separately.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._last: Counter[str] = Counter()
        for name in names:
            stack, layer = layer_of(name)
            if layer is not None:
                self._last[stack] = max(self._last[stack], layer)

    @property
    def layers(self) -> int:
        """The number of layers in the largest stack."""
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
    """Return the module type of a tensor: its name with every layer and expert number replaced by `*`."""
    return _NUMBER.sub("*", name)


def layer_of(name: str) -> tuple[str, int | None]:
    """Return a tensor's stack of layers and its layer number there; an empty stack and None if it is in no layer."""
    match = _NUMBER.search(name)
    return (name[: match.start()], int(match.group())) if match else ("", None)


def vocabulary_axes(tensors: Sequence[TensorInfo]) -> dict[str, int]:
    """Return the axis of the tokens for each tensor with one row per token.

    These are token embeddings, language model heads and the heads' biases. A head is recognised by its name, and has as
    many rows as the largest token embedding.
    """
    embeddings = []
    for info in tensors:
        # Only the names of the tensor and of its own module are checked: outer modules can have any name.
        own_name = ".".join(info.name.lower().split(".")[-2:])
        if kind_of(info) == "embedding" and not _OF_NO_TOKENS.search(own_name):
            embeddings.append(info)
    rows = max((info.shape[0] for info in embeddings), default=0)
    if not rows:
        return {}
    axes = {info.name: 0 for info in embeddings if info.shape[0] > 0.9 * rows}  # a second one may be slightly smaller
    for info in tensors:
        has_row_each = len(info.shape) <= 2 and info.shape[:1] == (rows,)
        is_row_of_all = info.shape == (1, rows)  # final_logits_bias
        is_named_so = any(_OVER_TOKENS.search(part) for part in info.name.split(".")[-3:])
        if info.is_float and is_named_so and (has_row_each or is_row_of_all):
            axes[info.name] = info.shape.index(rows)
    return axes
