"""Columns of what was read: where ids start, how many there are, which of them a model knows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy

from mach_ext.data.files import PathLike
from mach_ext.data.formats.names import Names
from mach_ext.data.formats.svmlight import counts_from_one
from mach_ext.data.matrices import Csr, widen


def known_and_unseen(Y: Csr, num_labels: int) -> tuple[Csr, Csr]:
    """Labels that a model knows [N, L], and the others [N, U], U as many as occur."""
    coo = Y.tocoo()
    known = coo.col < num_labels
    _, others = np.unique(coo.col[~known], return_inverse=True)
    parts = []
    for at, columns, width in (
        (known, coo.col[known], num_labels),
        (~known, others, int(others.max(initial=-1)) + 1),
    ):
        arrays = (coo.data[at], (coo.row[at], columns))
        parts.append(scipy.sparse.csr_matrix(arrays, shape=(Y.shape[0], width)))
    return parts[0], parts[1]


def fit_features(X: Csr, num_features: int, path: PathLike, remarks: list[str]) -> Csr:
    """The one rule of widths: fewer columns are filled up with empty ones, more are refused.

    Raises:
        ValueError: more columns than ``num_features``.
    """
    if X.shape[1] > num_features:
        raise ValueError(
            f"{path}: must have at most the model's D={num_features} columns, got shape {X.shape}"
        )
    if X.shape[1] < num_features:
        remarks.append(f"{path}: has {X.shape[1]:,} of {num_features:,} features; the others count as 0")
    return widen(X, num_features)


def first_id(matrices: Sequence[Csr], names: Names | None) -> int | None:
    """Number of the first column of svmlight files by what they show, ids as written; None: nothing."""
    if not counts_from_one(matrices):
        return 0
    if names is None:
        return None
    largest = max(matrix.shape[1] for matrix in matrices) - 1
    return {largest: 1, largest + 1: 0}.get(len(names.names))
