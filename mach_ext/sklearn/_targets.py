"""The forms of `y`: one class a document, an indicator of labels, or lists of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from mach_ext.data import check_columns, check_labels
from mach_ext.data.matrices import Csr
from mach_ext.sklearn._rows import encode_rows, is_indicator, read_rows

CLASSES, DENSE, SPARSE, LISTS = "classes", "dense indicator", "sparse indicator", "lists"


class Fitted(NamedTuple):
    """What a fit learned of its labels: their form, and the names of all L."""

    form: str
    classes: NDArray[Any]

    def sees_indicator(self, rows: Sequence[Any]) -> bool:
        """Return whether equally long lists of zeros and ones are an indicator for these labels.

        They are not after a fit on lists of such labels, nor if [0, 1] cannot be a row of L numbers.
        """
        if self.form == LISTS:
            return not any(name in (0, 1) for name in self.classes.tolist())
        return len(rows[0]) == len(self.classes) or any(len(set(row)) < len(row) for row in rows)


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
            return encode_rows(self.content)
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


def read_target(y: Any, fitted: Fitted | None = None) -> Target:
    """Recognise the form of `y`, and check it.

    A list of equally long lists of zeros and ones is an indicator, as everywhere in scikit-learn.

    Args:
        y: The labels of documents.
        fitted: The labels of a former fit. They tell lists of the labels 0 and 1 from an indicator.

    Raises:
        TypeError: `y` is no array-like of labels.
        ValueError: `y` is None, its rows are of different forms, or an indicator does not hold 0 and 1.
    """
    if y is None:
        raise ValueError("This MACHClassifier estimator requires y to be passed, but the target y is None.")
    if getattr(y, "ndim", 0) == 2 and hasattr(y, "sparse"):
        y = y.sparse.to_coo()  # a DataFrame whose columns are all sparse
    if scipy.sparse.issparse(y):
        return Target(SPARSE, read_indicator(y))
    if not _is_array_like(y):
        raise TypeError(
            "MACHClassifier: y must be an array or a list of classes or of lists of labels, or an "
            f"indicator [N, L], got {type(y).__name__}"
        )
    rows = read_rows(y)
    if rows is not None and not (is_indicator(rows) and (fitted is None or fitted.sees_indicator(rows))):
        return Target(LISTS, rows)
    y = check_array(y if rows is None else rows, ensure_2d=False, dtype=None, input_name="y")
    if y.ndim == 2 and y.shape[1] > 1:
        return Target(DENSE, read_indicator(y))
    y = column_or_1d(y, warn=True)
    check_classification_targets(y)
    return Target(CLASSES, y)


def _is_array_like(y: Any) -> bool:
    if hasattr(y, "__array__"):
        return getattr(y, "ndim", 1) != 0
    return isinstance(y, Sequence) and not isinstance(y, (str, bytes))


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
        other = " (or lists of label names)" if name == "y" else ""
        raise ValueError(
            f"MACHClassifier: {name} must be an indicator [N, L] of 0 and 1{other}, got dtype {y.dtype} and "
            f"shape {y.shape}"
        )
    stored = y.data if scipy.sparse.issparse(y) else y
    others = stored[(stored != 0) & (stored != 1)]
    if others.size:
        raise ValueError(f"MACHClassifier: {name} must hold 0 and 1 alone, got {others.flat[0]}")
    return check_labels(y, f"MACHClassifier: {name}")


def as_rectangle(rows: Any) -> NDArray[Any]:
    """Return an array of rows. Rows that are not equally long give an array of objects."""
    try:
        return np.asarray(rows)
    except ValueError:
        return np.array([*rows, None], object)[:-1]


def check_weights(weights: Any, num_documents: int) -> NDArray[np.float64] | None:
    """Return the weights of documents, checked. None: all weigh the same."""
    if weights is None:
        return None
    rule = f"MACHClassifier: sample_weight must hold N={num_documents} finite numbers"
    array = np.asarray(weights)
    if array.shape != (num_documents,) or array.dtype.kind not in "biuf":
        raise ValueError(f"{rule}, got dtype {array.dtype} and shape {array.shape}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all() or array.sum() == 0:
        raise ValueError(f"{rule} whose sum is not 0, got a sum of {array.sum()}")
    return array
