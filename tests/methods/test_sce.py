"""SCE against a transcription of the paper's three steps."""

import pytest
import torch
from torch import Tensor

from hf_tsv.methods import METHODS
from tests.support.tolerances import rounding

sce = METHODS["sce"]


def paper(deltas: Tensor, share: float) -> Tensor:
    """Select, calculate, erase (arXiv 2408.07990, section 3.3), in float64 over vectors."""
    flat = deltas.double().flatten(1)
    if share < 1:
        variance = flat.var(0, unbiased=False)
        selected = torch.zeros_like(variance)
        selected[variance.argsort(descending=True)[: int(int(variance.count_nonzero()) * share)]] = 1
        flat = flat * selected
    weights = flat.square().mean(1)
    weights = weights / weights.sum()
    agrees = (flat.sign() == flat.sum(0).sign()) * weights[:, None]
    return ((flat * agrees).sum(0) / agrees.sum(0).clamp(min=1e-300)).reshape(deltas.shape[1:])


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_agrees_with_the_paper(deltas: Tensor, share: float) -> None:
    tolerance = rounding(torch.float32, terms=2 * deltas[0].numel())  # the weights are sums over all entries
    want = paper(deltas, share).float()
    torch.testing.assert_close(sce(deltas, select_topk=share), want, rtol=tolerance, atol=tolerance)


def test_small_changes_are_weighed_as_large_ones_are() -> None:
    """mergekit 0.1.5 gives all tasks the same weight where the mean squares sum to less than 1e-6."""
    deltas = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    torch.testing.assert_close(sce(deltas * 1e-4), sce(deltas) * 1e-4)


def test_nothing_selected_is_no_change() -> None:
    assert not sce(torch.ones(2, 5), select_topk=0.0).any()
