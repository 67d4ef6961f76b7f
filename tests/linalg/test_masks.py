"""Masks: the authors' formulas, bits that come back, and the published storage figures."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_tsv.linalg.masks import (
    EmrRescaler,
    Use,
    emr_mask,
    emr_unified,
    magnitude_mask,
    pack,
    storage_bits,
    tall_mask,
    unpack,
)


@pytest.mark.parametrize("lam", [0.2, 0.6, 1.0])
def test_the_mask_is_the_authors(deltas: Tensor, lam: float) -> None:
    """|theta_0 - theta_t| > lambda |theta_mt - theta_t|, as `generate_task_masks` of their repository has it."""
    base = torch.randn(deltas.shape[1:], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tuned, merged = base + deltas.double(), base + deltas.double().sum(0)
    for theta, delta in zip(tuned, deltas.double(), strict=True):
        want = (base - theta).abs() > (merged - theta).abs() * lam
        assert torch.equal(tall_mask(delta, merged - base, lam), want)


def test_what_nothing_changed_is_in_no_mask() -> None:
    assert not tall_mask(torch.zeros(3), torch.zeros(3), 0.4).any()


def test_a_magnitude_mask_holds_what_reaches_the_threshold() -> None:
    assert magnitude_mask(torch.tensor([-2.0, 1.0, 3.0]), 2.0).tolist() == [True, False, True]
    assert magnitude_mask(torch.tensor([-2.0, 0.0, 3.0]), 0.0).tolist() == [True, False, True]


@given(bits=st.lists(st.booleans(), max_size=70), columns=st.integers(1, 5))
def test_what_is_packed_comes_back(bits: list[bool], columns: int) -> None:
    mask = torch.tensor([bits] * columns, dtype=torch.bool)
    packed = pack(mask)
    assert packed.dtype == torch.uint8
    assert packed.numel() == (mask.numel() + 7) // 8
    assert torch.equal(unpack(packed, mask.shape), mask)


def test_the_first_bit_is_a_bytes_highest() -> None:
    assert pack(torch.tensor([True] + [False] * 7 + [False, True])).tolist() == [128, 64]


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 3\) has 2 bytes, got 1"):
        unpack(torch.zeros(1, dtype=torch.uint8), (3, 3))


def vit_b_32() -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Shapes of open_clip's ViT-B/32: what the papers fine-tune, the image encoder, and what comes along."""
    width, layers = 768, 12
    norm = [(width,), (width,)]
    block = [
        *norm,
        *norm,
        (3 * width, width),
        (3 * width,),
        (width, width),
        (width,),
        (4 * width, width),
        (4 * width,),
        (width, 4 * width),
        (width,),
    ]
    visual = [(width, 3, 32, 32), (width,), (50, width), *norm, *(block * layers), *norm, (width, 512)]
    text = [(49408, 512), (77, 512), (512,), (512,), (512, 512), ()]
    return visual, text


def test_the_published_storage_is_reproduced() -> None:
    """57.04 and 8.20 gigabits for 20 tasks (arXiv 2405.07813, table of ViT-B/32), 23.31 and 7.14 for 8."""
    for num_tasks, full, masked in ((20, 57.04, 8.20), (14, 40.18, 7.67), (8, 23.31, 7.14)):
        storage = storage_bits(*vit_b_32(), num_tasks)
        assert (round(storage.full / 1e9, 2), round(storage.masked / 1e9, 2)) == (full, masked)


def test_emr_elects_masks_and_rescales() -> None:
    """The paper's section 3 by hand: signs + - -, the largest magnitude of that sign, sum over masked sum."""
    deltas = torch.tensor([[3.0, -1.0, 2.0], [-1.0, -4.0, -2.0]])
    unified = emr_unified(list(deltas))
    assert unified.tolist() == [3.0, -4.0, -2.0]
    assert [emr_mask(delta, unified).tolist() for delta in deltas] == [[True, True, False], [False, True, True]]
    rescaler = EmrRescaler()
    rescaler.add(deltas[0], unified, emr_mask(deltas[0], unified))
    assert rescaler.value == 6 / 7


def test_emrs_rescaler_is_the_whole_vectors() -> None:
    first, second, mask = EmrRescaler(), EmrRescaler(), torch.tensor([True])
    first.add(torch.tensor([1.0]), torch.tensor([4.0]), mask)
    second.add(torch.tensor([3.0]), torch.tensor([4.0]), mask)
    assert (first + second).value == 0.5
    first.add(torch.tensor([3.0]), torch.tensor([4.0]), mask)
    assert first.value == 0.5
    assert EmrRescaler().value == 1.0


def test_uses_are_counted_among_what_changed() -> None:
    masks, changed = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([False, True, True, True, True])
    use = Use.of(masks, changed, 3)
    assert use == Use((1, 1, 1, 1))
    assert (use + use).shares() == {"catastrophic": 0.25, "selfish": 0.25, "shared": 0.5}
