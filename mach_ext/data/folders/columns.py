"""Fits data to the columns of train or of a model, and separates labels that a model does not know."""

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
    """Returns the split with D and L columns. Labels that a model does not know are kept apart."""
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
        reading.remarks.append(f"{files.filtered}: metrics do not count its pairs as answers")
    return Split(X, widen(Y, L), data.texts, unseen, filtered)


def _known_and_unseen(Y: Csr, num_labels: int) -> tuple[Csr, Csr]:
    """Splits labels into those that a model knows [N, L] and the others [N, U]. Only U other labels occur."""
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
    """Returns the features with `num_features` columns. Missing columns are added as empty columns.

    Args:
        X: Features [N, at most D], CSR.
        num_features: The number of columns D of the model or of train.
        path: The file, for messages.
        remarks: A list that a sentence about missing columns is appended to.

    Raises:
        ValueError: X has more than D columns.

    Example:
        >>> from scipy import sparse
        >>> from mach_ext.data.folders import fit_features
        >>> remarks = []
        >>> fit_features(sparse.csr_matrix((2, 3)), 5, "test.txt", remarks).shape, remarks
        ((2, 5), ['test.txt: has 3 of 5 features; the others count as 0'])
    """
    if X.shape[1] > num_features:
        raise ValueError(
            f"{path}: must have at most the model's D={num_features} columns, got shape {X.shape}"
        )
    if X.shape[1] < num_features:
        remarks.append(f"{path}: has {X.shape[1]:,} of {num_features:,} features; the others count as 0")
    return widen(X, num_features)
