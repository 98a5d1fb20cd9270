"""Matrices of documents and labels, checked in full and once."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import scipy  # its sparse matrices load when they are first used: that takes 0.2 s
import torch
from numpy.typing import NDArray

from .._memory import memory_errors
from .files import PathLike

Csr: TypeAlias = "scipy.sparse.csr_matrix"

MAX_DIMENSION = 2**31 - 1


def as_scipy(matrix: Any, name: str = "X") -> Any:
    """Any matrix of documents as a two-dimensional SciPy sparse matrix; nothing is checked or summed yet.

    Args:
        matrix: SciPy sparse matrix or array, NumPy array, torch tensor (dense, CSR, COO, ...), or anything
            else with `__array__`, such as a DataFrame: [rows, columns]. One dimension means one row.
        name: how messages call it.

    Raises:
        TypeError: none of these.
        ValueError: more than two dimensions, or none.
    """
    if isinstance(matrix, torch.Tensor):
        matrix = from_torch(matrix, name)
    if not scipy.sparse.issparse(matrix):
        if isinstance(matrix, np.ma.MaskedArray) or not hasattr(matrix, "__array__"):
            raise TypeError(
                f"{name}: must be a SciPy sparse matrix, a NumPy array or a torch tensor, "
                f"got {type(matrix).__name__}"
            )
        matrix = np.asarray(matrix)
    if matrix.dtype.kind not in "fiub":
        raise TypeError(f"{name}: must hold real numbers, got dtype {matrix.dtype}")
    if matrix.ndim not in (1, 2):
        raise ValueError(
            f"{name}: must have two dimensions, or one for a single row, got shape {matrix.shape}"
        )
    if matrix.ndim == 1:
        matrix = matrix.reshape(1, -1)
    if scipy.sparse.issparse(matrix):
        return matrix
    if matrix.dtype == np.float16:  # which SciPy has no sparse matrices of
        matrix = matrix.astype(np.float32)
    return scipy.sparse.csr_matrix(matrix)


def from_torch(tensor: torch.Tensor, name: str) -> Any:
    """A tensor as a NumPy array, where it is dense, or as a SciPy sparse matrix; nothing is summed.

    Raises:
        TypeError: complex or quantized numbers.
        ValueError: a sparse tensor with dense dimensions.
    """
    tensor = tensor.detach().cpu()
    if tensor.is_complex() or tensor.is_quantized:
        raise TypeError(f"{name}: must hold real numbers, got dtype {tensor.dtype}")
    if tensor.dtype in (torch.bfloat16, torch.float16):  # which NumPy, or SciPy, has not
        tensor = tensor.float()
    if tensor.layout == torch.strided:
        return tensor.resolve_neg().numpy()
    if tensor.layout == torch.sparse_csr and tensor.dim() == 2:
        arrays = (tensor.values(), tensor.col_indices(), tensor.crow_indices())
        return scipy.sparse.csr_matrix(tuple(array.numpy() for array in arrays), shape=tuple(tensor.shape))
    if tensor.layout != torch.sparse_coo:
        tensor = tensor.to_sparse_coo()
    if tensor.dense_dim():
        raise ValueError(f"{name}: a sparse tensor must have no dense dimensions, got {tensor.dense_dim()}")
    at = tuple(row.numpy() for row in tensor._indices())
    return scipy.sparse.coo_array((tensor._values().numpy(), at), shape=tuple(tensor.shape))


@memory_errors("free memory first, or split the data", "data.check_csr")
def check_csr(matrix: Any, name: str = "X") -> Csr:
    """Checks a matrix in full; returns it as canonical float32 CSR.

    Canonical: indices of a row sorted and unique, duplicates summed in float64. The argument is not modified;
    memory is shared where nothing had to change.

    Args:
        matrix: [rows, columns] of real numbers, as :func:`as_scipy` takes it; one dimension means one row.
        name: how messages call it.

    Raises:
        TypeError: not a matrix, or not of real numbers.
        ValueError: broken structure, NaN, infinity, or a value beyond float32.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data import check_csr
        >>> check_csr(sparse.coo_matrix(([1.0, 2.0], ([0, 0], [3, 3])), shape=(1, 4))).toarray()
        array([[0., 0., 0., 3.]], dtype=float32)
    """
    csr = _structured(as_scipy(matrix, name), name)
    if not csr.has_canonical_format:
        csr = csr.astype(np.float64)  # a copy; sums are rounded once
        csr.sum_duplicates()
    elif csr.dtype.itemsize > 4:  # the same rounding, whether there were duplicates or not
        csr = csr.astype(np.float64, copy=False)
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


def check_columns(X: Any, what: str, num_columns: int, letter: str = "D") -> Csr:
    """`check_csr` of a matrix that must have so many columns.

    Args:
        X: as `check_csr` takes it.
        what: how messages call it.
        num_columns: how many columns it must have.
        letter: how messages call that number.

    Raises:
        TypeError, ValueError: as `check_csr`; another number of columns.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data import check_columns
        >>> check_columns(sparse.csr_matrix((2, 4)), "X", 4).shape
        (2, 4)
    """
    csr = check_csr(X, what)
    if csr.shape[1] != num_columns:
        raise ValueError(f"{what} must have {letter}={num_columns} columns, got shape {csr.shape}")
    return csr


def check_structure(matrix: Any) -> None:
    """Whether a SciPy matrix's index arrays stay inside it, which SciPy itself assumes.

    Raises:
        ValueError: they don't; says which rule is broken.
    """
    if matrix.format == "coo":
        for ids, count in zip(matrix.coords, matrix.shape, strict=True):
            if len(ids) != len(matrix.data) or (len(ids) and not 0 <= ids.min() <= ids.max() < count):
                raise ValueError("row and column indices must be inside the matrix, one of each a value")
    elif hasattr(matrix, "check_format"):
        if matrix.format == "bsr" and 0 in matrix.blocksize:
            raise ValueError("blocks must not be empty")
        matrix.check_format(full_check=True)
        indptr = matrix.indptr  # which SciPy does not look at where its last number is not above 0
        if indptr[0] != 0 or (indptr[1:] < indptr[:-1]).any():
            raise ValueError("index pointer values must form a non-decreasing sequence from 0")


def _structured(matrix: Any, name: str) -> Csr:
    """CSR of a SciPy matrix, its structure checked, its values as they were stored."""
    if max(matrix.shape) > MAX_DIMENSION:
        raise ValueError(f"{name}: rows and columns must be below 2^31, got shape {matrix.shape}")
    try:
        check_structure(matrix)  # nothing may be converted before this
    except ValueError as error:
        raise ValueError(f"{name}: {error}, got shape {matrix.shape}, {matrix.data.size} values") from None
    if matrix.format not in ("csr", "csc"):  # SciPy sums the others' duplicates as it converts them
        with np.errstate(over="ignore"):
            matrix = matrix.astype(np.float64)
    return scipy.sparse.csr_matrix(matrix)


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


@memory_errors("free memory first, or split the data", "data.check_labels")
def check_labels(matrix: Any, name: str = "Y", *, allow_weights: bool = True) -> Csr:
    """The same for labels: every stored non-zero becomes a 1, stored zeros go.

    Args:
        matrix: [N, L], as :func:`check_csr` takes it. A whole number above 1 counts as one label.
        name: how messages call it.
        allow_weights: whether fractions, such as relevance weights, become 1, too. Everything that reads
            files or learns from labels passes False, because it would not use the weights.

    Raises:
        TypeError, ValueError: as :func:`check_csr`; a negative number; a fraction that is not allowed.
    """
    matrix = as_scipy(matrix, name)
    csr = check_csr(matrix, name)
    kept = matrix.format in ("csr", "csc", "coo", "bsr")
    stored = matrix.data if kept else _structured(matrix, name).data  # neither summed nor rounded yet
    if stored.size and stored.min() < 0:
        raise ValueError(f"{name}: labels must not be negative numbers, got {stored.min()}")
    if not allow_weights:
        fractions = stored[stored != np.floor(stored)]
        if fractions.size:
            raise ValueError(
                f"{name}: labels must be 1 where they hold, because weights are not used, got "
                f"{fractions[0]:g}; to count weighted labels in full, write 1 in place of the weights"
            )
    if not (csr.data == 1).all():
        csr = csr.copy()
        csr.eliminate_zeros()
        csr.data[:] = 1
    return csr


def widen(matrix: Csr, columns: int) -> Csr:
    """The same matrix with empty columns added up to this many; memory is shared."""
    if matrix.shape[1] == columns:
        return matrix
    wide = scipy.sparse.csr_matrix(
        (matrix.data, matrix.indices, matrix.indptr), shape=(matrix.shape[0], columns)
    )
    wide.has_canonical_format = True
    return wide


def check_rows(X: Csr, Y: Csr, X_name: PathLike, Y_name: PathLike) -> None:
    if X.shape[0] != Y.shape[0]:
        raise ValueError(
            f"{X_name} and {Y_name}: must have as many rows, got {X.shape[0]} and {Y.shape[0]} documents"
        )
