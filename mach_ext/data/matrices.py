"""Matrices of documents and labels, checked in full and once."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from .files import PathLike

Csr: TypeAlias = "sparse.csr_matrix"

_MAX_DIMENSION = 2**31 - 1


def check_csr(matrix: Any, name: str = "X") -> Csr:
    """Checks a SciPy sparse matrix in full; returns it as canonical float32 CSR.

    Canonical: indices of a row sorted and unique, duplicates summed. The argument is not modified; memory is
    shared where nothing had to change.

    Args:
        matrix: any SciPy sparse matrix or array, [rows, columns], of real numbers.
        name: how messages call it.

    Raises:
        TypeError: not a sparse matrix, or not of real numbers.
        ValueError: broken structure, NaN, infinity, or a value beyond float32.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data import check_csr
        >>> check_csr(sparse.coo_matrix(([1.0, 2.0], ([0, 0], [3, 3])), shape=(1, 4))).toarray()
        array([[0., 0., 0., 3.]], dtype=float32)
    """
    if not sparse.issparse(matrix):
        raise TypeError(f"{name}: must be a SciPy sparse matrix, got {type(matrix).__name__}")
    if matrix.ndim != 2:
        raise ValueError(f"{name}: must have two dimensions, got shape {matrix.shape}")
    if matrix.dtype.kind not in "fiub":
        raise TypeError(f"{name}: must hold real numbers, got dtype {matrix.dtype}")
    if max(matrix.shape) > _MAX_DIMENSION:
        raise ValueError(f"{name}: rows and columns must be below 2^31, got shape {matrix.shape}")
    if hasattr(matrix, "check_format"):  # the compressed formats; nothing may be converted before this
        try:
            matrix.check_format(full_check=True)
        except ValueError as error:
            raise ValueError(
                f"{name}: {error}, got shape {matrix.shape}, {matrix.data.size} values"
            ) from None
    csr = sparse.csr_matrix(matrix)
    if not csr.has_canonical_format:
        csr = csr.astype(np.float64)  # a copy; sums are rounded once
        csr.sum_duplicates()
    with np.errstate(over="ignore"):
        csr = csr.astype(np.float32, copy=False)
    bad = np.flatnonzero(~np.isfinite(csr.data))
    if bad.size:
        row = int(np.searchsorted(csr.indptr, bad[0], side="right")) - 1
        raise ValueError(
            f"{name}, row {row}: values must be finite and fit float32, got {csr.data[bad[0]]} in column "
            f"{csr.indices[bad[0]]}"
        )
    return csr


def row_features(X: Csr) -> NDArray[np.integer[Any]]:
    """How many features each row of a canonical CSR matrix has [N]; a stored 0 is none."""
    if not X.data.all():
        X = X.copy()
        X.eliminate_zeros()
    counts: NDArray[np.integer[Any]] = np.diff(X.indptr)
    return counts


def row_lengths(X: Csr) -> NDArray[np.float64]:
    """Euclidean lengths of the rows [N] of a canonical CSR matrix; float64, 2^16 rows at a time."""
    parts = [np.zeros(0)]
    for start in range(0, X.shape[0], 1 << 16):
        part = X[start : start + (1 << 16)].astype(np.float64)
        part.data **= 2
        parts.append(np.sqrt(np.asarray(part.sum(1)).ravel()))
    return np.concatenate(parts)


def check_labels(matrix: Any, name: str = "Y") -> Csr:
    """The same for labels: every stored non-zero becomes a 1, stored zeros go."""
    csr = check_csr(matrix, name)
    if csr.nnz and csr.data.min() < 0:
        raise ValueError(f"{name}: labels must not be negative numbers, got {csr.data.min()}")
    if not (csr.data == 1).all():
        csr = csr.copy()
        csr.eliminate_zeros()
        csr.data[:] = 1
    return csr


def check_rows(X: Csr, Y: Csr, X_name: PathLike, Y_name: PathLike) -> None:
    if X.shape[0] != Y.shape[0]:
        raise ValueError(
            f"{X_name} and {Y_name}: must have as many rows, got {X.shape[0]} and {Y.shape[0]} documents"
        )
