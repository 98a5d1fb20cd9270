"""Lists of labels: which `y` holds them, and which labels they may hold."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import DataConversionWarning
from sklearn.preprocessing import MultiLabelBinarizer

from mach_ext.data import check_labels
from mach_ext.data.matrices import Csr

_PLAIN = (np.number, np.bool_, np.str_, np.bytes_)  # NumPy's scalars that equal one of Python, with its hash


def read_rows(y: Any) -> list[Collection[Any]] | None:
    """Return the collections of labels of `y`. None: it holds none.

    A collection is a list, tuple, set, range or the like, or an array, Series or tensor of one dimension.

    Raises:
        TypeError: A row is no collection of labels, such as a dict.
        ValueError: Only some rows are collections.
    """
    rows = _items(y)
    if rows is None:
        return None
    is_collection = [_is_collection(row) for row in rows]
    if not any(is_collection):
        _refuse_other_collections(rows)
        return None
    if not all(is_collection):
        n = is_collection.index(False)
        raise ValueError(
            f"MACHClassifier: y, row {n}: must be a list of labels, as other rows are, got {rows[n]!r}"
        )
    if getattr(y, "ndim", 1) == 2:
        message = "MACHClassifier: y is a column of lists of labels; pass the lists in one dimension"
        warnings.warn(message, DataConversionWarning, stacklevel=4)
    return [_array_items(row) if hasattr(row, "__array__") else row for row in rows]


def is_indicator(rows: Sequence[Any]) -> bool:
    """Return whether rows are those of a dense indicator: zeros and ones, equally long, at least two."""
    if len({len(row) for row in rows}) != 1 or len(rows[0]) < 2:
        return False
    if any(isinstance(row, Set) for row in rows):
        return False
    return all(label in (0, 1) for row in rows for label in row)


def encode_rows(rows: Sequence[Any]) -> tuple[NDArray[Any], Csr]:
    """Return the sorted labels of collections, and the indicator. A label that a row repeats counts once.

    Scalars of NumPy become Python's, which print as users expect and fit into JSON.
    """
    binarizer = MultiLabelBinarizer(sparse_output=True)
    try:
        indicator = binarizer.fit_transform(rows)
    except TypeError:
        types = ", ".join(sorted({type(label).__name__ for row in rows for label in row}))
        raise TypeError(
            f"MACHClassifier: labels in y must be hashable and sortable, such as all strings, got {types}"
        ) from None
    names = [label.item() if isinstance(label, _PLAIN) else label for label in binarizer.classes_]
    if not names:
        raise ValueError("MACHClassifier: y must hold at least one label, got only empty lists")
    if missing := [name for name in names if _is_missing(name)]:
        raise ValueError(f"MACHClassifier: labels in y must not be None or NaN, got {missing[0]!r}")
    return _as_array(names), check_labels(indicator, "MACHClassifier: y")


def _items(y: Any) -> list[Any] | None:
    """Return the rows of `y`, if it could hold collections."""
    if hasattr(y, "__array__"):
        y = np.asarray(y)
        is_column = y.dtype == np.dtype(object) and (y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1))
        return list(y.ravel()) if is_column else None
    return list(y) if isinstance(y, Sequence) else None


def _is_collection(row: Any) -> bool:
    if isinstance(row, (str, bytes)):
        return False
    return isinstance(row, (Sequence, Set)) or (hasattr(row, "__array__") and getattr(row, "ndim", 0) == 1)


def _refuse_other_collections(rows: list[Any]) -> None:
    for n, row in enumerate(rows):
        if isinstance(row, (Mapping, Iterator)):
            raise TypeError(
                f"MACHClassifier: y, row {n}: must be a class or a list of labels, got {type(row).__name__}"
            )


def _array_items(row: Any) -> list[Any]:
    """Return the labels of an array. Dates stay NumPy's, because those of Python have other hashes."""
    array = np.asarray(row)
    return array.tolist() if array.dtype.kind in "biufUSO" else list(array)


def _is_missing(label: Any) -> bool:
    try:
        return label is None or bool(label != label)
    except TypeError:  # `pandas.NA` does not compare
        return True


def _as_array(names: list[Any]) -> NDArray[Any]:
    """Return names as an array of integers if all are, and of objects otherwise."""
    if all(isinstance(name, int) for name in names) and abs(names[0]) < 2**63 and abs(names[-1]) < 2**63:
        return np.array(names, np.int64)
    array = np.empty(len(names), object)
    array[:] = names
    return array
