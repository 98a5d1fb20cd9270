"""The data of a run: documents and labels in checked form, checksums, the typical length."""

from __future__ import annotations

import functools
import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from mach_ext import metrics
from mach_ext.data import check_csr, check_labels, row_lengths
from mach_ext.nn import MACH


@dataclass(frozen=True)
class TrainingData:
    """Documents and labels of a run, in canonical CSR form."""

    X: Any  # [N, D]
    Y: Any  # [N, L]
    dev: tuple[Any, Any] | None = None  # the same of validation documents
    filtered_dev: Any = None  # [N_dev, L], non-zero where a label is no answer

    @property
    def num_documents(self) -> int:
        return int(self.X.shape[0])

    @functools.cached_property
    def label_counts(self) -> np.ndarray[Any, Any]:
        """How many documents have each label [L]."""
        return metrics.label_counts(self.Y)

    def fingerprint(self) -> dict[str, list[int]]:
        """Shape, non-zeros and checksum of each matrix, by which a checkpoint knows its data again."""
        matrices = zip(("X", "Y", "X_dev", "Y_dev"), (self.X, self.Y, *(self.dev or ())), strict=False)
        return {name: [*matrix.shape, int(matrix.nnz), checksum(matrix)] for name, matrix in matrices}


def check_training_data(
    model: MACH, X: Any, Y: Any, X_dev: Any = None, Y_dev: Any = None, filtered_dev: Any = None
) -> TrainingData:
    """The data of `fit`, checked in full."""
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
    """Documents and labels in canonical CSR form, of the model's sizes."""
    X, Y = check_csr(X, f"{op}: {x_name}"), check_labels(Y, f"{op}: {y_name}", allow_weights=False)
    if X.shape[0] != Y.shape[0]:
        raise ValueError(
            f"{op}: {x_name} and {y_name} must have as many rows, got {X.shape[0]} and {Y.shape[0]}"
        )
    for name, matrix, columns in ((x_name, X, model.num_features), (y_name, Y, model.num_labels)):
        if matrix.shape[1] != columns:
            raise ValueError(
                f"{op}: {name} must have the model's {columns} columns, got shape {matrix.shape}"
            )
    return X, Y


def typical_length(X: Any) -> float:
    """Median length of the rows that have any; 1 where none has.

    To 20 bits: rows of unit length up to rounding count as of length 1, and X times a power of two as so
    many times as long.
    """
    lengths = row_lengths(X)
    if not lengths.any():
        return 1.0
    mantissa, exponent = math.frexp(np.median(lengths[lengths > 0]))
    return math.ldexp(round(math.ldexp(mantissa, 20)), exponent - 20)


def checksum(matrix: Any) -> int:
    """CRC-32 of a CSR matrix."""
    crc = 0
    for array in (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data):
        crc = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, crc)
    return crc
