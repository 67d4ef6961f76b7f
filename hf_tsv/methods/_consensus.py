"""Consensus Merging's one step, on whatever merged task vector."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from hf_tsv.errors import MethodError
from hf_tsv.linalg.masks import Use, tall_mask
from hf_tsv.methods._deltas import Deltas, per_task
from hf_tsv.methods._parameters import PerTask

MaskLambda = Annotated[float | Sequence[float], PerTask(), Ge(0)]


def keep_consensus(deltas: Deltas, merged: Tensor, k: int, mask_lambda: float | Sequence[float]) -> Tensor:
    """Set the entries of a merged delta that are in fewer than k tasks' TALL-masks to zero, in place.

    Notes under `used_by` how many entries are in how many masks.

    Raises:
        MethodError: there are fewer than k tasks, so the result would be the base model.
    """
    if k > len(deltas):
        raise MethodError(f"no weight is used by {k} of {len(deltas)} tasks. Set k to {len(deltas)} at most")
    lambdas = per_task(mask_lambda, len(deltas))
    # The number of masks that each entry is in, and whether any task changed it.
    masks, is_changed = torch.zeros(deltas.shape, dtype=torch.int32), torch.zeros(deltas.shape, dtype=torch.bool)
    for t in deltas.active:
        delta = deltas.scaled(t)
        is_changed |= delta != 0
        masks += tall_mask(delta, merged, lambdas[t])
    deltas.notes["used_by"] = list(Use.of(masks, is_changed, len(deltas)).entries)
    return merged.masked_fill_(masks < k, 0.0)
