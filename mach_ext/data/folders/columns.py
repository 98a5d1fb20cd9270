"""Columns of what was read: as many as train or the model has, and labels that a model does not know."""

from __future__ import annotations

import numpy as np
import scipy

from mach_ext.data.dataset import Split
from mach_ext.data.files import PathLike
from mach_ext.data.folders.files import SplitFiles
from mach_ext.data.folders.reading import Reading
from mach_ext.data.formats.sparse_text import read_pairs
from mach_ext.data.matrices import Csr, widen


def fit_columns(reading: Reading, data: Split, files: SplitFiles, D: int, L: int) -> Split:
    """The split with D and L columns; what a model does not know of its labels is set apart."""
    X, Y, unseen = data.X, data.Y, None
    if reading.documents_only:
        Y = scipy.sparse.csr_matrix((X.shape[0], L))
    if reading.columns is None and (X.shape[1] > D or Y.shape[1] > L):
        file = files.Y if files.Y is not None and Y.shape[1] > L else files.X
        raise ValueError(
            f"{file}: D and L must be those of train, {D} and {L}, got {X.shape[1]} and {Y.shape[1]}"
        )
    X = fit_features(X, D, files.X, reading.remarks)
    if Y.shape[1] > L:
        Y, unseen = _known_and_unseen(Y, L)
        count, documents = unseen.shape[1], int((np.diff(unseen.indptr) > 0).sum())
        if count == 0:
            unseen = None
        else:
            reading.remarks.append(
                f"{files.Y or files.X}: {count:,} labels, of {documents:,} documents, are unknown to the "
                "model and count as misses"
            )
    filtered = None
    if files.filtered is not None:
        filtered = read_pairs(files.filtered, (X.shape[0], max(data.Y.shape[1], L)))[:, :L]
        reading.remarks.append(f"{files.filtered}: metrics leave its pairs out of the answers")
    return Split(X, widen(Y, L), data.texts, unseen, filtered)


def _known_and_unseen(Y: Csr, num_labels: int) -> tuple[Csr, Csr]:
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
