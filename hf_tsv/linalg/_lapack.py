"""The BLAS and LAPACK routines that torch lacks, called through ctypes.

scipy publishes its BLAS and LAPACK as C pointers (scipy.linalg.cython_blas, cython_lapack). ctypes releases the GIL
around each call, which scipy's own wrappers of these routines don't: merges of several tensors run side by side.
The caller limits that BLAS's threads, with threadpoolctl: at the sizes of weight matrices one thread is fastest, and
the last bits depend on the number.

Tensors here are on the CPU, contiguous, float32 or float64. LAPACK is column-major, so it sees a tensor's rows as
columns and the tensor's upper triangle as the lower one.
"""

import ctypes
from functools import cache
from typing import Any

import torch
from scipy.linalg import cython_blas, cython_lapack
from torch import Tensor

LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]  # torch's stubs lack it

_BLOCK = 64  # columns per block in LAPACK's blocked routines; sets the size of their workspace


def add_gram(gram: Tensor, rows: Tensor) -> None:
    """Add rows^T rows to gram's upper triangle. gram is (r, r); rows is (c, r), dense and row- or column-major."""
    c, r = rows.shape
    # Row-major rows are columns of length r to LAPACK; column-major ones are its transposed case, columns of length c.
    order, column = ("N", r) if rows.is_contiguous() else ("T", c)
    _call(_letter(gram) + "syrk", "L", order, r, c, 1.0, rows, column, 1.0, gram, r)


def leading_eigenpairs(gram: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return every eigenvalue of a symmetric matrix, and the vectors of the k largest.

    Householder tridiagonalisation, divide and conquer on the tridiagonal matrix, and back-transformation of only k
    vectors: half the time of a full eigendecomposition for k = n / 8.

    Args:
        gram: (n, n). Only the upper triangle is read; overwritten.
        k: Number of vectors.

    Returns:
        values (n,) descending and vectors (n, k), orthonormal columns.

    Raises:
        LinAlgError: LAPACK did not converge, or found NaN.
    """
    n, letter = len(gram), _letter(gram)
    diagonal, off, tau = _tridiagonalise(gram)
    vectors = gram.new_empty(n, n)
    work = gram.new_empty(1 + 4 * n + n * n)  # sizes from LAPACK's manual, for the integers too
    integers = torch.empty(3 + 5 * n, dtype=torch.int32)
    _lapack(letter + "stevd", "V", n, diagonal, off, vectors, n, work, work.numel(), integers, integers.numel())
    leading = vectors[n - k :].flip(0)  # (k, n): LAPACK's columns are rows here, its values ascend
    work = gram.new_empty(_BLOCK * n)
    _lapack(letter + "ormtr", "L", "L", "N", n, k, gram, n, tau, leading, n, work, work.numel())
    return diagonal.flip(0), leading.T


def eigenvalues(gram: Tensor) -> Tensor:
    """Return every eigenvalue of a symmetric matrix, (n,) descending. Otherwise as `leading_eigenpairs`."""
    diagonal, off, _ = _tridiagonalise(gram)
    _lapack(_letter(gram) + "sterf", len(gram), diagonal, off)
    return diagonal.flip(0)


def _tridiagonalise(gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the diagonal (n,), the off-diagonal and the reflectors' factors; the reflectors overwrite gram."""
    n = len(gram)
    diagonal, off, tau = gram.new_empty(n), gram.new_empty(n), gram.new_empty(n)
    work = gram.new_empty(_BLOCK * n)
    _lapack(_letter(gram) + "sytrd", "L", n, gram, n, diagonal, off, tau, work, work.numel())
    return diagonal, off, tau


def _letter(a: Tensor) -> str:
    return "d" if a.dtype == torch.float64 else "s"


def _lapack(name: str, *arguments: str | int | float | Tensor) -> None:
    """Call a routine whose last argument is info, and raise LinAlgError if that is not 0."""
    info = ctypes.c_int()
    _call(name, *arguments, info)
    if info.value:
        raise LinAlgError(f"LAPACK's {name} ended with info {info.value}")


def _call(name: str, *arguments: str | int | float | Tensor | ctypes.c_int) -> None:
    """Call a Fortran routine, which takes every argument by address."""
    real = ctypes.c_double if name[0] == "d" else ctypes.c_float
    scalars: list[Any] = []  # kept alive until the routine returns: it gets only their addresses
    addresses = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            addresses.append(argument.data_ptr())
            continue
        scalar: Any = argument
        if isinstance(argument, str):
            scalar = ctypes.c_char(argument.encode())
        elif isinstance(argument, int):
            scalar = ctypes.c_int(argument)
        elif isinstance(argument, float):
            scalar = real(argument)
        scalars.append(scalar)
        addresses.append(ctypes.addressof(scalar))
    routine = _routine(name, len(arguments))
    routine(*addresses)


@cache
def _routine(name: str, arity: int) -> Any:
    capsules = cython_lapack.__pyx_capi__ if name in cython_lapack.__pyx_capi__ else cython_blas.__pyx_capi__
    address = _CAPSULE_POINTER(capsules[name], _CAPSULE_NAME(capsules[name]))
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arity)(address)


_CAPSULE_NAME = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
_CAPSULE_POINTER = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
