"""Documents with sparse and dense features side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy
import torch
from numpy.typing import NDArray

from mach_ext._memory import memory_errors
from mach_ext.data.matrices import Csr, check_csr, from_torch

_BLOCK = 1 << 22  # so many numbers of a dense matrix are read at a time: 16 MiB as float32


class HybridMatrix:
    """Documents [N, D + E] with D sparse features, such as words, and E dense features, such as embeddings.

    It may stand wherever documents of a model with `num_dense=E` are asked for. Both parts are checked once,
    when the object is made. The dense part is kept as it is. So a memory-mapped file stays on the disk, and
    only the rows of a batch are read. As everywhere in mach_ext, documents are float32: other numbers are
    rounded when they are used.

    Pass the dense features as the encoder gave them. The model centres and scales them itself.

    Args:
        sparse: [N, D], a matrix in any form that `mach_ext.data.check_csr` takes.
        dense: [N, E], a NumPy array of real numbers, perhaps memory-mapped, or a torch tensor.

    Attributes:
        sparse: The sparse features [N, D], canonical CSR float32.
        dense: The dense features [N, E], as they were given.

    Raises:
        TypeError: A part is no matrix of real numbers.
        ValueError: The parts differ in their rows, E is 0, or a number is NaN, infinite or beyond float32.

    Example:
        >>> import numpy as np
        >>> from scipy import sparse
        >>> from mach_ext.data import HybridMatrix
        >>> X = HybridMatrix(sparse.eye(3, 5, format="csr"), np.ones((3, 2), np.float32))
        >>> X.shape, X.num_features, X.num_dense
        ((3, 7), 5, 2)
        >>> X[1:].shape
        (2, 7)
    """

    sparse: Csr
    dense: NDArray[Any]

    @memory_errors("free memory first, or split the data", "data.HybridMatrix")
    def __init__(self, sparse: Any, dense: Any) -> None:
        self.sparse = check_csr(sparse, "HybridMatrix: sparse")
        self.dense = check_dense(dense, "HybridMatrix: dense")
        if self.sparse.shape[0] != len(self.dense):
            raise ValueError(
                "HybridMatrix: sparse and dense must have as many rows, "
                f"got {self.sparse.shape[0]} and {len(self.dense)}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """N and D + E.

        Example:
            >>> import numpy as np
            >>> from scipy import sparse
            >>> from mach_ext.data import HybridMatrix
            >>> HybridMatrix(sparse.eye(3, 5), np.ones((3, 2))).shape
            (3, 7)
        """
        return self.sparse.shape[0], self.num_features + self.num_dense

    @property
    def num_features(self) -> int:
        """D, the number of sparse features.

        Example:
            >>> import numpy as np
            >>> from scipy import sparse
            >>> from mach_ext.data import HybridMatrix
            >>> HybridMatrix(sparse.eye(3, 5), np.ones((3, 2))).num_features
            5
        """
        return int(self.sparse.shape[1])

    @property
    def num_dense(self) -> int:
        """E, the number of dense features.

        Example:
            >>> import numpy as np
            >>> from scipy import sparse
            >>> from mach_ext.data import HybridMatrix
            >>> HybridMatrix(sparse.eye(3, 5), np.ones((3, 2))).num_dense
            2
        """
        return int(self.dense.shape[1])

    @property
    def nnz(self) -> int:
        """The number of stored numbers: the non-zeros of the sparse part, and N * E.

        Example:
            >>> import numpy as np
            >>> from scipy import sparse
            >>> from mach_ext.data import HybridMatrix
            >>> HybridMatrix(sparse.eye(3, 5), np.ones((3, 2))).nnz
            9
        """
        return int(self.sparse.nnz + self.dense.size)

    def __len__(self) -> int:
        """Return N, the number of documents."""
        return len(self.dense)

    def __repr__(self) -> str:
        """Return the sizes."""
        return (
            f"HybridMatrix({len(self)} documents, {self.num_features} sparse features with {self.sparse.nnz} "
            f"non-zeros, {self.num_dense} dense features of dtype {self.dense.dtype})"
        )

    def __getitem__(self, rows: Any) -> HybridMatrix:
        """Return some documents: those of a slice, of row numbers, of a mask, or a single one.

        Only these rows of the dense part are read.

        Raises:
            TypeError: The index is neither a slice nor integers nor a mask of one dimension.
            IndexError: A row does not exist, or a mask has another length.
        """
        if isinstance(rows, tuple):
            raise TypeError("HybridMatrix: rows alone can be chosen, got an index of two dimensions")
        if not isinstance(rows, slice):
            given, rows = rows, np.asarray(rows)
            if rows.size == 0 and not isinstance(given, np.ndarray):
                rows = rows.astype(np.int64)  # NumPy makes floats of an empty list.
            if rows.ndim > 1 or rows.dtype.kind not in ("iu" if rows.ndim == 0 else "iub"):
                raise TypeError(
                    "HybridMatrix: rows must be a slice, integers or a mask of one dimension, got "
                    f"{type(given).__name__} of dtype {rows.dtype} and shape {rows.shape}"
                )
            rows = rows.reshape(-1)
            if rows.dtype.kind == "b":
                if len(rows) != len(self):
                    raise IndexError(f"HybridMatrix: a mask must have N={len(self)} rows, got {len(rows)}")
                rows = np.flatnonzero(rows)
            elif rows.size and not -len(self) <= int(rows.min()) <= int(rows.max()) < len(self):
                raise IndexError(
                    f"HybridMatrix: rows must be in {-len(self)} ... {len(self) - 1}, got {rows.min()} to "
                    f"{rows.max()}"
                )
        return _of_parts(self.sparse[rows], self.dense[rows])

    def join(self, center: NDArray[Any] | None = None, scale: float = 1.0) -> Csr:
        """Return the documents as one sparse matrix whose last E columns are `(dense - center) * scale`.

        All E numbers of a row are stored, also those that are 0. `MACH.join` calls this method with the
        center and the scale of a model.

        Args:
            center: [E]. None: zeros.
            scale: A factor.

        Returns:
            [N, D + E], canonical CSR float32.

        Raises:
            ValueError: The scaled numbers do not fit float32.

        Example:
            >>> import numpy as np
            >>> from scipy import sparse
            >>> from mach_ext.data import HybridMatrix
            >>> X = HybridMatrix(sparse.eye(2, 2), np.array([[1.0, 2.0], [3.0, 4.0]]))
            >>> X.join(center=np.array([2.0, 3.0]), scale=0.5).toarray()
            array([[ 1. ,  0. , -0.5, -0.5],
                   [ 0. ,  1. ,  0.5,  0.5]], dtype=float32)
        """
        dense = np.asarray(self.dense, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            if center is not None:
                dense = dense - np.asarray(center, np.float32)
            if scale != 1:
                dense = dense * np.float32(scale)
        if not np.isfinite(dense).all():
            raise JoinOverflow(int(np.flatnonzero(~np.isfinite(dense).all(1))[0]))
        return _beside(self.sparse, dense)


class JoinOverflow(ValueError):
    """A centred and scaled number of a row does not fit float32."""

    def __init__(self, row: int) -> None:
        super().__init__(f"HybridMatrix.join, row {row}: centred and scaled numbers must fit float32")
        self.row = row


def _of_parts(sparse: Csr, dense: NDArray[Any]) -> HybridMatrix:
    """Return a matrix of parts that are known to be valid."""
    hybrid = object.__new__(HybridMatrix)
    hybrid.sparse, hybrid.dense = sparse, dense
    return hybrid


def _beside(sparse: Csr, dense: NDArray[np.float32]) -> Csr:
    """Return a matrix whose rows are the rows of both parts, one behind the other."""
    (N, D), E = sparse.shape, dense.shape[1]
    total, counts = sparse.nnz + dense.size, np.diff(sparse.indptr)
    index_type = np.int32 if max(total, D + E) < 2**31 else np.int64
    indptr = sparse.indptr + E * np.arange(N + 1, dtype=np.int64)
    of_sparse = np.arange(sparse.nnz) + E * np.repeat(np.arange(N), counts)
    of_dense = indptr[1:, None] - E + np.arange(E)
    data, indices = np.empty(total, np.float32), np.empty(total, index_type)
    data[of_sparse], indices[of_sparse] = sparse.data, sparse.indices
    data[of_dense], indices[of_dense] = dense, np.arange(D, D + E, dtype=index_type)
    joined = scipy.sparse.csr_matrix((data, indices, indptr.astype(index_type)), (N, D + E))
    joined.has_canonical_format = True
    return joined


def row_blocks(dense: NDArray[Any]) -> Iterator[slice]:
    """Yield slices of the rows of a dense matrix, so that a part of it is in memory at a time."""
    rows = max(1, _BLOCK // dense.shape[1])
    return (slice(start, start + rows) for start in range(0, len(dense), rows))


def mean_row(dense: NDArray[Any]) -> NDArray[np.float32]:
    """Returns the mean of the rows [E], summed in float64 block by block. Without rows it is 0."""
    total = np.zeros(dense.shape[1])
    for rows in row_blocks(dense):
        total += np.asarray(dense[rows], np.float32).sum(0, dtype=np.float64)
    return (total / max(1, len(dense))).astype(np.float32)


def check_dense(matrix: Any, name: str = "dense") -> NDArray[Any]:
    """Checks a dense matrix completely, block by block, and returns it without a copy.

    Args:
        matrix: Real numbers [N, E], a NumPy array, perhaps memory-mapped, a torch tensor, or any object with
            `__array__`.
        name: How messages call the matrix.

    Returns:
        A NumPy array [N, E] of the given dtype. Half-precision tensors become float32.

    Raises:
        TypeError: The argument is no dense matrix of real numbers.
        ValueError: It has not two dimensions, E is 0, or a number is NaN, infinite or beyond float32.

    Example:
        >>> import numpy as np
        >>> from mach_ext.data import check_dense
        >>> check_dense(np.ones((3, 2), np.float16)).dtype
        dtype('float16')
    """
    if isinstance(matrix, torch.Tensor):
        if matrix.layout != torch.strided:
            layout = str(matrix.layout).removeprefix("torch.")
            raise TypeError(f"{name}: must be a NumPy array or a dense tensor, got one of layout {layout}")
        matrix = from_torch(matrix, name)
    if scipy.sparse.issparse(matrix) or not hasattr(matrix, "__array__"):
        raise TypeError(f"{name}: must be a NumPy array or a dense tensor, got {type(matrix).__name__}")
    if isinstance(matrix, np.ma.MaskedArray):
        raise TypeError(f"{name}: must be a NumPy array without a mask, got a masked one")
    dense: NDArray[Any] = matrix if type(matrix) in (np.ndarray, np.memmap) else np.asarray(matrix)
    if dense.dtype.kind not in "fiub":
        raise TypeError(f"{name}: must hold real numbers, got dtype {dense.dtype}")
    if dense.ndim != 2 or dense.shape[1] == 0:
        raise ValueError(f"{name}: must have shape [N, E] with E at least 1, got shape {dense.shape}")
    for rows in row_blocks(dense):
        with np.errstate(over="ignore"):
            finite = np.isfinite(np.asarray(dense[rows], np.float32)).all(1)
        if not finite.all():
            row = rows.start + int(np.flatnonzero(~finite)[0])
            raise ValueError(f"{name}, row {row}: numbers must be finite and fit float32")
    return dense


def row_features(X: Csr | HybridMatrix) -> NDArray[np.integer[Any]]:
    """Returns how many features each document has [N], sparse and dense ones together.

    A stored zero does not count as a feature.

    Args:
        X: Features [N, D], canonical CSR, or a `HybridMatrix`.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data import row_features
        >>> row_features(sparse.csr_matrix([[0.0, 0.5], [1.0, 2.0], [0.0, 0.0]])).tolist()
        [1, 2, 0]
    """
    if isinstance(X, HybridMatrix):
        counts: NDArray[np.integer[Any]] = row_features(X.sparse)
        for rows in row_blocks(X.dense):
            counts[rows] += np.count_nonzero(X.dense[rows], axis=1)
        return counts
    if not X.data.all():
        X = X.copy()
        X.eliminate_zeros()
    features: NDArray[np.integer[Any]] = np.diff(X.indptr)
    return features
