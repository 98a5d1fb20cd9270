"""The labels of a batch in any form that training code has, as CSR tensors for the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeAlias

import numpy as np
import scipy  # scipy.sparse is loaded at its first use, which takes 0.2 s
import torch
from numpy.typing import NDArray
from torch import Tensor

from mach_ext.data.matrices import check_labels

# A CSR pair, a sparse matrix [N, L], padded ids [..., m], a 0/1 array [..., L] or lists of ids.
Labels: TypeAlias = Any
Pair: TypeAlias = tuple[Tensor, Tensor]
PADDING = (-1, -100)
_FORMS = (
    "a tuple (indices, indptr), a sparse matrix [N, L], padded ids [..., m], a 0/1 array [..., L] "
    "or a list of label ids for each document"
)
_ENTRIES = "a list of label ids for each document"


def label_csr(
    op: str, labels: Labels, leading: tuple[int, ...], num_labels: int, device: torch.device
) -> Pair:
    """Return labels as indices [nnz] and indptr [N + 1] on a device.

    Whether ids occur once in a row and are below L is left for the loss to check.

    Args:
        op: The function that messages name.
        labels: The labels of the documents.
        leading: Leading dimensions of the hidden units. Their product is N.
        num_labels: L.
        device: The device of the loss.
    """
    if isinstance(labels, tuple):
        return _of_pair(op, labels, device)
    if isinstance(labels, np.ndarray) and labels.dtype != object:
        labels = _of_array(op, labels)
    if isinstance(labels, Tensor):
        _check_contents_exist(op, labels, device)
    if isinstance(labels, Tensor) and labels.layout == torch.strided:
        pair = _of_tensor(op, labels, leading, num_labels)
    elif isinstance(labels, Tensor) or scipy.sparse.issparse(labels):
        pair = _of_matrix(op, labels, math.prod(leading), num_labels)
    elif isinstance(labels, (list, np.ndarray)):
        pair = _of_lists(op, labels, leading, num_labels)
    else:
        raise TypeError(f"{op}: labels must be {_FORMS}, got {type(labels).__name__}")
    return pair[0].to(device), pair[1].to(device)


def _of_pair(op: str, labels: tuple[Any, ...], device: torch.device) -> Pair:
    """Return a pair of tensors or NumPy arrays as tensors. Tensors stay on their device."""
    if len(labels) != 2:
        raise ValueError(f"{op}: labels as a tuple must be (indices, indptr), got {len(labels)} entries")
    tensors = [_of_array(op, part).to(device) if isinstance(part, np.ndarray) else part for part in labels]
    for part in tensors:
        if not isinstance(part, Tensor):
            raise TypeError(
                f"{op}: labels as a tuple must be tensors (indices, indptr), got {type(part).__name__}; "
                "give lists of label ids in a list"
            )
    return tensors[0], tensors[1]


def _of_array(op: str, array: NDArray[Any]) -> Tensor:
    """Return an array as a tensor. PyTorch takes native bytes in memory that may be written to."""
    if torch.compiler.is_compiling():
        return torch.from_numpy(array)  # Dynamo knows no dtypes of arrays.
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{op}: labels must not be masked, got a masked array; pad ids with labels.filled(-1)"
        )
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(f"{op}: labels must be integers, floats or bools, got {array.dtype}")
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


def _check_contents_exist(op: str, labels: Tensor, device: torch.device) -> None:
    """Refuse tensors whose contents cannot be read."""
    if labels.is_nested:
        raise TypeError(f"{op}: labels must be {_FORMS}, got a nested tensor")
    if labels.is_meta and device.type == "meta":
        raise ValueError(f"{op}: labels on the meta device must be a tuple (indices, indptr), got a tensor")
    if labels.is_meta:
        raise ValueError(f"{op}: labels must be on {device} like hidden, got meta")


def _of_matrix(op: str, matrix: Any, N: int, num_labels: int) -> Pair:
    """Return a sparse matrix [N, L]."""
    if tuple(matrix.shape) != (N, num_labels):
        raise ValueError(f"{op}: labels must be [N={N}, L={num_labels}], got {list(matrix.shape)}")
    csr = check_labels(matrix, f"{op}: labels")
    return _of_array(op, csr.indices), _of_array(op, csr.indptr)


def _of_tensor(op: str, labels: Tensor, leading: tuple[int, ...], num_labels: int) -> Pair:
    """Return padded ids [..., m], or a 0/1 tensor [..., L]."""
    if labels.dim() == 0 or tuple(labels.shape[:-1]) != leading:
        expected = f"[{', '.join(map(str, (*leading, 'm')))}]"
        raise ValueError(f"{op}: labels must be {expected} like hidden, got {list(labels.shape)}")
    rows = labels.detach().reshape(math.prod(leading), labels.shape[-1])
    dtype = str(labels.dtype).removeprefix("torch.")
    if labels.dtype.is_complex or labels.is_quantized:
        raise TypeError(f"{op}: labels must be integers, floats or bools, got {dtype}")
    if labels.dtype != torch.bool and not labels.is_floating_point():
        return _of_ids(op, rows, dtype, num_labels)
    if rows.shape[1] != num_labels:
        raise ValueError(
            f"{op}: labels of {dtype} must be 0/1 of all labels [..., L={num_labels}], "
            f"got {list(labels.shape)}; give ids as integers"
        )
    if not bool(((rows == 0) | (rows == 1)).all()):
        raise ValueError(f"{op}: labels as floats must be 0 or 1, got {rows[(rows != 0) & (rows != 1)][0]:g}")
    return rows.nonzero()[:, 1], _indptr((rows != 0).sum(1))


def _of_ids(op: str, rows: Tensor, dtype: str, num_labels: int) -> Pair:
    """Return padded ids [N, m]."""
    ids = rows.long()
    kept = ids >= 0
    wrong = ids[~kept & (ids != PADDING[0]) & (ids != PADDING[1])]
    if rows.dtype == torch.uint64:
        wrong = ids[~kept]  # They are above 2^63.
    if len(wrong):
        given = int(wrong[0]) % 2**64 if rows.dtype == torch.uint64 else int(wrong[0])
        raise ValueError(f"{op}: labels must be ids in [0, L={num_labels}), or -1 or -100, got {given}")
    # Ids of so many labels would differ. A few labels may all be ids 0 and 1.
    if ids.shape[1] == num_labels > 2 and bool((kept & (ids <= 1)).all()) and len(ids):
        raise ValueError(
            f"{op}: labels of {dtype} must be ids, got 0/1 of all labels [..., L={num_labels}]; "
            "give 0/1 labels as bools or floats"
        )
    return ids[kept], _indptr(kept.sum(1))


def _of_lists(op: str, labels: Any, leading: tuple[int, ...], num_labels: int) -> Pair:
    """Return a list of label ids for each document."""
    N = math.prod(leading)
    if not leading and not any(isinstance(entry, Iterable) for entry in labels):
        labels = [labels]  # hidden units [H] are a single document
    if len(labels) != N:
        is_pair = len(labels) == 2 and isinstance(labels[1], (Tensor, np.ndarray))
        raise ValueError(
            f"{op}: labels must be a list for each of the N={N} documents, got {len(labels)}"
            + ("; a pair (indices, indptr) must be a tuple" if is_pair else "")
        )
    rows = [_of_entry(op, entry, row, num_labels) for row, entry in enumerate(labels)]
    flat = np.concatenate(rows) if rows else np.empty(0, np.int64)
    return torch.from_numpy(flat), _indptr(torch.tensor([len(row) for row in rows], dtype=torch.int64))


def _of_entry(op: str, entry: Any, row: int, num_labels: int) -> NDArray[np.int64]:
    """Return the label ids of one document."""
    if isinstance(entry, Tensor) and (entry.layout != torch.strided or entry.is_meta or entry.is_nested):
        raise TypeError(f"{op}: labels must be {_ENTRIES}, got a tensor without dense contents in row {row}")
    try:
        if isinstance(entry, (str, bytes, Mapping)):
            raise TypeError
        items = list(entry.tolist() if isinstance(entry, (Tensor, np.ndarray)) else entry)
    except TypeError:
        kind = type(entry).__name__
        raise TypeError(f"{op}: labels must be {_ENTRIES}, got {kind} in row {row}") from None
    try:
        ids = np.asarray(items) if items else np.empty(0, np.int64)
    except ValueError:  # lists of different lengths
        _raise_of_items(op, items, row, num_labels)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or (ids.dtype == np.uint64 and ids.max() >= 1 << 63):
        _raise_of_items(op, items, row, num_labels)
    return ids.astype(np.int64, copy=False)


def _raise_of_items(op: str, items: list[Any], row: int, num_labels: int) -> NoReturn:
    """Say what is wrong with the label ids of one document."""
    for item in items:
        if isinstance(item, (list, tuple, set, Tensor, np.ndarray)):
            raise TypeError(f"{op}: labels must be {_ENTRIES}, got {type(item).__name__} inside row {row}")
        if isinstance(item, (bool, np.bool_)) or not isinstance(item, (int, np.integer)):
            raise TypeError(f"{op}: labels must be integers, got {type(item).__name__} in row {row}")
    wrong = next(item for item in items if not 0 <= item < num_labels)  # integers beyond 64 bits
    raise ValueError(f"{op}: labels must be in [0, L={num_labels}), got {wrong} in row {row}")


def _indptr(counts: Tensor) -> Tensor:
    """Return the start of each row and the end of the last."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))
