"""The forms of `y`: one class a document, an indicator of labels, or lists of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.preprocessing import MultiLabelBinarizer
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from mach_ext.data import check_columns, check_labels
from mach_ext.data.matrices import Csr

CLASSES, DENSE, SPARSE, LISTS = "classes", "dense indicator", "sparse indicator", "lists"

_SETS = (set, frozenset)


class Target(NamedTuple):
    """The labels of N documents, checked.

    Attributes:
        form: CLASSES, DENSE, SPARSE or LISTS.
        content: The classes [N], an indicator [N, L] as canonical CSR, or N collections of labels.
    """

    form: str
    content: Any

    def encode(self) -> tuple[NDArray[Any], Csr]:
        """Return the names of the L labels, in order, and the indicator [N, L].

        An indicator has no names, so its labels are called 0 to L - 1.
        """
        if self.form == LISTS:
            return _encode_lists(self.content)
        if self.form != CLASSES:
            return np.arange(self.content.shape[1]), self.content
        classes, columns = np.unique(self.content, return_inverse=True)
        N = len(columns)
        entries = np.ones(N, np.float32), columns, np.arange(N + 1)
        return classes, scipy.sparse.csr_matrix(entries, shape=(N, len(classes)))

    def hits(self, classes: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether each document has the label that is given for it.

        Args:
            classes: The names of the labels, [L].
            labels: The number of a label for each document, [N].
        """
        if self.form == CLASSES:
            return np.asarray(self.content == classes[labels])
        if self.form == LISTS:
            pairs = zip(classes[labels].tolist(), self.content, strict=True)
            return np.array([label in collection for label, collection in pairs])
        indicator = check_columns(self.content, "MACHClassifier: y", len(classes), "L")
        return np.asarray(indicator[np.arange(len(labels)), labels]).ravel() > 0


def read_target(y: Any) -> Target:
    """Recognise the form of `y`, and check it.

    A list of equally long lists of zeros and ones is an indicator, as everywhere in scikit-learn.

    Raises:
        TypeError: `y` is no array-like of labels.
        ValueError: `y` is None, its rows are of different forms, or an indicator does not hold 0 and 1.
    """
    if y is None:
        raise ValueError("This MACHClassifier estimator requires y to be passed, but the target y is None.")
    if scipy.sparse.issparse(y):
        return Target(SPARSE, read_indicator(y))
    rows = _rows(y)
    if rows is not None and not _is_indicator(rows):
        return Target(LISTS, rows)
    y = check_array(y, ensure_2d=False, dtype=None, input_name="y")
    if y.ndim == 2 and y.shape[1] > 1:
        return Target(DENSE, read_indicator(y))
    y = column_or_1d(y, warn=True)
    check_classification_targets(y)
    return Target(CLASSES, y)


def read_indicator(y: Any, name: str = "y") -> Csr:
    """Return an indicator of labels as canonical CSR. An entry that is stored twice counts once.

    Args:
        y: An indicator [N, L], NumPy or SciPy sparse.
        name: How messages call it.

    Raises:
        ValueError: It has no columns, or it holds something other than 0 and 1.
    """
    if scipy.sparse.issparse(y) and y.format not in ("csr", "csc", "coo", "bsr"):
        y = y.tocoo()  # Other formats have no array of just the stored numbers.
    if y.dtype.kind not in "biuf" or y.ndim != 2 or y.shape[1] == 0:
        raise ValueError(
            f"MACHClassifier: {name} must be an indicator [N, L] of 0 and 1 (or lists of label names), "
            f"got dtype {y.dtype} and shape {y.shape}"
        )
    stored = y.data if scipy.sparse.issparse(y) else y
    others = stored[(stored != 0) & (stored != 1)]
    if others.size:
        raise ValueError(f"MACHClassifier: {name} must hold 0 and 1 alone, got {others.flat[0]}")
    return check_labels(y, f"MACHClassifier: {name}")


def _rows(y: Any) -> list[Any] | None:
    """Return the collections of labels of `y`. None: it holds none."""
    is_objects = getattr(y, "dtype", None) == np.dtype(object) and getattr(y, "ndim", 0) == 1
    if not isinstance(y, (list, tuple)) and not is_objects:
        return None
    rows = list(y)
    is_collection = [_is_collection(row) for row in rows]
    if not any(is_collection):
        return None
    if not all(is_collection):
        n = is_collection.index(False)
        raise ValueError(
            f"MACHClassifier: y, row {n}: must be a list of labels, as other rows are, got {rows[n]!r}"
        )
    return rows


def _is_collection(row: Any) -> bool:
    return isinstance(row, (list, tuple, *_SETS)) or (isinstance(row, np.ndarray) and row.ndim == 1)


def _is_indicator(rows: Sequence[Any]) -> bool:
    """Return whether rows are those of a dense indicator: zeros and ones, equally long, at least two."""
    if len({len(row) for row in rows}) != 1 or len(rows[0]) < 2:
        return False
    if any(isinstance(row, _SETS) for row in rows):
        return False
    return all(label in (0, 1) for row in rows for label in row)


def _encode_lists(rows: list[Any]) -> tuple[NDArray[Any], Csr]:
    """Return the sorted labels of collections, and the indicator. A label that a row repeats counts once."""
    binarizer = MultiLabelBinarizer(sparse_output=True)
    try:
        indicator = binarizer.fit_transform(rows)
    except TypeError:
        types = ", ".join(sorted({type(label).__name__ for row in rows for label in row}))
        raise TypeError(
            f"MACHClassifier: labels in y must be hashable and sortable, such as all strings, got {types}"
        ) from None
    if not len(binarizer.classes_):
        raise ValueError("MACHClassifier: y must hold at least one label, got only empty lists")
    return binarizer.classes_, check_labels(indicator, "MACHClassifier: y")
