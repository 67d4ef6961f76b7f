"""Laws that every merge method keeps. A method is tested from the moment it is registered."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_tsv.methods import METHODS, Deltas, MergeMethod
from tests.support.absent_device import DEVICE, AbsentDevice
from tests.support.tolerances import factorisation

# Beside the defaults, what brings out more of a method than they do.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "breadcrumbs": [{"density": 0.6, "gamma": 0.1}],
    "breadcrumbs_ties": [{"density": 0.6, "gamma": 0.1, "normalize": True}],
    "consensus_ta": [{"k": 1, "mask_lambda": 0.2}],
    "consensus_ties": [{"trim": "tensor"}],
    "core_space": [{"inside": "dare_linear", "density": 0.5}, {"inside": "tsv_m"}],
    "cart": [{"rank_fraction": 0.3, "scale": 1.0}],
    "dare_linear": [{"density": 0.5}, {"density": 0.5, "rescale": "norm"}],
    "dare_ties": [{"density": 0.5, "seed": 3}],
    "della": [{"density": 0.5}],
    "della_linear": [{"density": 0.5, "rescale": "norm"}],
    "iso_c": [{"tolerance": 0.0}],
    "iso_cts": [{"common_space_fraction": 0.3}],
    "knots": [{"inside": "dare_ties", "density": 0.5}, {"inside": "dare_linear", "density": 0.5}],
    "model_stock": [{"filter_wise": True}],
    "nuslerp": [{"nuslerp_flatten": False}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}],
    "sce": [{"select_topk": 0.5}],
    "subspace_boosting": [{"of": "ties", "beta": 0.3}, {"of": "tsv_m"}],
    "svc": [{"of": "consensus_ties"}, {"of": "tsv_m", "alpha": 0.25}],
    "ties": [{"trim": "tensor"}],
    "tsv_m": [{"parity": "paper"}],
}


@dataclass(frozen=True)
class Case:
    """A method with its defaults, or as one of its variants."""

    method: MergeMethod
    parameters: Mapping[str, Any]

    def __call__(self, deltas: Tensor | Deltas) -> Tensor:
        return self.method(deltas, **self.parameters)

    def __str__(self) -> str:
        return "-".join([self.method.name, *(f"{key}={value}" for key, value in self.parameters.items())])


# In float32, with matrices of up to 16 x 40 that some methods factor; where one law asks for two merges, both are off.
CLOSE = factorisation(torch.float32, 2 * (16 + 40), condition=3)

CASES = [Case(method, p) for name, method in METHODS.items() for p in [{}, *VARIANTS.get(name, [])]]


@pytest.fixture(params=CASES, ids=str)
def merge(request: pytest.FixtureRequest) -> Case:
    case: Case = request.param
    return case


@pytest.fixture
def deltas(deltas: Tensor, merge: Case) -> Tensor:
    """No more of them than the method takes."""
    return deltas[: merge.method.max_tasks]


class TestEveryMethod:
    def test_keeps_shape_and_dtype(self, merge: Case, deltas: Tensor) -> None:
        for dtype in (torch.float32, torch.float64):
            merged = merge(deltas.to(dtype))
            assert (merged.shape, merged.dtype) == (deltas.shape[1:], dtype)

    def test_leaves_its_input_alone(self, merge: Case, deltas: Tensor) -> None:
        before = deltas.clone()
        merge(deltas)
        assert torch.equal(deltas, before)

    def test_same_input_same_bits(self, merge: Case, deltas: Tensor) -> None:
        assert torch.equal(merge(deltas), merge(deltas))

    def test_no_change_merges_to_no_change(self, merge: Case, deltas: Tensor) -> None:
        assert not merge(torch.zeros_like(deltas)).any()

    def test_task_order_does_not_matter(self, merge: Case, deltas: Tensor) -> None:
        order = [t for t in (2, 0, 3, 1) if t < len(deltas)]
        shuffled = Deltas.of(deltas[order], tasks=[f"task{t}" for t in order])
        torch.testing.assert_close(merge(shuffled), merge(deltas), rtol=CLOSE, atol=CLOSE)

    def test_twice_the_change_merges_to_twice_the_change(self, merge: Case, deltas: Tensor) -> None:
        torch.testing.assert_close(merge(2 * deltas), 2 * merge(deltas), rtol=CLOSE, atol=CLOSE)

    @pytest.mark.parametrize("power", [-90, 80])
    def test_the_size_of_the_change_does_not_matter(self, merge: Case, deltas: Tensor, power: int) -> None:
        merged = merge(deltas * 2.0**power) * 2.0**-power
        torch.testing.assert_close(merged, merge(deltas), rtol=CLOSE, atol=CLOSE)

    def test_weights_scale_with_their_tasks(self, merge: Case, deltas: Tensor) -> None:
        """A task of weight 0 has no say where weights are factors; its delta may be anything."""
        silenced = deltas.clone()
        silenced[-1] = 1000.0
        weights = [1.0] * (len(deltas) - 1) + [0.0]
        merged = [merge(Deltas.of(d, weights=weights)) for d in (deltas, silenced)]
        torch.testing.assert_close(merged[0], merged[1], rtol=CLOSE, atol=CLOSE)

    def test_weights_of_0_alone_merge_to_no_change(self, merge: Case, deltas: Tensor) -> None:
        silent = Deltas.of(deltas, weights=[0.0] * len(deltas))
        if merge.method.name not in ("linear", "karcher", "nuslerp", "slerp"):  # whose weights are shares, or none
            assert not merge(silent).any()

    def test_a_piece_of_a_tensor_is_merged_as_in_the_whole(self, merge: Case, deltas: Tensor) -> None:
        if not merge.method.elementwise(merge.parameters):
            return
        whole, first = merge(_piece(deltas, 0)), len(deltas[0]) // 2
        for rows, offset in ((deltas[:, :first], 0), (deltas[:, first:], first * deltas[0][0].numel())):
            survey = _survey(merge, deltas)
            assert torch.equal(
                merge(_piece(rows, offset, survey)), whole[offset // deltas[0][0].numel() :][: rows.shape[1]]
            )

    def test_computes_where_its_deltas_are(self, merge: Case, deltas: Tensor) -> None:
        with AbsentDevice():
            there = Deltas.of(deltas.to(DEVICE), weights=[0.5, 1.0, 1.5, 2.0][: len(deltas)])
            with DEVICE:
                merged = merge(there)
            assert merged.device == DEVICE
            merged = merged.cpu()
        here = merge(Deltas.of(deltas, weights=there.weights))
        torch.testing.assert_close(merged, here, rtol=CLOSE, atol=CLOSE)

    def test_says_what_it_does_and_where_it_is_from(self, merge: Case) -> None:
        method = merge.method
        assert method.summary
        assert method.paper.startswith("https://") or method.name == "base"
        documented = method.fn.__doc__ or ""
        assert all(f"{name}:" in documented for name in method.parameters)
        assert all(
            parameter.default is not None or "none" in parameter.type_name for parameter in method.parameters.values()
        )


def _piece(deltas: Tensor, offset: int, survey: Any = None) -> Deltas:
    piece = Deltas.of(deltas)
    piece.offset, piece.survey = offset, survey
    return piece


def _survey(merge: Case, deltas: Tensor) -> Any:
    """What a first pass over the whole tensor finds."""
    survey = merge.method.make_survey(deltas.dtype, len(deltas), merge.parameters)
    while survey and survey.share:
        for t, delta in enumerate(deltas):
            survey.observe(t, delta)
        survey.advance()
    return survey


def test_every_file_of_a_method_is_registered() -> None:
    from pathlib import Path

    import hf_tsv.methods

    files = {path.stem for path in Path(hf_tsv.methods.__file__).parent.glob("[a-z]*.py")}
    assert files == set(METHODS)
