"""Factorisations against a float64 SVD: the digits promised, the degenerate shapes, and what LAPACK gets wrong."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from hf_tsv.errors import MethodError
from hf_tsv.linalg import (
    Factors,
    SvdMode,
    _exact,
    _gram,
    _lapack,
    factored_svd,
    nearest_orthogonal,
    pairwise_interference,
    rounding_edge,
    singular_task_interference,
    singular_values,
    truncated_svd,
)
from hf_tsv.methods import METHODS

MODES: list[SvdMode] = ["exact", "sketch"]
FAILS_IN_MKL = Path(__file__).parents[1] / "fixtures" / "svd_fail_f32.npy"


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_spectrum(m: int, n: int, s: Tensor, seed: int = 0) -> Tensor:
    """A float64 matrix with the singular values s and random singular vectors."""
    u, v = (torch.linalg.qr(randn(side, len(s), seed=seed + i).double())[0] for i, side in enumerate((m, n)))
    return (u * s) @ v.T


def power_law(m: int, n: int, alpha: float = 0.75, seed: int = 0) -> Tensor:
    s = torch.arange(1, min(m, n) + 1, dtype=torch.float64) ** -alpha
    return with_spectrum(m, n, s, seed).float()


def product(f: Factors) -> Tensor:
    return (f.u.double() * f.s.double()) @ f.vh.double()


def relative(x: Tensor, reference: Tensor) -> float:
    return float((x.double() - reference).norm() / reference.norm())


def assert_orthonormal(u: Tensor, tolerance: float = 1e-5) -> None:
    assert_close(u.T @ u, torch.eye(u.shape[1], dtype=u.dtype), rtol=0, atol=tolerance)


class LargestFloat64(TorchDispatchMode):
    """Watches how large a float64 tensor the code inside makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dtype == torch.float64:
            self.numel = max(self.numel, out.numel())
        return out


@st.composite
def degenerate(draw: st.DrawFn) -> Tensor:
    """A small float32 matrix, likely with zero columns, equal rows, few directions or an extreme scale."""
    m, n = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    a = randn(m, n, seed=draw(st.integers(0, 99)))
    kind = draw(st.sampled_from(["full", "zero columns", "equal rows", "rank one", "zero"]))
    if kind == "zero columns":
        a[:, draw(st.integers(0, n - 1)) :] = 0
    if kind == "equal rows":
        a[m // 2 :] = a[0].clone()
    if kind == "rank one":
        a = a[:, :1] @ a[:1]
    if kind == "zero":
        a = torch.zeros(m, n)
    return a * 2.0 ** draw(st.sampled_from([0, -80, 60]))


class TestTruncatedSvd:
    @pytest.mark.parametrize("mode", MODES)
    @given(a=degenerate(), rank=st.integers(1, 12))
    def test_any_matrix_gives_a_valid_svd(self, a: Tensor, rank: int, mode: SvdMode) -> None:
        f = truncated_svd(a, rank, mode=mode)
        assert_orthonormal(f.u)
        assert_orthonormal(f.vh.T)
        assert torch.equal(f.s, f.s.sort(descending=True).values)
        assert_close(f.u.T @ a @ f.vh.T, f.s.diag(), rtol=1e-5, atol=3e-6 * float(a.abs().max()) + 1e-30)

    @given(a=degenerate(), rank=st.integers(1, 12))
    def test_keeps_what_stands_above_rounding_and_no_more(self, a: Tensor, rank: int) -> None:
        s = torch.linalg.svdvals(a.double())
        f = truncated_svd(a, rank)
        assert len(f.s) == min(rank, int((s > 1e-6 * s[0]).sum()))
        best = s[len(f.s) :].square().sum().sqrt()
        assert (product(f) - a.double()).norm() <= best + 1e-6 * s[0]

    @pytest.mark.parametrize(("m", "n"), [(60, 60), (40, 1500), (1500, 40)])
    def test_is_more_exact_than_an_svd_in_float32(self, m: int, n: int) -> None:
        a = power_law(m, n)
        u, s, vh = torch.linalg.svd(a.double(), full_matrices=False)
        f = truncated_svd(a, 10)
        assert relative(product(f), (u[:, :10] * s[:10]) @ vh[:10]) < 2e-7
        assert_close(f.s.double(), s[:10], rtol=1e-7, atol=0)

    def test_resolves_what_lies_far_below_the_largest(self) -> None:
        a = with_spectrum(50, 70, torch.tensor([1e4, *(1.0 / j for j in range(1, 20))], dtype=torch.float64)).float()
        u, _, vh = torch.linalg.svd(a.double(), full_matrices=False)
        f = truncated_svd(a, 12)
        assert relative(f.u @ f.u.T, u[:, :12] @ u[:, :12].T) < 1e-6
        assert relative(f.vh.T @ f.vh, vh[:12].T @ vh[:12]) < 1e-6

    def test_float64_is_exact_in_float64(self) -> None:
        a = with_spectrum(40, 30, 10.0 ** -torch.arange(10, dtype=torch.float64))
        f = truncated_svd(a, 10, rtol=1e-12)
        assert f.u.dtype == f.s.dtype == f.vh.dtype == torch.float64
        assert len(f.s) == 10
        assert_close(f.s, 10.0 ** -torch.arange(10, dtype=torch.float64), rtol=1e-6, atol=1e-14)
        assert relative(product(f), a) < 1e-14

    @pytest.mark.parametrize("mode", MODES)
    def test_largest_entry_of_u_is_positive(self, mode: SvdMode) -> None:
        for a in (power_law(20, 30), power_law(30, 20)):
            u = truncated_svd(a, 5, mode=mode).u
            assert (u.gather(0, u.abs().argmax(0, keepdim=True)) > 0).all()

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("shape", [(64, 64), (40, 300), (300, 40)])
    def test_same_values_same_bits_in_any_layout(self, shape: tuple[int, int], mode: SvdMode) -> None:
        a = power_law(*shape)
        first = truncated_svd(a, 9, mode=mode)
        torch.randn(3)  # a sketch that drew from the global generator would differ now
        for same in (a.clone(), a.T.contiguous().T, torch.cat([a, a], dim=1)[:, : shape[1]]):
            f = truncated_svd(same, 9, mode=mode)
            assert all(map(torch.equal, (f.u, f.s, f.vh), (first.u, first.s, first.vh)))

    def test_leaves_the_global_generator_alone(self) -> None:
        before = torch.get_rng_state()
        truncated_svd(power_law(64, 64), 8, mode="sketch")
        assert torch.equal(torch.get_rng_state(), before)

    def test_same_bits_with_any_number_of_workers(self) -> None:
        matrices = [power_law(150, 200, seed=seed) for seed in range(6)]
        alone = [truncated_svd(a, 20).u for a in matrices]
        with ThreadPoolExecutor(3) as pool:
            together = [f.u for f in pool.map(lambda a: truncated_svd(a, 20), matrices)]
        assert all(map(torch.equal, alone, together))

    @pytest.mark.parametrize("mode", MODES)
    def test_zero_matrix_has_no_triplets(self, mode: SvdMode) -> None:
        f = truncated_svd(torch.zeros(5, 7), 3, mode=mode)
        assert (f.u.shape, f.s.shape, f.vh.shape, f.energy) == ((5, 0), (0,), (0, 7), 0.0)

    @pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
    def test_empty_matrix_has_no_triplets(self, shape: tuple[int, int]) -> None:
        f = truncated_svd(torch.zeros(shape), 3)
        assert (f.u.shape, f.vh.shape) == ((shape[0], 0), (0, shape[1]))

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("a", [torch.zeros(6, 9), with_spectrum(9, 6, torch.ones(2).double()).float()])
    def test_without_a_cut_keeps_the_rank_whatever_is_there(self, a: Tensor, mode: SvdMode) -> None:
        f = truncated_svd(a, 4, mode=mode, rtol=0.0)
        assert len(f.s) == 4
        assert_orthonormal(f.u)
        assert_orthonormal(f.vh.T)
        assert_close(product(f), a.double(), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("mode", MODES)
    def test_floor_drops_what_is_noise(self, mode: SvdMode) -> None:
        s = torch.tensor([5.0, 3.0, 1e-3, 1e-4], dtype=torch.float64)
        a = with_spectrum(20, 30, s).float() * 2.0**40
        assert len(truncated_svd(a, 4, mode=mode, floor=1e-2 * 2.0**40).s) == 2
        assert len(truncated_svd(a, 4, mode=mode, floor=10.0 * 2.0**40).s) == 0

    def test_tells_energy_and_all_values(self) -> None:
        a = power_law(40, 60)
        f = truncated_svd(a, 3)
        assert f.energy == pytest.approx(float(a.double().square().sum()), rel=1e-12)
        assert f.values is not None
        assert_close(f.values, torch.linalg.svdvals(a.double()), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_names_what_is_not_finite(self, value: float, dtype: torch.dtype, mode: SvdMode) -> None:
        a = randn(6, 5).to(dtype)
        a[2, 3] = value
        with pytest.raises(MethodError, match="1 of 30 entries are NaN or infinite"):
            truncated_svd(a, 2, mode=mode)

    def test_refuses_singular_values_beyond_the_dtype(self) -> None:
        with pytest.raises(
            MethodError, match=r"a singular value of 9e\+38 is too large for torch.float32. Set dtype: float64"
        ):
            truncated_svd(torch.full((3, 3), 3e38), 1)

    @pytest.mark.parametrize("shape", [(5000, 16), (16, 5000)])
    def test_never_holds_a_large_matrix_in_float64(self, shape: tuple[int, int]) -> None:
        with LargestFloat64() as seen:
            truncated_svd(randn(*shape), 4)
            nearest_orthogonal(randn(*shape))
        assert 0 < seen.numel <= 1024 * 16


class TestWhateverLapackDoes:
    """The right answer, or an error that tells the fact."""

    A = power_law(30, 20)
    BEST = truncated_svd(power_law(30, 20), 6)

    def assert_right(self) -> None:
        f = truncated_svd(self.A, 6)
        assert_close(product(f), product(self.BEST), rtol=0, atol=1e-7)

    @staticmethod
    def _fail(*_: object, **__: object) -> None:
        raise _lapack.LinAlgError("did not converge")

    def test_its_own_word_of_failure_is_heard(self) -> None:
        for solve in (_lapack.eigenvalues, lambda gram: _lapack.leading_eigenpairs(gram, 2)):
            with pytest.raises(_lapack.LinAlgError, match="ended with info"):
                solve(torch.full((6, 6), math.nan, dtype=torch.float64))

    def test_a_matrix_that_fails_in_mkl(self) -> None:
        a = torch.from_numpy(np.load(FAILS_IN_MKL))
        u, s, vh = np.linalg.svd(a.double().numpy(), full_matrices=False)
        f = truncated_svd(a, 16)
        assert relative(product(f), torch.from_numpy((u[:, :16] * s[:16]) @ vh[:16])) < 1e-6
        assert_orthonormal(nearest_orthogonal(f.u))

    def test_the_eigensolver_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        polar = nearest_orthogonal(self.A)
        monkeypatch.setattr(_lapack, "_lapack", self._fail)
        self.assert_right()
        assert_close(nearest_orthogonal(self.A), polar, rtol=0, atol=1e-6)
        assert_close(singular_values(self.A), torch.linalg.svdvals(self.A.double()), rtol=0, atol=1e-12)

    def test_the_eigensolver_returns_other_vectors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = _lapack.leading_eigenpairs

        def wrong(gram: Tensor, k: int) -> tuple[Tensor, Tensor]:
            values, vectors = right(gram, k)
            return values, torch.linalg.qr(vectors + 0.1 * randn(*vectors.shape).double())[0]

        polar = nearest_orthogonal(self.A)
        monkeypatch.setattr(_lapack, "leading_eigenpairs", wrong)
        self.assert_right()
        assert_close(nearest_orthogonal(self.A), polar, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("broken", ["raises", "wrong", "nan"])
    def test_divide_and_conquer_fails(self, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
        u, s, vh = torch.linalg.svd(self.A.double(), full_matrices=False)
        results = {"wrong": (u.roll(1, 0), s, vh), "nan": (u * math.nan, s, vh)}
        monkeypatch.setattr(_lapack, "_lapack", self._fail)
        monkeypatch.setattr(torch.linalg, "svd", lambda *_, **__: results.get(broken) or self._fail())
        self.assert_right()

    def test_everything_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_lapack, "_lapack", self._fail)
        monkeypatch.setattr(_exact, "_divide_and_conquer", self._fail)
        monkeypatch.setattr(_exact, "_qr_iteration", self._fail)
        for solve in (lambda: truncated_svd(self.A, 6), lambda: nearest_orthogonal(self.A)):
            with pytest.raises(MethodError, match="no singular value decomposition converged"):
                solve()

    def test_without_lapack_on_the_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        polar = nearest_orthogonal(self.A)
        monkeypatch.setattr(_gram, "has_lapack", lambda _: False)
        monkeypatch.setattr(_lapack, "_call", self._fail)
        self.assert_right()
        assert_close(nearest_orthogonal(self.A), polar, rtol=0, atol=1e-6)
        assert_close(singular_values(self.A), torch.linalg.svdvals(self.A.double()), rtol=0, atol=1e-12)


class TestSingularValues:
    @given(a=degenerate())
    def test_any_matrix(self, a: Tensor) -> None:
        s = singular_values(a)
        assert s.dtype == torch.float64
        assert_close(s, torch.linalg.svdvals(a.double()), rtol=0, atol=1e-7 * float(a.abs().max()) * 12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_more_exact_than_float32(self, dtype: torch.dtype) -> None:
        a = power_law(80, 300).to(dtype)
        assert_close(singular_values(a), torch.linalg.svdvals(a.double()), rtol=1e-12, atol=0)

    def test_empty(self) -> None:
        assert singular_values(torch.zeros(0, 3)).shape == (0,)

    def test_names_what_is_not_finite(self) -> None:
        with pytest.raises(MethodError, match="2 of 4 entries"):
            singular_values(torch.tensor([[math.nan, 1.0], [math.inf, 0.0]]))


def polar_reference(a: Tensor, tolerance: float = 1e-7) -> Tensor:
    p, d, qh = torch.linalg.svd(a.double(), full_matrices=False)
    return (p * (d > tolerance * d[0])) @ qh


class TestNearestOrthogonal:
    @given(a=degenerate())
    def test_any_matrix_gives_a_partial_isometry(self, a: Tensor) -> None:
        x = nearest_orthogonal(a)
        assert x.shape == a.shape
        assert_close(x @ x.T @ x, x, rtol=0, atol=1e-4)
        rank = int(torch.linalg.matrix_rank(a.double(), rtol=1e-7)) if a.any() else 0
        assert float(x.square().sum()) == pytest.approx(rank, abs=1e-3)

    @pytest.mark.parametrize(("p", "q"), [(64, 64), (900, 40), (40, 900), (1100, 70)])
    @pytest.mark.parametrize("smallest", [0.5, 1e-3, 1e-5])
    def test_of_an_ill_conditioned_matrix(self, p: int, q: int, smallest: float) -> None:
        d = torch.logspace(0.3, math.log10(smallest), min(p, q), dtype=torch.float64)
        a = with_spectrum(p, q, d).float()
        assert relative(nearest_orthogonal(a), polar_reference(a)) < 2e-7

    def test_wide_is_the_transpose_of_tall(self) -> None:
        a = randn(30, 8)
        assert torch.equal(nearest_orthogonal(a.T), nearest_orthogonal(a).T)

    def test_two_equal_halves_give_one_direction_each(self) -> None:
        u = torch.linalg.qr(randn(20, 4))[0]
        assert_close(nearest_orthogonal(torch.cat([u, u], 1)), torch.cat([u, u], 1) / 2**0.5, rtol=0, atol=1e-6)

    def test_drops_what_the_tolerance_says(self) -> None:
        a = with_spectrum(30, 20, torch.tensor([2.0, 1.0, 1e-2], dtype=torch.float64)).float()
        for tolerance, rank in ((1e-7, 3), (0.1, 2), (0.9, 1)):
            assert float(nearest_orthogonal(a, tolerance=tolerance).square().sum()) == pytest.approx(rank, abs=1e-4)

    @pytest.mark.parametrize("tolerance", [1e-9, 1e-11])
    def test_below_what_a_gram_matrix_resolves(self, tolerance: float) -> None:
        a = torch.diag(torch.tensor([1.0, 1e-3, 1e-8, 1e-10]))
        kept = torch.tensor([1.0, 1.0, 1.0, float(tolerance < 1e-10)])
        assert_close(nearest_orthogonal(a, tolerance=tolerance), torch.diag(kept), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("a", [torch.zeros(6, 4), torch.ones(6, 4), randn(6, 4)])
    def test_without_tolerance_every_direction_is_kept(self, a: Tensor) -> None:
        assert_orthonormal(nearest_orthogonal(a, tolerance=0.0))

    def test_float64_is_exact_in_float64(self) -> None:
        a = with_spectrum(40, 30, torch.logspace(0, -6, 30, dtype=torch.float64))
        x = nearest_orthogonal(a)
        assert x.dtype == torch.float64
        assert_orthonormal(x, 1e-14)
        assert_close(x.T @ a, (x.T @ a).T, rtol=0, atol=1e-14)

    def test_names_what_is_not_finite(self) -> None:
        with pytest.raises(MethodError, match="4 of 4 entries"):
            nearest_orthogonal(torch.full((2, 2), math.nan))

    @pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
    def test_empty(self, shape: tuple[int, int]) -> None:
        assert nearest_orthogonal(torch.zeros(shape)).shape == shape


def merge_reference(deltas: list[Tensor]) -> Tensor:
    """TSV-M by float64 SVDs, without what has no meaning: triplets below 1e-6, directions below 1e-7."""
    rank = max(1, min(deltas[0].shape) // len(deltas))
    us, ss, vhs = [], [], []
    for delta in deltas:
        u, s, vh = torch.linalg.svd(delta.double(), full_matrices=False)
        k = min(rank, int((s > 1e-6 * s[0]).sum()))
        us, ss, vhs = [*us, u[:, :k]], [*ss, s[:k]], [*vhs, vh[:k]]
    return (polar_reference(torch.cat(us, 1)) * torch.cat(ss)) @ polar_reference(torch.cat(vhs))


def plain_merge(deltas: list[Tensor]) -> Tensor:
    """TSV-M as the paper's code computes it, by float32 SVDs."""
    rank = max(1, min(deltas[0].shape) // len(deltas))
    parts = [torch.linalg.svd(delta, full_matrices=False) for delta in deltas]
    u, vh = torch.cat([u[:, :rank] for u, _, _ in parts], 1), torch.cat([vh[:rank] for _, _, vh in parts])
    polars = []
    for x in (u, vh):
        p, _, qh = torch.linalg.svd(x, full_matrices=False)
        polars.append(p @ qh)
    return (polars[0] * torch.cat([s[:rank] for _, s, _ in parts])) @ polars[1]


def fine_tune(seed: int, n: int, alpha: float = 0.75) -> Tensor:
    """A delta (96, n) like fine-tuning leaves: a power law, leading directions shared by the tasks, 2 % noise."""
    shared = power_law(96, n, 4.0, seed=1000)
    delta = power_law(96, n, alpha, seed=2 * seed) + 0.3 * shared
    noise = randn(96, n, seed=5000 + seed)
    return 1e-2 * (delta + 0.02 * delta.norm() / noise.norm() * noise)


def in_bfloat16(delta: Tensor, seed: int) -> Tensor:
    base = (0.02 * randn(*delta.shape, seed=seed)).bfloat16()
    return (base.float() + delta).bfloat16().float() - base.float()


def with_spike(delta: Tensor, factor: float) -> Tensor:
    u, s, vh = torch.linalg.svd(delta.double(), full_matrices=False)
    return (delta + (factor - 1) * s[0] * torch.outer(u[:, 0], vh[0])).float()


def case(name: str, n: int) -> list[Tensor]:
    kind, _, number = name.partition(" ")
    plain = [fine_tune(seed, n) for seed in range(6)]
    common = fine_tune(99, n)
    match kind:
        case "plain":
            return plain
        case "bfloat16":
            return [in_bfloat16(delta, seed) for seed, delta in enumerate(plain)]
        case "white":
            return [randn(96, n, seed=seed) for seed in range(6)]
        case "steep":
            return [fine_tune(seed, n, alpha=1.5) for seed in range(6)]
        case "spike":
            return [with_spike(delta, float(number)) for delta in plain]
        case "alike":
            return [common + float(number) * delta for delta in plain]
        case "equal":
            return [common] * 6
        case "zero":
            return [*plain[:3], torch.zeros(96, n), *plain[4:]]
        case "rank":
            return [with_spectrum(96, n, torch.ones(int(number)).double(), seed).float() for seed in range(6)]
        case _:
            return [float(number) * delta for delta in plain]


CASES = {  # error that float32 vectors allow in `exact`: what two tasks share grows by how alike they are
    "plain": 1e-6,
    "bfloat16": 1e-6,
    "white": 1e-6,
    "steep": 1e-6,
    "spike 10": 1e-6,
    "spike 100": 1e-6,
    "spike 1e3": 1e-6,
    "spike 1e4": 5e-5,
    "alike 0.3": 1e-5,
    "alike 0.03": 1e-4,
    "alike 1e-3": 4e-3,
    "equal": 1e-6,
    "zero": 1e-6,
    "rank 8": 1e-6,
    "scale 1e-24": 1e-6,
    "scale 1e24": 1e-6,
}


@cache
def case_with_reference(name: str, n: int) -> tuple[list[Tensor], Tensor]:
    deltas = case(name, n)
    return deltas, merge_reference(deltas)


@pytest.mark.parametrize("n", [96, 384])
@pytest.mark.parametrize("name", CASES)
class TestWholeMerge:
    """TSV-M end to end against float64 SVDs, where float32 SVDs lose digits or everything."""

    def test_exact(self, name: str, n: int) -> None:
        deltas, reference = case_with_reference(name, n)
        error = relative(METHODS["tsv_m"](deltas), reference)
        assert error <= CASES[name]
        assert error <= relative(plain_merge(deltas), reference)


class TestModes:
    def test_a_sketch_of_what_float32_cannot_square_is_exact(self) -> None:
        tiny = power_law(96, 96) * 1e-36
        exact, sketch = truncated_svd(tiny, 16), truncated_svd(tiny, 16, mode="sketch")
        assert torch.equal(sketch.u, exact.u)
        assert torch.equal(sketch.s, exact.s)

    @pytest.mark.parametrize("rank", [10, 40])
    def test_sketch_holds_the_energy(self, rank: int) -> None:
        a = power_law(100, 150)
        s = torch.linalg.svdvals(a.double())
        kept = float(truncated_svd(a, rank, mode="sketch").s.square().sum())
        assert kept >= 0.99 * float(s[:rank].square().sum())


class TestFactoredSvd:
    @pytest.mark.parametrize(("m", "n", "r"), [(30, 50, 4), (50, 30, 4), (6, 50, 9), (3, 2, 8)])
    @pytest.mark.parametrize("scale", [1.0, -0.5])
    def test_is_the_svd_of_the_product(self, m: int, n: int, r: int, scale: float) -> None:
        b, a = randn(m, r), randn(r, n, seed=1)
        f = factored_svd(b, a, scale)
        assert len(f.s) == min(m, n, r)
        assert_orthonormal(f.u)
        assert_orthonormal(f.vh.T)
        dense = scale * b.double() @ a.double()
        assert relative(product(f), dense) < 3e-7
        assert f.energy == pytest.approx(float(dense.square().sum()), rel=1e-12)
        assert_close(f.s.double(), torch.linalg.svdvals(dense)[: len(f.s)], rtol=1e-6, atol=0)

    def test_padding_is_gone(self) -> None:
        b, a = randn(30, 4), randn(4, 20, seed=1)
        bare = factored_svd(b, a)
        for padded in (
            factored_svd(torch.cat([b, torch.zeros(30, 4)], 1), torch.cat([a, randn(4, 20)])),
            factored_svd(torch.cat([b, b], 1), torch.cat([a, a]) / 2),
        ):
            assert len(padded.s) == 4
            assert_close(padded.u, bare.u, rtol=0, atol=1e-6)

    def test_keeps_at_most_the_rank_asked_for(self) -> None:
        b, a = randn(30, 8), randn(8, 20, seed=1)
        assert torch.equal(factored_svd(b, a, rank=3).u, factored_svd(b, a).u[:, :3])

    @pytest.mark.parametrize("scale", [0.0, 1.0])
    def test_a_fresh_lora_has_no_triplets(self, scale: float) -> None:
        f = factored_svd(torch.zeros(30, 4), randn(4, 20), scale)
        assert (f.u.shape, f.s.shape, f.vh.shape) == ((30, 0), (0,), (0, 20))

    def test_never_forms_the_product(self) -> None:
        with LargestFloat64() as seen:
            factored_svd(randn(2000, 4), randn(4, 2000))
        assert seen.numel == 2000 * 4

    def test_names_what_is_not_finite(self) -> None:
        with pytest.raises(MethodError, match="1 of 12 entries"):
            factored_svd(randn(5, 3), torch.tensor([math.nan, *range(11)]).reshape(3, 4))


def sti_reference(factors: list[Factors]) -> float:
    u, v = torch.cat([f.u for f in factors], 1).double(), torch.cat([f.vh for f in factors]).T.double()
    one, s = torch.eye(u.shape[1]).double(), torch.cat([f.s for f in factors]).double().diag()
    return float(((u.T @ u - one) @ s @ (v.T @ v - one)).abs().sum())


class TestInterference:
    def test_is_the_papers_formula(self) -> None:
        factors = [truncated_svd(power_law(40, 30, seed=seed), rank) for seed, rank in enumerate((5, 3, 8))]
        assert singular_task_interference(factors) == pytest.approx(sti_reference(factors), rel=1e-4)

    def test_pairs(self) -> None:
        factors = [truncated_svd(power_law(40, 30, seed=seed), rank) for seed, rank in enumerate((5, 3, 8))]
        pairs = pairwise_interference(factors)
        for i, onto in enumerate(factors):
            for j, of in enumerate(factors):
                block = (onto.u.T @ of.u * of.s) @ of.vh @ onto.vh.T
                assert float(pairs[i, j]) == pytest.approx(0.0 if i == j else float(block.abs().sum()), rel=1e-4)

    def test_is_zero_between_orthogonal_tasks(self) -> None:
        a = torch.diag(torch.tensor([3.0, 2.0, 0.0, 0.0, 0.0]))
        factors = [truncated_svd(a, 2), truncated_svd(a.flip(0, 1), 2)]
        assert singular_task_interference(factors) == 0
        assert not pairwise_interference(factors).any()

    def test_is_zero_for_one_task(self) -> None:
        assert singular_task_interference([truncated_svd(randn(8, 9), 4)]) == 0

    def test_of_a_task_with_itself_is_its_singular_values(self) -> None:
        f = truncated_svd(randn(8, 9), 4)
        assert singular_task_interference([f, f]) == pytest.approx(2 * float(f.s.sum()), rel=1e-5)

    def test_more_directions_than_the_matrix_has(self) -> None:
        factors = [truncated_svd(randn(4, 3, seed=seed), 3) for seed in range(5)]
        assert singular_task_interference(factors) == pytest.approx(sti_reference(factors), rel=1e-4)

    def test_tasks_without_change_do_not_interfere(self) -> None:
        nothing = truncated_svd(torch.zeros(4, 3), 3)
        assert singular_task_interference([nothing, nothing]) == 0
        assert singular_task_interference([nothing, truncated_svd(randn(4, 3), 3)]) == 0
        assert pairwise_interference([nothing, nothing]).tolist() == [[0, 0], [0, 0]]


def spacing(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """ulp(w), one weight at a time."""
    info = torch.finfo(dtype)
    lowest = math.frexp(info.smallest_normal)[1] - 1
    exponents = [max(math.frexp(w)[1] - 1, lowest) if w else lowest for w in weights.flatten().tolist()]
    return torch.tensor([math.ldexp(info.eps, e) for e in exponents], dtype=torch.float64)


FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


class TestRoundingEdge:
    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-7])
    def test_is_the_formula(self, dtype: torch.dtype, scale: float) -> None:
        weights = (scale * randn(1100, 7)).to(dtype)
        weights[0, 0] = 0
        mean_square = float(spacing(weights, dtype).square().mean())
        edge = 1.05 * math.sqrt(mean_square / 12) * (math.sqrt(1100) + math.sqrt(7))
        for held in (weights, weights.double()):
            assert rounding_edge(held, dtype) == pytest.approx(edge, rel=1e-12, abs=0)

    @pytest.mark.parametrize("value", [0.0, 1e-44, 1.0, 1.9999999, 3e38])
    def test_spacing_of_one_weight(self, value: float) -> None:
        edge = 1.05 * float(np.spacing(np.float32(value))) / math.sqrt(12) * 2
        assert rounding_edge(torch.tensor([[value]]), "float32") == pytest.approx(edge, rel=1e-12, abs=0)

    @pytest.mark.parametrize("value", [5e-324, 1e-310, 1e308])
    def test_neither_underflows_nor_overflows(self, value: float) -> None:
        edge = rounding_edge(torch.tensor([[value]], dtype=torch.float64), torch.float64)
        assert edge == pytest.approx(1.05 * float(np.spacing(value)) / math.sqrt(12) * 2, rel=1e-9, abs=1e-323)

    @pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
    @pytest.mark.parametrize(("m", "n"), [(200, 200), (120, 480)])
    def test_finds_the_rank_that_was_learned(self, name: str, m: int, n: int) -> None:
        dtype = getattr(torch, name)
        base = (0.02 * randn(m, n)).to(dtype)
        learned = with_spectrum(m, n, 0.05 / torch.arange(1, 9).double())
        stored = (base.double() + learned).to(dtype)
        delta = stored.float() - base.float()
        edge = rounding_edge(stored, name)
        assert len(truncated_svd(delta, m, floor=edge).s) == 8
        noise = truncated_svd(delta, 9, rtol=1e-9).s[8]
        assert 0.85 < noise / edge < 1

    def test_no_order_of_the_weights_changes_a_bit(self) -> None:
        weights = randn(3000, 5)
        edges = {rounding_edge(w, "float32") for w in (weights, weights.flip(0), -weights)}
        assert len(edges) == 1

    def test_empty(self) -> None:
        assert rounding_edge(torch.zeros(0, 4), "float32") == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(96, 384), (384, 96)])
def test_cuda_gives_the_same_digits(shape: tuple[int, int]) -> None:
    a = power_law(*shape)
    for mode in MODES[:1]:  # a sketch promises no digits
        f = truncated_svd(a.cuda(), 16, mode=mode)
        assert f.u.is_cuda
        here = truncated_svd(a, 16)
        assert relative((f.u * f.s @ f.vh).cpu(), product(here)) < 1e-5
    polar = nearest_orthogonal(a.cuda())
    assert relative(polar.cpu(), polar_reference(a)) < 1e-6
    assert_close(singular_values(a.cuda()).cpu(), singular_values(a), rtol=1e-9, atol=0)
