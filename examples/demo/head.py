"""A task's head: logistic regression on unit embeddings."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

PENALTY = 0.05  # on the squared weights, against the summed cross-entropy; heads are then sharp enough to teach


@dataclass(frozen=True)
class Head:
    """weight (C, d), bias (C,), and the C labels' names."""

    weight: Tensor
    bias: Tensor
    labels: tuple[str, ...]

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Logits, (N, C)."""
        return functional.linear(embeddings, self.weight, self.bias)

    def accuracy(self, embeddings: Tensor, labels: Tensor) -> float:
        """Share of the texts, embedded as (N, d), whose most likely label is the right one of `labels` (N,)."""
        return (self(embeddings).argmax(1) == labels).double().mean().item()

    def save(self, path: Path) -> None:
        tensors = {"weight": self.weight, "bias": self.bias}
        save_file(tensors, path, metadata={"labels": json.dumps(self.labels)})

    @classmethod
    def load(cls, path: Path) -> "Head":
        with safe_open(path, framework="pt") as file:
            labels = json.loads(file.metadata()["labels"])
            return cls(file.get_tensor("weight"), file.get_tensor("bias"), tuple(labels))


def fit_head(embeddings: Tensor, labels: Tensor, names: tuple[str, ...]) -> Head:
    """The maximum of the penalised likelihood, which is unique: no seed, no learning rate.

    Args:
        embeddings: (N, d), any float dtype; computed in float64.
        labels: (N,) int64, indices into `names`.
        names: The C labels.
    """
    x = embeddings.double()
    weight = torch.zeros(len(names), x.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(len(names), dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        value = functional.cross_entropy(functional.linear(x, weight, bias), labels, reduction="sum")
        value = value + PENALTY * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        return value.item()

    optimizer.step(loss)  # type: ignore[no-untyped-call]  # torch has no types for it
    return Head(weight.detach().float(), bias.detach().float(), names)
