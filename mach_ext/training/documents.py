"""The data of a run: checked documents and labels, checksums and the typical length."""

from __future__ import annotations

import functools
import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from mach_ext import metrics
from mach_ext._dense_features import checked_documents
from mach_ext.data import HybridMatrix, check_labels, row_lengths
from mach_ext.nn import MACH

_ROWS = 4096  # rows of dense features that are read at a time


@dataclass(frozen=True)
class TrainingData:
    """Documents and labels of a run, in canonical CSR form.

    Attributes:
        X: Documents [N, D].
        Y: Labels [N, L].
        dev: Documents and labels for validation, or None.
        filtered_dev: [N_dev, L], non-zero where a label must not be answered, or None.
    """

    X: Any  # [N, D], or a HybridMatrix
    Y: Any  # [N, L]
    dev: tuple[Any, Any] | None = None  # the same of validation documents
    filtered_dev: Any = None  # [N_dev, L], non-zero where a label is no answer

    @property
    def num_documents(self) -> int:
        """N, the number of training documents."""
        return int(self.X.shape[0])

    @functools.cached_property
    def label_counts(self) -> np.ndarray[Any, Any]:
        """The number of documents of each label, [L]."""
        return metrics.label_counts(self.Y)

    def fingerprint(self) -> dict[str, list[int]]:
        """Return shape, non-zeros and checksum of each matrix. A checkpoint recognises its data by these."""
        matrices = zip(("X", "Y", "X_dev", "Y_dev"), (self.X, self.Y, *(self.dev or ())), strict=False)
        return {name: [*matrix.shape, int(matrix.nnz), checksum(matrix)] for name, matrix in matrices}


def check_training_data(
    model: MACH, X: Any, Y: Any, X_dev: Any = None, Y_dev: Any = None, filtered_dev: Any = None
) -> TrainingData:
    """Check the whole data of `fit`."""
    X, Y = check_documents("fit", "X", "Y", X, Y, model)
    dev = None
    if X_dev is not None or Y_dev is not None:
        if X_dev is None or Y_dev is None:
            raise ValueError("fit: X_dev and Y_dev must be given together")
        dev = check_documents("fit", "X_dev", "Y_dev", X_dev, Y_dev, model)
        if dev[0].shape[0] == 0:
            raise ValueError("fit: X_dev needs at least one document, got N=0")
    if X.shape[0] == 0:
        raise ValueError("fit: needs at least one document, got N=0")
    if filtered_dev is not None:
        filtered_dev = check_labels(filtered_dev, "fit: filtered_dev")
    return TrainingData(X, Y, dev, filtered_dev)


def check_documents(op: str, x_name: str, y_name: str, X: Any, Y: Any, model: MACH) -> tuple[Any, Any]:
    """Check documents and labels of the model's sizes, and return them in canonical CSR form."""
    X = checked_documents(f"{op}: {x_name}", model, X)
    Y = check_labels(Y, f"{op}: {y_name}", allow_weights=False)
    if X.shape[0] != Y.shape[0]:
        raise ValueError(
            f"{op}: {x_name} and {y_name} must have as many rows, got {X.shape[0]} and {Y.shape[0]}"
        )
    if Y.shape[1] != model.num_labels:
        raise ValueError(
            f"{op}: {y_name} must have the model's {model.num_labels} columns, got shape {Y.shape}"
        )
    return X, Y


def sparse_features(model: MACH, X: Any) -> Any:
    """Return checked documents of a model without their dense features, [N, D]."""
    if isinstance(X, HybridMatrix):
        return X.sparse
    return X[:, : model.num_features] if model.num_dense else X


def typical_length(X: Any) -> float:
    """Return the median length of the rows that are not empty, or 1 if all are empty.

    The result is rounded to 20 bits. Rows of unit length up to rounding therefore have length 1. If X is
    multiplied by a power of two, the result is multiplied by exactly the same number.

    Args:
        X: Documents [N, D], SciPy CSR.

    Example:
        >>> import scipy.sparse
        >>> from mach_ext.training import typical_length
        >>> typical_length(scipy.sparse.csr_matrix([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0], [6.0, 8.0]]))
        5.0
    """
    lengths = row_lengths(X)
    if not lengths.any():
        return 1.0
    mantissa, exponent = math.frexp(np.median(lengths[lengths > 0]))
    return math.ldexp(round(math.ldexp(mantissa, 20)), exponent - 20)


def checksum(matrix: Any) -> int:
    """Return the CRC-32 of a CSR matrix, or of the parts of a `HybridMatrix`.

    Args:
        matrix: SciPy CSR or `mach_ext.data.HybridMatrix`.

    Example:
        >>> import scipy.sparse
        >>> from mach_ext.training import checksum
        >>> checksum(scipy.sparse.eye(3, format="csr")) == checksum(scipy.sparse.eye(4, format="csr"))
        False
    """
    if isinstance(matrix, HybridMatrix):
        crc = checksum(matrix.sparse)
        for start in range(0, len(matrix), _ROWS):
            crc = zlib.crc32(
                np.ascontiguousarray(matrix.dense[start : start + _ROWS]).view(np.uint8).data, crc
            )
        return crc
    crc = 0
    for array in (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data):
        crc = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, crc)
    return crc
