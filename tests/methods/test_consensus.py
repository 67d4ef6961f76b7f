"""Consensus Merging against a transcription of the authors' code, over whole vectors in float64."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hf_tsv import merge_state_dicts, plan
from hf_tsv.errors import PlanError
from hf_tsv.methods import METHODS, Deltas
from tests.support import models, oracles


def consensus(deltas: Tensor, merged: Tensor, k: int, lambdas: list[float]) -> Tensor:
    """tau where at least k of the masks |tau_t| > lambda_t |tau - tau_t| are 1 (arXiv 2405.07813, section 4)."""
    masks = torch.stack([d.abs() > lam * (merged - d).abs() for d, lam in zip(deltas.double(), lambdas, strict=True)])
    return (merged * (masks.sum(0) >= k)).float()


@pytest.mark.parametrize("k", range(5))
def test_consensus_ta_agrees_with_the_paper(deltas: Tensor, k: int) -> None:
    lambdas = [0.2, 0.6, 0.4, 0.3]
    want = consensus(deltas, deltas.double().sum(0), k, lambdas)
    torch.testing.assert_close(METHODS["consensus_ta"](deltas, k=k, mask_lambda=lambdas), want)


@pytest.mark.parametrize("k", [1, 2])
def test_consensus_ties_agrees_with_the_paper(deltas: Tensor, k: int) -> None:
    want = consensus(deltas, oracles.ties(deltas, 0.2, mean=False), k, [0.4] * 4)
    torch.testing.assert_close(METHODS["consensus_ties"](deltas, k=k), want)


@pytest.mark.parametrize("method", ["consensus_ta", "consensus_ties"])
def test_more_tasks_than_there_are_use_nothing(method: str, tmp_path: Path) -> None:
    recipe = models.recipe(models.zoo(models.bert, tmp_path), method, more="parameters: {k: 4}\n")
    with pytest.raises(PlanError, match=rf"recipe.yaml:\d+: {method}: no weight is used by 4 of 3 tasks\. Set k to 3"):
        plan(recipe)


def test_k_0_is_the_method_below(deltas: Tensor) -> None:
    assert torch.equal(METHODS["consensus_ta"](deltas, k=0), METHODS["task_arithmetic"](deltas))
    assert torch.equal(METHODS["consensus_ties"](deltas, k=0), METHODS["ties"](deltas, normalize=False))


def test_trimming_is_over_all_tensors() -> None:
    """The larger tensor holds the top half of the vector, so that nothing of the other stays."""
    base = {"large": torch.zeros(1, 10), "small": torch.zeros(1, 10)}
    task = {"large": torch.full((1, 10), 5.0), "small": torch.ones(1, 10)}
    merged = merge_state_dicts(base, {"a": task, "b": task}, method="consensus_ties", density=0.4)
    assert (int(merged["large"].count_nonzero()), int(merged["small"].count_nonzero())) == (10, 0)


def test_what_is_selfish_or_shared_is_noted() -> None:
    held = Deltas.of(torch.tensor([[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, -0.9]]))
    METHODS["consensus_ta"].fn(held, mask_lambda=0.6)
    # entry 0: shared; 1: the first's alone; 2: unchanged; 3: the sum is 0.1, and 1 > 0.6 * 0.9, 0.9 > 0.6 * 1
    assert held.notes["used_by"] == [0, 1, 2]
