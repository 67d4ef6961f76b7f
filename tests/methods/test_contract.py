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


def max_tasks(method: MergeMethod) -> int | None:
    return method.max_tasks


def has_shares(method: MergeMethod) -> bool:
    """Whether its weights are shares of an average of models, and not factors on the tasks' changes."""
    return method.base in ("model", "either")


# In float32, with matrices of up to 16 x 40 that some methods factor; where one law asks for two merges, both are off.
CLOSE = factorisation(torch.float32, 2 * (16 + 40), condition=3)

CASES = [Case(method, p) for name, method in METHODS.items() for p in [{}, *VARIANTS.get(name, [])]]
# A law that not all methods keep is tested of those that say in their registration that they do.
ELEMENTWISE = [case for case in CASES if case.method.elementwise(case.parameters)]
WITH_SHARES = [case for case in CASES if has_shares(case.method)]
WITH_FACTORS = [case for case in CASES if not has_shares(case.method)]


@pytest.fixture(params=CASES, ids=str)
def merge(request: pytest.FixtureRequest) -> Case:
    case: Case = request.param
    return case


@pytest.fixture
def deltas(deltas: Tensor, merge: Case) -> Tensor:
    """No more of them than the method takes."""
    return deltas[: max_tasks(merge.method)]


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
        order = [*range(1, len(deltas)), 0]
        shuffled = Deltas.of(deltas[order], tasks=[f"task{t}" for t in order])
        torch.testing.assert_close(merge(shuffled), merge(deltas), rtol=CLOSE, atol=CLOSE)

    def test_twice_the_change_merges_to_twice_the_change(self, merge: Case, deltas: Tensor) -> None:
        torch.testing.assert_close(merge(2 * deltas), 2 * merge(deltas), rtol=CLOSE, atol=CLOSE)

    @pytest.mark.parametrize("power", [-90, 80])
    def test_the_size_of_the_change_does_not_matter(self, merge: Case, deltas: Tensor, power: int) -> None:
        merged = merge(deltas * 2.0**power) * 2.0**-power
        torch.testing.assert_close(merged, merge(deltas), rtol=CLOSE, atol=CLOSE)

    def test_a_task_of_weight_0_has_no_say(self, merge: Case, deltas: Tensor) -> None:
        """Its delta may be anything."""
        silenced = deltas.clone()
        silenced[-1] = 1000.0
        weights = [1.0] * (len(deltas) - 1) + [0.0]
        merged = [merge(Deltas.of(d, weights=weights)) for d in (deltas, silenced)]
        torch.testing.assert_close(merged[0], merged[1], rtol=CLOSE, atol=CLOSE)

    @pytest.mark.parametrize("merge", WITH_FACTORS, ids=str)
    def test_factors_of_0_merge_to_no_change(self, merge: Case, deltas: Tensor) -> None:
        assert not merge(Deltas.of(deltas, weights=[0.0] * len(deltas))).any()

    @pytest.mark.parametrize("merge", WITH_SHARES, ids=str)
    def test_of_shares_only_the_ratio_counts(self, merge: Case, deltas: Tensor) -> None:
        shares = [0.5, 1.0, 1.5, 2.0][: len(deltas)]
        tripled = [3 * share for share in shares]
        merged = [merge(Deltas.of(deltas, weights=weights)) for weights in (shares, tripled)]
        torch.testing.assert_close(merged[0], merged[1], rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("merge", ELEMENTWISE, ids=str)
    def test_a_piece_of_a_tensor_is_merged_as_in_the_whole(self, merge: Case, deltas: Tensor) -> None:
        whole, half = merge(_piece(deltas, 0)), len(deltas[0]) // 2
        row = deltas[0][0].numel()  # entries in a row
        above = merge(_piece(deltas[:, :half], 0, _survey(merge, deltas)))
        below = merge(_piece(deltas[:, half:], half * row, _survey(merge, deltas)))
        assert torch.equal(torch.cat([above, below]), whole)

    @pytest.mark.slow
    def test_computes_where_its_deltas_are(self, merge: Case, deltas: Tensor) -> None:
        with AbsentDevice():
            there = Deltas.of(deltas.to(DEVICE), weights=[0.5, 1.0, 1.5, 2.0][: len(deltas)])
            with DEVICE:
                merged = merge(there)
            assert merged.device == DEVICE
            merged = merged.cpu()
        here = merge(Deltas.of(deltas, weights=there.weights))
        torch.testing.assert_close(merged, here, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_says_what_it_does_and_where_it_is_from(method: MergeMethod) -> None:
    assert method.summary
    merges = bool(method(torch.ones(max_tasks(method) or 4, 6, 5)).any())
    assert method.paper.startswith("https://") or not merges
    documented = method.fn.__doc__ or ""
    for name, parameter in method.parameters.items():
        assert f"{name}:" in documented
        assert parameter.default is not None or "none" in parameter.type_name


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
