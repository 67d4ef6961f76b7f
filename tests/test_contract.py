"""Laws that every merge method keeps. A method is tested from the moment it is registered."""

import pytest
import torch
from torch import Tensor

from hf_tsv.methods import METHODS, Deltas, MergeMethod


@pytest.mark.parametrize("merge", METHODS.values(), ids=METHODS)
class TestEveryMethod:
    def test_keeps_shape_and_dtype(self, merge: MergeMethod, deltas: Tensor) -> None:
        for dtype in (torch.float32, torch.float64):
            merged = merge(deltas.to(dtype))
            assert (merged.shape, merged.dtype) == (deltas.shape[1:], dtype)

    def test_leaves_its_input_alone(self, merge: MergeMethod, deltas: Tensor) -> None:
        before = deltas.clone()
        merge(deltas)
        assert torch.equal(deltas, before)

    def test_same_input_same_bits(self, merge: MergeMethod, deltas: Tensor) -> None:
        assert torch.equal(merge(deltas), merge(deltas))

    def test_no_change_merges_to_no_change(self, merge: MergeMethod, deltas: Tensor) -> None:
        assert not merge(torch.zeros_like(deltas)).any()

    def test_task_order_does_not_matter(self, merge: MergeMethod, deltas: Tensor) -> None:
        order = [2, 0, 3, 1]
        shuffled = Deltas.of(deltas[order], tasks=[f"task{t}" for t in order])
        torch.testing.assert_close(merge(shuffled), merge(deltas), rtol=1e-4, atol=1e-4)

    def test_twice_the_change_merges_to_twice_the_change(self, merge: MergeMethod, deltas: Tensor) -> None:
        torch.testing.assert_close(merge(2 * deltas), 2 * merge(deltas), rtol=1e-4, atol=1e-4)

    def test_weights_scale_with_their_tasks(self, merge: MergeMethod, deltas: Tensor) -> None:
        """A task of weight 0 has no say where weights are factors; its delta may be anything."""
        silenced = deltas.clone()
        silenced[1] = 1000.0
        weights = [1.0, 0.0, 1.0, 1.0]
        merged = [merge(Deltas.of(d, weights=weights)) for d in (deltas, silenced)]
        torch.testing.assert_close(merged[0], merged[1], rtol=1e-4, atol=1e-4)

    def test_says_what_it_does_and_where_it_is_from(self, merge: MergeMethod) -> None:
        assert merge.summary
        assert merge.paper.startswith("https://") or merge.name == "base"
        documented = merge.fn.__doc__ or ""
        assert all(f"{name}:" in documented for name in merge.parameters)
        assert all(
            parameter.default is not None or "none" in parameter.type_name for parameter in merge.parameters.values()
        )


def test_every_file_of_a_method_is_registered() -> None:
    from pathlib import Path

    import hf_tsv.methods

    files = {path.stem for path in Path(hf_tsv.methods.__file__).parent.glob("[a-z]*.py")}
    assert files == set(METHODS)
