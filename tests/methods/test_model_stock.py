"""Model Stock against the paper's formula, and where mergekit's answer is another."""

import itertools

import torch
from torch import Tensor

from hf_tsv.methods import METHODS
from tests.support.tolerances import rounding

model_stock = METHODS["model_stock"]


def paper(deltas: Tensor) -> Tensor:
    """r = T cos / (1 + (T - 1) cos) times the mean (arXiv 2403.19522, equation 7), over vectors in float64."""
    flat = deltas.double().flatten(1)
    pairs = itertools.combinations(flat, 2)
    cos = torch.stack([torch.cosine_similarity(a, b, dim=0) for a, b in pairs]).mean()
    ratio = len(flat) * cos / (1 + (len(flat) - 1) * cos)
    return (ratio * flat.mean(0)).reshape(deltas.shape[1:]).float()


def test_agrees_with_the_paper(deltas: Tensor) -> None:
    deltas = deltas + deltas.mean(0)
    tolerance = rounding(torch.float32, terms=2 * deltas[0].numel())  # the angles are sums over all entries
    torch.testing.assert_close(model_stock(deltas), paper(deltas), rtol=tolerance, atol=tolerance)


def test_every_row_by_itself_when_filter_wise(deltas: Tensor) -> None:
    rows = deltas.reshape(4, -1, deltas.shape[-1])
    want = torch.stack([paper(rows[:, i]) for i in range(rows.shape[1])])
    got = model_stock(deltas, filter_wise=True)
    # Over a row's entries; where 1 + 3 cos is nearly 0, an angle's error is amplified.
    tolerance = rounding(torch.float32, terms=2 * rows.shape[-1], condition=10)
    torch.testing.assert_close(got, want.reshape(got.shape), rtol=tolerance, atol=tolerance)


def test_models_that_agree_wholly_give_their_mean() -> None:
    delta = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model_stock(torch.stack([delta, 3 * delta])), 2 * delta)


def test_small_changes_have_angles_too() -> None:
    """mergekit 0.1.5 clamps the product of two norms at 1e-6, which is that of two biases changed by 1e-3 each."""
    delta = torch.full((2, 4), 1e-4)
    torch.testing.assert_close(model_stock(delta), delta[0])


def test_changes_that_cancel_leave_the_base() -> None:
    delta = torch.ones(3)
    assert not model_stock(torch.stack([delta, -delta])).any()
