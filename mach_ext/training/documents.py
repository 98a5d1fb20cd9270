"""What training asks of its data: the checked form, the typical length of a document, checksums."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np

from mach_ext.data import check_csr, check_labels, row_lengths
from mach_ext.nn import MACH


def checked_data(op: str, x_name: str, y_name: str, X: Any, Y: Any, model: MACH) -> tuple[Any, Any]:
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
