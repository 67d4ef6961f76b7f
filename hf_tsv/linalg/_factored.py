"""Singular value decomposition of a product of two thin matrices, such as a LoRA's."""

import torch
from torch import Tensor

from hf_tsv.linalg._exact import check_finite, dense_svd
from hf_tsv.linalg._factors import Cut, Factors, Triplets, factors_of
from hf_tsv.linalg._gram import computable


def factored_svd(b: Tensor, a: Tensor, scale: float = 1.0, *, rank: int | None = None, rtol: float = 1e-6) -> Factors:
    """Return the singular triplets of scale * b a, by QR of both factors and an SVD of their r x r core, in float64.

    The product (m, n) is never formed. Columns that only pad the factors to a rank are dropped with the triplets below
    rtol: their directions are arbitrary and would count in a merge like real ones.

    Args:
        b: (m, r), float32 or float64.
        a: (r, n), of b's dtype.
        scale: Factor on the product, such as alpha / r.
        rank: Maximum number of triplets; all of them by default.
        rtol: Triplets with s <= rtol * s[0] are dropped.

    Returns:
        Factors in b's dtype on b's device; `values` holds the singular values that can differ from 0.

    Raises:
        MethodError: b or a holds NaN or infinity, or no solver could factor the core.
    """
    check_finite(b)
    check_finite(a)
    q_left, r_left = torch.linalg.qr(computable(b).double())  # (m, r), (r, r)
    q_right, r_right = torch.linalg.qr(computable(a).double().T)  # (n, r), (r, r)
    u, s, vh = dense_svd(scale * (r_left @ r_right.T))  # of the core (r, r): the product's triplets, before q
    k = Cut(len(s) if rank is None else rank, rtol, 0.0).rank_of(s)
    energy = float(s.square().sum())
    return factors_of(Triplets(q_left @ u[:, :k], s[:k], q_right @ vh[:k].T, energy, values=s), b)
