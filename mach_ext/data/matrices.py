"""Matrices of documents and labels. Each is checked once and completely."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import scipy  # scipy.sparse is loaded at its first use, which takes 0.2 s
import torch
from numpy.typing import NDArray

from mach_ext._memory import memory_errors
from mach_ext.data.files import PathLike

Csr: TypeAlias = "scipy.sparse.csr_matrix"

MAX_DIMENSION = 2**31 - 1


def as_scipy(matrix: Any, name: str = "X") -> Any:
    """Returns any matrix of documents as a two-dimensional SciPy sparse matrix.

    Values are not checked, and duplicates are not summed. See `check_csr`.

    Args:
        matrix: A matrix [rows, columns]: SciPy sparse, NumPy, a torch tensor (dense, CSR, COO, ...), or any
            object with `__array__`, such as a DataFrame. One dimension means a single row.
        name: How messages call the matrix.

    Raises:
        TypeError: The argument is none of these, or it does not hold real numbers.
        ValueError: It has no dimensions or more than two.

    Example:
        >>> import torch
        >>> from mach_ext.data import as_scipy
        >>> as_scipy(torch.tensor([0.0, 0.5, 2.0])).toarray()
        array([[0. , 0.5, 2. ]], dtype=float32)
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
    if matrix.dtype == np.float16:  # SciPy has no sparse matrices of this dtype
        matrix = matrix.astype(np.float32)
    return scipy.sparse.csr_matrix(matrix)


def from_torch(tensor: torch.Tensor, name: str) -> Any:
    """Converts a tensor to a NumPy array if it is dense, and to a SciPy sparse matrix otherwise.

    Duplicates are not summed.

    Raises:
        TypeError: The tensor holds complex or quantized numbers.
        ValueError: A sparse tensor has dense dimensions.
    """
    tensor = tensor.detach().cpu()
    if tensor.is_complex() or tensor.is_quantized:
        raise TypeError(f"{name}: must hold real numbers, got dtype {tensor.dtype}")
    if tensor.dtype in (torch.bfloat16, torch.float16):  # NumPy lacks the first, SciPy the second
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
    """Checks a matrix completely and returns it as canonical float32 CSR.

    Canonical means that the indices of a row are sorted and unique. Duplicates are summed in float64. The
    argument is not modified. The result shares its memory if nothing had to change.

    Args:
        matrix: Real numbers [rows, columns] in any form that `as_scipy` accepts. One dimension means a single
            row.
        name: How messages call the matrix.

    Raises:
        TypeError: The argument is not a matrix of real numbers.
        ValueError: The structure is broken, or a value is NaN, infinite or beyond float32.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data import check_csr
        >>> check_csr(sparse.coo_matrix(([1.0, 2.0], ([0, 0], [3, 3])), shape=(1, 4))).toarray()
        array([[0., 0., 0., 3.]], dtype=float32)
    """
    csr = _to_csr(as_scipy(matrix, name), name)
    if not csr.has_canonical_format:
        csr = csr.astype(np.float64)  # a copy, so that the sums are rounded only once
        csr.sum_duplicates()
    elif csr.dtype.itemsize > 4:  # the rounding must be the same with and without duplicates
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


def is_single_canonical(matrix: Any, num_columns: int) -> bool:
    """Returns whether a matrix is a single row in canonical float32 CSR, so that `check_csr` changes nothing.

    SciPy's own checks take longer for such a row than a model takes to predict its labels.

    Args:
        matrix: Anything.
        num_columns: The required number of columns.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data.matrices import is_single_canonical
        >>> row = sparse.csr_matrix([[0.0, 2.0, 1.0]], dtype="float32")
        >>> is_single_canonical(row, 3), is_single_canonical(row, 4), is_single_canonical(row.T, 1)
        (True, False, False)
    """
    if type(matrix) is not scipy.sparse.csr_matrix or matrix.shape != (1, num_columns):
        return False
    arrays = values, indices, indptr = matrix.data, matrix.indices, matrix.indptr
    if any(type(array) is not np.ndarray or array.ndim != 1 for array in arrays) or len(indptr) != 2:
        return False
    if values.dtype != np.float32 or indices.dtype not in (np.int32, np.int64):
        return False
    if indptr.dtype != indices.dtype or indptr[0] != 0 or not len(values) == len(indices) == indptr[1]:
        return False
    if not len(values):
        return True
    ascend = indices[0] >= 0 and indices[-1] < num_columns and (indices[1:] > indices[:-1]).all()
    return bool(ascend and np.isfinite(values).all())


def check_columns(X: Any, what: str, num_columns: int, letter: str = "D") -> Csr:
    """Checks a matrix as `check_csr` does, and also its number of columns.

    Args:
        X: A matrix in any form that `check_csr` accepts.
        what: How messages call the matrix.
        num_columns: The required number of columns.
        letter: How messages call this number.

    Returns:
        The matrix as canonical float32 CSR.

    Raises:
        TypeError: As `check_csr`.
        ValueError: As `check_csr`, or the number of columns differs.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data import check_columns
        >>> check_columns(sparse.csr_matrix((2, 4)), "X", 4).shape
        (2, 4)
        >>> check_columns(sparse.csr_matrix((2, 3)), "X", 4)
        Traceback (most recent call last):
        ...
        ValueError: X must have D=4 columns, got shape (2, 3)
    """
    csr = check_csr(X, what)
    if csr.shape[1] != num_columns:
        raise ValueError(f"{what} must have {letter}={num_columns} columns, got shape {csr.shape}")
    return csr


def check_structure(matrix: Any) -> None:
    """Checks that the index arrays of a SciPy matrix stay inside the matrix. SciPy itself assumes so.

    Raises:
        ValueError: They do not. The message says which rule is broken.
    """
    if matrix.format == "coo":
        coords = matrix.coords if hasattr(matrix, "coords") else (matrix.row, matrix.col)  # SciPy below 1.13
        for ids, count in zip(coords, matrix.shape, strict=True):
            if len(ids) != len(matrix.data) or (len(ids) and not 0 <= ids.min() <= ids.max() < count):
                raise ValueError("row and column indices must be inside the matrix, one of each a value")
    elif hasattr(matrix, "check_format"):
        if matrix.format == "bsr" and 0 in matrix.blocksize:
            raise ValueError("blocks must not be empty")
        matrix.check_format(full_check=True)
        indptr = matrix.indptr  # SciPy does not check it if its last number is not above 0
        if indptr[0] != 0 or (indptr[1:] < indptr[:-1]).any():
            raise ValueError("index pointer values must form a non-decreasing sequence from 0")


def _to_csr(matrix: Any, name: str) -> Csr:
    """Returns a SciPy matrix as CSR. Its structure is checked, and its values are kept as they are."""
    if max(matrix.shape) > MAX_DIMENSION:
        raise ValueError(f"{name}: rows and columns must be below 2^31, got shape {matrix.shape}")
    try:
        check_structure(matrix)  # nothing may be converted before this
    except ValueError as error:
        raise ValueError(f"{name}: {error}, got shape {matrix.shape}, {matrix.data.size} values") from None
    if matrix.format not in ("csr", "csc"):  # the conversion of any other format sums duplicates
        with np.errstate(over="ignore"):
            matrix = matrix.astype(np.float64)
    return scipy.sparse.csr_matrix(matrix)


def row_lengths(X: Csr) -> NDArray[np.float64]:
    """Returns the Euclidean length of each row of a canonical CSR matrix [N], float64.

    The rows are processed 65,536 at a time, so that the float64 copy stays small.

    Args:
        X: Features [N, D], canonical CSR.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data import row_lengths
        >>> row_lengths(sparse.csr_matrix([[3.0, 4.0], [0.0, 2.0]])).tolist()
        [5.0, 2.0]
    """
    parts = [np.zeros(0)]
    for start in range(0, X.shape[0], 1 << 16):
        part = X[start : start + (1 << 16)].astype(np.float64)
        part.data **= 2
        parts.append(np.sqrt(np.asarray(part.sum(1)).ravel()))
    return np.concatenate(parts)


@memory_errors("free memory first, or split the data", "data.check_labels")
def check_labels(matrix: Any, name: str = "Y", *, allow_weights: bool = True) -> Csr:
    """Checks a matrix of labels. Every stored number other than 0 becomes 1, and stored zeros are removed.

    Args:
        matrix: Labels [N, L] in any form that `check_csr` accepts. A whole number above 1 counts as one
            label.
        name: How messages call the matrix.
        allow_weights: Whether fractions, such as relevance weights, also become 1. Readers and training pass
            False, because they would not use the weights.

    Returns:
        The labels [N, L] as canonical float32 CSR.

    Raises:
        TypeError: As `check_csr`.
        ValueError: As `check_csr`, or a number is negative, or a fraction is not allowed.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data import check_labels
        >>> check_labels(sparse.csr_matrix([[0.0, 3.0, 1.0]])).toarray()
        array([[0., 1., 1.]], dtype=float32)
    """
    matrix = as_scipy(matrix, name)
    csr = check_csr(matrix, name)
    kept = matrix.format in ("csr", "csc", "coo", "bsr")
    stored = matrix.data if kept else _to_csr(matrix, name).data  # before summing and rounding
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
    """Returns the matrix with empty columns added up to `columns`. The result shares its memory."""
    if matrix.shape[1] == columns:
        return matrix
    wide = scipy.sparse.csr_matrix(
        (matrix.data, matrix.indices, matrix.indptr), shape=(matrix.shape[0], columns)
    )
    wide.has_canonical_format = True
    return wide


def check_rows(X: Csr, Y: Csr, X_name: PathLike, Y_name: PathLike) -> None:
    """Refuses a pair of matrices that have different numbers of rows.

    Raises:
        ValueError: The numbers differ.
    """
    if X.shape[0] != Y.shape[0]:
        raise ValueError(
            f"{X_name} and {Y_name}: must have as many rows, got {X.shape[0]} and {Y.shape[0]} documents"
        )


def unit_rows(X: Csr) -> Csr:
    """Scales rows [., D] to length 1. Rows without features stay empty."""
    lengths = row_lengths(X)
    lengths[lengths == 0] = 1
    data = X.data / np.repeat(lengths, np.diff(X.indptr))
    return scipy.sparse.csr_matrix((data.astype(np.float32), X.indices, X.indptr), X.shape)


def spaced_rows(count: int, most: int) -> NDArray[np.int64]:
    """Returns the numbers of at most so many of `count` rows, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.int64))
