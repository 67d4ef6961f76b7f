"""WUDI: the matrix that interferes least with every task's own inputs."""

import torch
from torch import Tensor

from hf_tsv.methods import Deltas, Matrices, Scale, merge_method
from hf_tsv.methods._spectral import Tolerance, mean_of_rest, scaled_deltas


@merge_method(
    "wudi",
    paper="https://arxiv.org/abs/2503.08099",
    matrices=Matrices(side=lambda m, n, num_tasks: n),
    cost="1 eigendecomposition of side n for an (m, n) matrix, T products of m n^2",
)
def wudi(deltas: Deltas, *, scale: Scale = 1.0, rest_scale: Scale = 1.0, tolerance: Tolerance = 0.05) -> Tensor:
    """Minimise the merged matrix's interference with every task's rows, which stand in for its inputs.

    M = argmin sum_t |(M - Delta_t) Delta_t^T|^2 / |Delta_t|^2 (Cheng et al. 2025, equation 11), in closed form:
    M = (sum_t Delta_t C_t) (sum_t C_t)^+ with C_t = Delta_t^T Delta_t / |Delta_t|^2, where the gradient is zero. The
    authors' code takes 300 steps of Adam towards it from the sum, with a step size that depends on the deltas' unit.
    Non-matrix tensors get the mean of the deltas. Time grows as n^3 and memory as n^2 for n columns.

    Args:
        deltas: T task matrices, (m, n) each with the inputs as columns, or deltas of a non-matrix tensor.
        scale: Factor on merged matrices.
        rest_scale: Factor on the mean of non-matrix tensors.
        tolerance: Input directions weaker than this share of the strongest, over all tasks, are left out. A few steps
            of Adam hardly move them; keeping all (0) amplifies noise in the closed form if T m is about n.
    """
    if not deltas.is_matrix:
        return mean_of_rest(deltas, rest_scale)
    n = deltas.shape[1]
    covariance = torch.zeros(n, n, dtype=torch.float64)  # sum_t C_t
    weighted = torch.zeros(deltas.shape, dtype=torch.float64)  # (m, n), sum_t Delta_t C_t
    for delta in scaled_deltas(deltas):
        own = delta.double()
        square = float(own.square().sum())
        if square:  # else the task changed nothing and doesn't count
            inputs = (own.T @ own).div_(square)  # C_t (n, n)
            covariance += inputs
            weighted.addmm_(own, inputs)
    values, vectors = torch.linalg.eigh(covariance)
    del covariance
    # Eigenvalues of sum_t C_t are squares of singular values, so the tolerance is squared too.
    count = int((values > tolerance**2 * values[-1]).sum())
    values, vectors = values[n - count :], vectors[:, n - count :]  # the largest come last
    merged: Tensor = (weighted @ vectors).div_(values) @ vectors.T
    return merged.mul_(scale).to(deltas.dtype)
