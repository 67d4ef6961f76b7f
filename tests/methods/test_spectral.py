"""The spectral methods against transcriptions, in float64, of the authors' code or the paper's formula."""

import math

import pytest
import torch
from torch import Tensor

import hf_tsv.merging.plan
from hf_tsv import merge_state_dicts
from hf_tsv.methods import METHODS, Deltas, Tasks, TensorSource
from tests.support.oracles import Products, core_space, core_ties, polar, svd
from tests.support.tolerances import factorisation

SHAPES = [(24, 16), (16, 40), (12, 12)]
CLOSE = factorisation(torch.float32, 16 + 40)  # the methods that go by float32; those are the larger shapes
SPECTRAL = ["iso_c", "iso_cts", "cart", "core_space", "knots", "wudi"]


@pytest.fixture(params=SHAPES, ids=str)
def matrices(request: pytest.FixtureRequest) -> Tensor:
    """Four task matrices with something in common, (4, m, n) float32."""
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(4, *request.param, generator=generator) * torch.tensor([1.0, 0.5, 2.0, 0.7])[:, None, None]
    return own + torch.randn(request.param, generator=generator)


def iso_c(deltas: Tensor) -> Tensor:
    """`iso_c` of danielm1405/iso-merging."""
    u, s, vh = svd(deltas.double().sum(0))
    return u @ torch.diag(s.mean().expand_as(s)) @ vh


def iso_cts(deltas: Tensor, fraction: float) -> Tensor:
    """`iso_cts` of danielm1405/iso-merging: blocks of each task, then the common one, in zeroed thin factors."""
    num_tasks, m, n = deltas.shape
    r = min(m, n)
    common = r - round((r - int(r * fraction)) / num_tasks) * num_tasks
    own = (r - common) // num_tasks
    u, s, vh = svd(deltas.double().sum(0))
    us, ss, vhs = [], [], []
    for delta in deltas.double():
        ut, st, vt = svd(delta - u[:, :common] @ u[:, :common].T @ delta)
        us.append(ut[:, :own])
        ss.append(st[:own])
        vhs.append(vt[:own])
    left, right = torch.cat([*us, u[:, :common]], 1), torch.cat([*vhs, vh[:common]])
    return polar(left) @ polar(right) * torch.cat([*ss, s[:common]]).mean()


def cart(deltas: Tensor, fraction: float, scale: float) -> Tensor:
    """`get_cart_delta_w` of apanariello4/core-space-merging."""
    mean = deltas.double().mean(0)
    total = torch.zeros_like(mean)
    for delta in deltas.double():
        u, s, vh = svd(delta - mean)
        k = math.ceil(fraction * len(s))
        total += u[:, :k] @ torch.diag(s[:k]) @ vh[:k]
    return mean + scale * total


def knots(deltas: Tensor, density: float) -> Tensor:
    """The `knots` space of apanariello4/core-space-merging with `ties_merging` inside."""
    n = deltas.shape[2]
    u, s, vh = svd(torch.cat(list(deltas), dim=1))
    flat = torch.stack(list(vh.split(n, dim=1))).flatten(1)
    kth = flat.abs().kthvalue(flat.shape[1] - int(flat.shape[1] * density), dim=1, keepdim=True).values
    flat = flat * (flat.abs() >= kth)
    sign = flat.sum(0).sign()
    agrees = flat * (flat.sign() == sign)
    merged = agrees.sum(0) / (agrees != 0).sum(0).clamp(min=1)
    return u @ torch.diag(s) @ merged.reshape(len(s), n)


def core_tsv(cores: Tensor) -> Tensor:
    """`get_tsv_delta_w` of that repository."""
    k = int(len(cores[0]) / len(cores))
    us, ss, vhs = zip(*map(svd, cores), strict=True)
    left, right = torch.cat([u[:, :k] for u in us], 1), torch.cat([vh[:k] for vh in vhs])
    return polar(left) @ torch.diag(torch.cat([s[:k] for s in ss])) @ polar(right)


def svc(merged: Tensor, deltas: Tensor, alpha: float) -> Tensor:
    """`subspace_consistency_spectral_calibration` of FusionBench 0.2.33, one direction at a time."""
    u, s, vh = svd(merged)
    factors = []
    for r in range(len(s)):
        responses = [u[:, r] @ delta for delta in deltas.double()]
        own = u[:, r] @ merged.double()
        counts = [max(alpha, float(own @ a) / float(a @ a)) for a in responses]
        factors.append(len(deltas) / sum(counts))
    return u @ torch.diag(s * torch.tensor(factors, dtype=torch.float64)) @ vh


def boosted(merged: Tensor, beta: float) -> Tensor:
    """`subspace_boosting` of the authors' code: clamped to the first singular value that reaches the share."""
    u, s, vh = svd(merged)
    cutoff = int((s.cumsum(0) / s.sum() >= beta).nonzero()[0])
    return u @ torch.diag(s.clamp(min=float(s[cutoff]))) @ vh


def close(got: Tensor, want: Tensor) -> None:
    assert float((got.double() - want).norm() / want.norm()) < CLOSE


def test_iso_c_is_the_authors(matrices: Tensor) -> None:
    close(METHODS["iso_c"](matrices), iso_c(matrices))


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.8, 1.0])
def test_iso_cts_is_the_authors(matrices: Tensor, fraction: float) -> None:
    close(METHODS["iso_cts"](matrices, common_space_fraction=fraction), iso_cts(matrices, fraction))


def test_iso_cts_without_room_for_tasks_is_iso_c(matrices: Tensor) -> None:
    close(METHODS["iso_cts"](matrices, common_space_fraction=1.0), iso_c(matrices))


@pytest.mark.parametrize(("fraction", "scale"), [(0.04, 0.1), (0.3, 1.0)])
def test_cart_is_the_authors(matrices: Tensor, fraction: float, scale: float) -> None:
    close(METHODS["cart"](matrices, rank_fraction=fraction, scale=scale), cart(matrices, fraction, scale))


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_knots_is_the_authors(matrices: Tensor, density: float) -> None:
    close(METHODS["knots"](matrices.double(), density=density), knots(matrices, density))


def test_knots_of_a_tall_matrix_goes_by_the_other_gram_matrix() -> None:
    tall = torch.randn(3, 50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    close(METHODS["knots"](tall, density=0.4), knots(tall, 0.4))


def test_knots_of_one_column() -> None:
    column = torch.randn(3, 30, 1, generator=torch.Generator().manual_seed(0))
    close(METHODS["knots"](column, inside="dare_linear", density=1.0), column.double().sum(0))


def test_knots_with_everything_kept_and_added_is_the_sum(matrices: Tensor) -> None:
    close(METHODS["knots"](matrices, inside="dare_linear", density=1.0), matrices.double().sum(0))


def adapters(ranks: tuple[int, ...] = (4, 4, 4), size: float = 1.0) -> Products:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(40, r, generator=generator) * size**i, torch.randn(r, 30, generator=generator))
        for i, r in enumerate(ranks)
    ]


def stored(products: Products) -> Deltas:
    """The deltas of adapters."""
    return Deltas(
        TensorSource(lambda t: products[t][0] @ products[t][1], product=lambda t: products[t]),
        Tasks.alike(len(products)),
        shape=(40, 30),
        dtype=torch.float32,
        is_matrix=True,
    )


@pytest.mark.parametrize("ranks", [(4, 4, 4), (2, 8, 3), (12, 12, 12)])  # the last fill the shorter side
@pytest.mark.parametrize("density", [0.1, 0.5])
def test_core_space_is_the_authors(density: float, ranks: tuple[int, ...]) -> None:
    products = adapters(ranks, 0.5)
    want = core_space(products, lambda cores: core_ties(cores, density))
    close(METHODS["core_space"].fn(stored(products), density=density), want)


def test_tsv_and_iso_in_core_space_are_the_authors() -> None:
    products = adapters()
    core = METHODS["core_space"].fn
    close(core(stored(products), inside="tsv_m"), core_space(products, core_tsv))
    close(core(stored(products), inside="iso_c"), core_space(products, iso_c))
    close(core(stored(products), inside="cart"), core_space(products, lambda cores: cart(cores, 0.04, 0.1)))


def test_core_space_loses_nothing() -> None:
    """What goes by singular vectors, or adds up, is there what it is outside, from factors and from deltas alike."""
    products = adapters(size=0.7)
    deltas = torch.stack([b @ a for b, a in products])
    for held in (stored(products), Deltas.of(deltas)):
        close(METHODS["core_space"].fn(held, inside="tsv_m"), METHODS["tsv_m"](deltas).double())
        close(METHODS["core_space"].fn(held, inside="dare_linear", density=1.0), deltas.double().sum(0))


def test_a_model_that_is_no_adapter_is_split_evenly_in_core_space(matrices: Tensor) -> None:
    products = []
    for delta in matrices:
        u, s, vh = svd(delta)
        products.append((u * s.sqrt(), s.sqrt()[:, None] * vh))
    close(METHODS["core_space"](matrices), core_space(products, lambda cores: core_ties(cores, 0.2)))


@pytest.mark.parametrize("alpha", [0.25, 1.0])
@pytest.mark.parametrize("of", ["task_arithmetic", "tsv_m"])
def test_svc_is_fusion_benchs(matrices: Tensor, of: str, alpha: float) -> None:
    merged = METHODS[of](matrices)
    close(METHODS["svc"](matrices, of=of, alpha=alpha), svc(merged, matrices, alpha))


@pytest.mark.parametrize("beta", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("of", ["task_arithmetic", "consensus_ta"])
def test_subspace_boosting_is_the_authors(matrices: Tensor, of: str, beta: float) -> None:
    merged = METHODS[of](matrices)
    close(METHODS["subspace_boosting"](matrices, of=of, beta=beta), boosted(merged, min(beta, 1 - 1e-12)))


def wudi_loss(merged: Tensor, deltas: Tensor) -> Tensor:
    """Equation 11 of arXiv 2503.08099."""
    products = (merged - deltas) @ deltas.transpose(1, 2)
    return (products.square().sum((1, 2)) / deltas.square().sum((1, 2))).sum()


def test_wudi_has_no_gradient_left(matrices: Tensor) -> None:
    deltas = matrices.double()
    merged = METHODS["wudi"](deltas, tolerance=1e-6).requires_grad_()
    start = deltas.sum(0).requires_grad_()
    (found,) = torch.autograd.grad(wudi_loss(merged, deltas), merged)
    (first,) = torch.autograd.grad(wudi_loss(start, deltas), start)
    assert float(found.norm()) < 1e-9 * float(first.norm())


def test_wudi_does_not_blow_up_where_the_tasks_barely_span_the_inputs() -> None:
    """T m = n: what the tasks hardly have in some input direction would be divided by nearly nothing."""
    deltas = torch.randn(4, 24, 96, generator=torch.Generator().manual_seed(0))
    most = deltas.flatten(1).norm(dim=1).max()
    assert METHODS["wudi"](deltas).norm() < 5 * most < METHODS["wudi"](deltas, tolerance=1e-6).norm()


def test_wudi_of_low_rank_tasks_is_where_descent_from_the_sum_ends() -> None:
    """Input directions that no task has stay as they are in the sum: without any change."""
    generator = torch.Generator().manual_seed(0)
    b, a = (torch.randn(3, *shape, generator=generator, dtype=torch.float64) for shape in ((10, 2), (2, 12)))
    deltas = b @ a
    merged = deltas.sum(0)
    covariance = (deltas.transpose(1, 2) @ deltas) / deltas.square().sum((1, 2))[:, None, None]
    for _ in range(20_000):
        merged = merged - 0.5 * ((merged - deltas) @ covariance).sum(0)
    torch.testing.assert_close(METHODS["wudi"](deltas, tolerance=1e-6), merged, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", SPECTRAL)
def test_what_is_no_matrix_gets_the_mean(method: str) -> None:
    bias = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert METHODS[method](bias, rest_scale=0.5).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("method", ["svc", "subspace_boosting"])
def test_after_ties_what_is_no_matrix_is_ties(method: str) -> None:
    """TIES trims over all tensors, the bias among them, before the other step has a look."""
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.zeros(6, 5), "bias": torch.zeros(40)}
    tasks = {t: {name: torch.randn(w.shape, generator=generator) for name, w in base.items()} for t in "ab"}
    merged = merge_state_dicts(base, tasks, method=method, of="ties")
    plain = merge_state_dicts(base, tasks, method="ties")
    assert torch.equal(merged["bias"], plain["bias"])
    assert not torch.allclose(merged["w"], plain["w"])


def test_a_sample_of_a_matrixs_rows_is_no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """TIES' thresholds come from a sample first, whatever is done with its result."""
    monkeypatch.setattr(hf_tsv.merging.plan, "_RUN", 4)
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.zeros(64, 5)}
    tasks = {t: {"w": torch.randn(64, 5, generator=generator)} for t in "ab"}
    merged = merge_state_dicts(base, tasks, method="subspace_boosting", of="ties", beta=1.0)
    ties = METHODS["ties"](torch.stack([tasks[t]["w"] for t in "ab"]))
    close(merged["w"], ties.double())


def low_rank() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 40, 4, generator=generator) @ torch.randn(3, 4, 30, generator=generator)


@pytest.mark.parametrize("method", ["iso_c", "iso_cts"])
def test_tasks_of_low_rank_are_levelled_in_the_directions_they_have(method: str) -> None:
    """In float32 and float64 alike; the authors' code levels rounding noise up to the mean singular value."""
    deltas = low_rank()
    merged = METHODS[method](deltas)
    close(merged, METHODS[method](deltas.double()))
    assert int(torch.linalg.matrix_rank(merged)) == 12


@pytest.mark.parametrize("method", ["svc", "subspace_boosting", "knots", "wudi"])
def test_float32_is_float64_on_tasks_of_low_rank(method: str) -> None:
    deltas = low_rank()
    close(METHODS[method](deltas), METHODS[method](deltas.double()))
