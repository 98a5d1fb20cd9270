"""Converts the input and the output of the compiled parser of text files."""

from __future__ import annotations

import os

import numpy as np
import scipy

import mach_ext._C as _C
from mach_ext.data.dataset import Split
from mach_ext.data.files import PathLike


def split_of(document: _C.Document) -> Split:
    """Makes a split of the arrays that the parser returns."""
    label_indptr, labels, indptr, indices, values, rows, features, num_labels = document
    X = scipy.sparse.csr_matrix((values, indices, indptr), shape=(rows, features))
    ones = np.ones(labels.size, np.float32)
    Y = scipy.sparse.csr_matrix((ones, labels, label_indptr), shape=(rows, num_labels))
    X.has_canonical_format = Y.has_canonical_format = True  # the parser guarantees it
    return Split(X, Y)


def utf8_path(path: PathLike) -> str:
    """Returns a path in valid UTF-8, which the compiled parser needs for its messages."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()
