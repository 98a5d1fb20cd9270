"""The labels of a batch in any form that training code has, as CSR tensors for the loss."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import scipy  # scipy.sparse is loaded at its first use, which takes 0.2 s
import torch
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


def label_csr(
    op: str, labels: Labels, leading: tuple[int, ...], num_labels: int, device: torch.device
) -> Pair:
    """Return labels as indices [nnz] and indptr [N + 1] on a device.

    The ids of a CSR pair are left for the loss to check.

    Args:
        op: The function that messages name.
        labels: The labels of the documents.
        leading: Leading dimensions of the hidden units. Their product is N.
        num_labels: L.
        device: The device of the loss.
    """
    if isinstance(labels, tuple):
        return _of_pair(op, labels, device)
    N = math.prod(leading)
    if isinstance(labels, np.ndarray) and labels.dtype != object:
        labels = torch.from_numpy(np.ascontiguousarray(labels))
    if isinstance(labels, Tensor) and labels.layout == torch.strided:
        pair = _of_tensor(op, labels, leading, num_labels)
    elif isinstance(labels, Tensor) or scipy.sparse.issparse(labels):
        pair = _of_matrix(op, labels, N, num_labels)
    elif isinstance(labels, (list, np.ndarray)):
        pair = _of_lists(op, labels, leading)
    else:
        raise TypeError(f"{op}: labels must be {_FORMS}, got {type(labels).__name__}")
    return pair[0].to(device), pair[1].to(device)


def _of_pair(op: str, labels: tuple[Any, ...], device: torch.device) -> Pair:
    """Return a pair of tensors or NumPy arrays as tensors. Tensors stay on their device."""
    if len(labels) != 2:
        raise ValueError(f"{op}: labels as a tuple must be (indices, indptr), got {len(labels)} entries")
    arrays = [torch.from_numpy(part).to(device) if isinstance(part, np.ndarray) else part for part in labels]
    for part in arrays:
        if not isinstance(part, Tensor):
            raise TypeError(
                f"{op}: labels as a tuple must be tensors (indices, indptr), got {type(part).__name__}; "
                "give lists of label ids in a list"
            )
    return arrays[0], arrays[1]


def _of_matrix(op: str, matrix: Any, N: int, num_labels: int) -> Pair:
    """Return a sparse matrix [N, L]."""
    if tuple(matrix.shape) != (N, num_labels):
        raise ValueError(f"{op}: labels must be [N={N}, L={num_labels}], got {list(matrix.shape)}")
    csr = check_labels(matrix, f"{op}: labels")
    return torch.from_numpy(csr.indices), torch.from_numpy(csr.indptr)


def _of_tensor(op: str, labels: Tensor, leading: tuple[int, ...], num_labels: int) -> Pair:
    """Return padded ids [..., m], or a 0/1 tensor [..., L]."""
    if labels.dim() == 0 or tuple(labels.shape[:-1]) != leading:
        raise ValueError(
            f"{op}: labels must have the leading dimensions of hidden, {[*leading, 'm']}, "
            f"got {list(labels.shape)}"
        )
    rows = labels.detach().reshape(math.prod(leading), labels.shape[-1])
    if labels.dtype in (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8):
        kept = rows >= 0
        wrong = rows[~kept & (rows != PADDING[0]) & (rows != PADDING[1])]
        if len(wrong):
            raise ValueError(
                f"{op}: labels must be ids in [0, L={num_labels}), or -1 or -100, got {int(wrong[0])}"
            )
        return rows[kept].long(), _indptr(kept.sum(1))
    if labels.dtype != torch.bool and not labels.is_floating_point():
        raise TypeError(f"{op}: labels must be integers, floats or bools, got {labels.dtype}")
    if rows.shape[1] != num_labels:
        raise ValueError(
            f"{op}: labels of {str(labels.dtype).removeprefix('torch.')} must be 0/1 of all labels "
            f"[..., L={num_labels}], got {list(labels.shape)}; give ids as integers"
        )
    if not bool(((rows == 0) | (rows == 1)).all()):
        raise ValueError(f"{op}: labels as floats must be 0 or 1, got {rows[(rows != 0) & (rows != 1)][0]:g}")
    return rows.nonzero()[:, 1], _indptr((rows != 0).sum(1))


def _of_lists(op: str, labels: Any, leading: tuple[int, ...]) -> Pair:
    """Return a list of label ids for each document."""
    N = math.prod(leading)
    if not leading and not any(isinstance(entry, (list, tuple, set, Tensor, np.ndarray)) for entry in labels):
        labels = [labels]  # hidden units [H] are a single document
    if len(labels) != N:
        raise ValueError(f"{op}: labels must be a list for each of the N={N} documents, got {len(labels)}")
    counts, ids = [], []
    for row, entry in enumerate(labels):
        try:
            document = np.asarray(list(entry.tolist() if isinstance(entry, Tensor) else entry))
        except TypeError:
            raise TypeError(
                f"{op}: labels must be a list of label ids for each document, got "
                f"{type(entry).__name__} in row {row}"
            ) from None
        if document.size and (document.dtype.kind not in "iu" or document.ndim != 1):
            raise TypeError(f"{op}: labels must be integers, got {document.dtype} in row {row}")
        counts.append(document.size)
        ids.append(document.astype(np.int64))
    flat = np.concatenate(ids) if ids else np.empty(0, np.int64)
    return torch.from_numpy(flat), _indptr(torch.tensor(counts, dtype=torch.int64))


def _indptr(counts: Tensor) -> Tensor:
    """Return the start of each row and the end of the last."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))
