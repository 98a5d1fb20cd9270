"""Checks of the metrics' arguments. Each check returns its argument in the form that metrics work with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy
import torch

from mach_ext.data.matrices import check_structure, from_torch

KS = (1, 3, 5)  # the usual k of P, nDCG, PSP and PSnDCG
RECALL_KS = (10, 50)

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]


def check_truth(function: str, argument: str, Y: Any) -> Any:
    """Return a CSR of booleans, sorted, without duplicates and explicit zeros.

    It shares memory with Y if possible.
    """
    stored = _stored_entries(function, argument, Y)
    valid = stored.data >= 0
    if not valid.all():
        value = stored.data[np.argmin(valid)]
        raise ValueError(f"{function}: {argument} must not have negative or NaN entries, got {value}")
    # Duplicates are summed as booleans, because a sum of numbers could overflow its dtype and become 0.
    true = stored.data != 0
    if stored.format == "csr":
        truth = scipy.sparse.csr_array((true, stored.indices, stored.indptr), shape=stored.shape)
    else:
        truth = scipy.sparse.coo_array((true, (stored.row, stored.col)), shape=stored.shape).tocsr()
    if not (truth.has_canonical_format and truth.data.all()):
        truth = truth.copy()
        truth.sum_duplicates()
        truth.eliminate_zeros()
    return truth


def _stored_entries(function: str, argument: str, Y: Any) -> Any:
    """Return a matrix [N, L] as CSR or COO of its entries as they are stored. Duplicates are not summed."""
    if isinstance(Y, torch.Tensor):
        Y = from_torch(Y, f"{function}: {argument}")
    if not (scipy.sparse.issparse(Y) or isinstance(Y, np.ndarray)):
        came = type(Y).__name__
        raise TypeError(f"{function}: {argument} must be a SciPy sparse matrix [N, L], got {came}")
    if Y.ndim not in (1, 2):
        raise ValueError(f"{function}: {argument} must have 2 dimensions [N, L], got shape {Y.shape}")
    if Y.dtype.kind not in "biuf":
        raise TypeError(f"{function}: {argument} must hold booleans, integers or floats, got dtype {Y.dtype}")
    if isinstance(Y, np.ndarray) and Y.dtype.kind in "iu" and Y.max(initial=0) > 1:
        raise ValueError(
            f"{function}: {argument}, a dense matrix [N, L] of integers, must hold 0 and 1 (not label ids), "
            f"got {Y.max()}"
        )
    if scipy.sparse.issparse(Y):
        try:
            check_structure(Y)
        except ValueError as error:
            raise ValueError(f"{function}: {argument} is not a valid {Y.format} matrix: {error}") from error
    if Y.ndim == 2 and scipy.sparse.issparse(Y) and Y.format == "csr":
        return Y
    stored = scipy.sparse.coo_array(Y.astype(np.float32) if Y.dtype == np.float16 else Y)
    return stored if stored.ndim == 2 else stored.reshape(1, -1)


def check_predictions(function: str, predictions: npt.ArrayLike, shape: tuple[int, int]) -> Ints:
    """Check label ids [N, K], and return them as an array."""
    ids = _array(function, "predictions", predictions)
    if ids.dtype.kind not in "iu":
        came = f"{type(predictions).__name__} of dtype {ids.dtype}"
        raise TypeError(f"{function}: predictions must be integer label ids [N, K] in rank order, got {came}")
    if ids.ndim != 2 or len(ids) != shape[0]:
        raise ValueError(
            f"{function}: predictions must be [N, K] with one row for each of the {shape[0]} documents "
            f"of Y_true, got shape {ids.shape}"
        )
    wrong = (ids < -1) | (ids >= shape[1])
    if wrong.any():
        row, rank = np.argwhere(wrong)[0]
        raise ValueError(
            f"{function}: predictions must be label ids in [0, {shape[1]}), or -1 for none, "
            f"got {ids[row, rank]} in row {row}"
        )
    return ids


def check_distinct(function: str, block: Ints, first_row: int) -> None:
    """Refuse rows that repeat a label."""
    ordered = np.sort(block, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != -1)
    if repeated.any():
        row, place = np.argwhere(repeated)[0]
        raise ValueError(
            f"{function}: predictions must not repeat a label within a row, "
            f"got label {ordered[row, place]} more than once in row {first_row + row}"
        )


def check_inverse_propensity(function: str, values: npt.ArrayLike, num_labels: int) -> Floats:
    """Check inverse propensities, and return them as float64 [L]."""
    q = _array(function, "inverse_propensity", values)
    if q.dtype.kind not in "fiu":
        raise TypeError(f"{function}: inverse_propensity must be numbers [L], got dtype {q.dtype}")
    if q.shape != (num_labels,):
        raise ValueError(f"{function}: inverse_propensity must be [L] = [{num_labels}], got shape {q.shape}")
    valid = np.isfinite(q) & (q >= 1)
    if not valid.all():
        label = np.argmin(valid)
        raise ValueError(
            f"{function}: inverse_propensity must be finite and >= 1 (1/p, not p), "
            f"got {q[label]} for label {label}"
        )
    return q.astype(np.float64, copy=False)


def check_band(function: str, name: str, mask: npt.ArrayLike, num_labels: int) -> npt.NDArray[np.bool_]:
    """Check the mask of a band, and return it as booleans [L]."""
    band = _array(function, f"band {name!r}", mask)
    if band.dtype.kind != "b":
        raise TypeError(f"{function}: band {name!r} must be booleans [L], got dtype {band.dtype}")
    if band.shape != (num_labels,):
        raise ValueError(f"{function}: band {name!r} must be [L] = [{num_labels}], got shape {band.shape}")
    return band


def select_ks(
    function: str,
    ks: Iterable[int] | None,
    recall_ks: Iterable[int] | None,
    num_columns: int,
    num_labels: int,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the k to report.

    These are the requested k, or those of the usual k for which the predictions have columns.
    """

    def carried(k: int) -> bool:
        return num_columns >= min(k, num_labels)

    def chosen(argument: str, asked: Iterable[int] | None, usual: tuple[int, ...]) -> tuple[int, ...]:
        if asked is None:
            return tuple(k for k in usual if carried(k))
        checked = _check_ks(function, argument, asked)
        for k in checked:
            if not carried(k):
                raise ValueError(
                    f"{function}: {argument} must be at most K={num_columns}, the columns of predictions, "
                    f"got {k}; fill up rows of fewer labels with -1"
                )
        return checked

    return chosen("ks", ks, KS), chosen("recall_ks", recall_ks, RECALL_KS)


def _check_ks(function: str, argument: str, ks: Iterable[int]) -> tuple[int, ...]:
    if not isinstance(ks, Iterable):
        raise TypeError(f"{function}: {argument} must be a sequence of integers, got {ks!r}")
    return tuple(check_k(function, argument, k) for k in ks)


def check_k(function: str, argument: str, k: int, least: int = 1) -> int:
    """Check that k is an integer of at least `least`."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
        raise TypeError(f"{function}: {argument} must be an integer, got {k!r}")
    if k < least:
        raise ValueError(f"{function}: {argument} must be at least {least}, got {k}")
    return int(k)


def _array(function: str, argument: str, value: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors in device memory
        raise TypeError(f"{function}: {argument} can't be read as a NumPy array: {error}") from error
