"""Checks of arguments. Each message names the function, the argument, the rule and the given value."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor

from mach_ext import _ops
from mach_ext.hashing import LabelHash

MERGES = ("mean", "min", "median")
PRECISIONS = ("float32", "bfloat16")  # of the products with bucket weights
FLOATS = (torch.float32, torch.float64)
_HALVES = (torch.bfloat16, torch.float16)
_INTS = (torch.int32, torch.int64)


def as_int(op: str, name: str, value: Any) -> int:
    """Return a Python or NumPy integer as int. bool and float are refused.

    Args:
        op: The function that the message names.
        name: The argument that the message names.
        value: The value.

    Returns:
        The integer.

    Raises:
        TypeError: The value is not an integer.

    Example:
        >>> import numpy as np
        >>> from mach_ext.functional import as_int
        >>> as_int("predict", "k", np.int64(5))
        5
        >>> as_int("predict", "k", 5.0)
        Traceback (most recent call last):
        TypeError: predict: k must be an int, got float
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be an int, got {type(value).__name__}") from None


def _name(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")


def check_kind(op: str, name: str, t: Any, dim: int, dtypes: tuple[torch.dtype, ...]) -> None:
    """Check that an argument is a dense tensor with so many dimensions and a dtype among `dtypes`."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(t).__name__}")
    if t.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be a dense tensor, got one of layout {_name(t.layout)}")
    if t.dtype not in dtypes:
        raise TypeError(f"{op}: {name} must be {' or '.join(map(_name, dtypes))}, got {_name(t.dtype)}")
    if t.dim() != dim:
        raise ValueError(f"{op}: {name} must have {dim} dimension(s), got shape {list(t.shape)}")


def widen(t: Any, weight: Any = None) -> Any:
    """Return a half-precision tensor in the dtype of the weight, which is at least float32.

    Anything else is returned as it is.
    """
    if not isinstance(t, Tensor) or t.dtype not in _HALVES:
        return t
    return t.to(weight.dtype if isinstance(weight, Tensor) and weight.dtype in FLOATS else torch.float32)


def _check_device(op: str, name: str, t: Tensor, device: torch.device) -> None:
    if t.device != device:
        raise ValueError(f"{op}: {name} must be on {device} like the other arguments, got {t.device}")


def check_tensor(op: str, name: str, t: Any, dim: int, like: Tensor) -> None:
    """Check a weight or bias: its dtype, its device and its number of dimensions.

    The dtype and the device are those of `like`. If `like` is float32, bfloat16 is also allowed, and on CUDA
    float16.
    """
    narrow = _HALVES if like.is_cuda else (torch.bfloat16,)
    check_kind(op, name, t, dim, (like.dtype, *(narrow if like.dtype == torch.float32 else ())))
    _check_device(op, name, t, like.device)


def check_float32_or_64(op: str, name: str, t: Tensor) -> None:
    """Refuse weights in half precision, which cannot be trained."""
    if t.dtype not in FLOATS:
        raise TypeError(
            f"{op}: {name} must be float32 or float64 to be trained (keep float32 master weights), "
            f"got {_name(t.dtype)}"
        )


def _check_shape(op: str, name: str, t: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(t.shape) != tuple(shape):
        raise ValueError(f"{op}: {name} must have shape {list(shape)}, got {list(t.shape)}")


def check_bias(
    op: str, bias: Tensor | None, shape: tuple[int, ...], like: Tensor, name: str = "bias"
) -> None:
    """Check a bias, unless it is None."""
    if bias is not None:
        check_tensor(op, name, bias, len(shape), like)
        _check_shape(op, name, bias, shape)


def check_activation(op: str, activation: str | None) -> None:
    """Refuse unknown activations."""
    if activation not in (None, "relu"):
        raise ValueError(f'{op}: activation must be None or "relu", got {activation!r}')


def _check_index_pair(op: str, indices: Any, indptr: Any, prefix: str = "") -> None:
    check_kind(op, f"{prefix}indices", indices, 1, _INTS)
    check_kind(op, f"{prefix}indptr", indptr, 1, _INTS)
    if indptr.shape[0] == 0:
        raise ValueError(f"{op}: {prefix}indptr must have N + 1 >= 1 entries, got 0")


def check_documents(op: str, values: Any, indices: Any, indptr: Any) -> None:
    """Check types, lengths and devices of documents in CSR form, but not their contents."""
    check_kind(op, "values", values, 1, FLOATS)
    _check_index_pair(op, indices, indptr)
    if values.shape[0] != indices.shape[0]:
        raise ValueError(
            f"{op}: values and indices must have the same length, "
            f"got {values.shape[0]} and {indices.shape[0]}"
        )
    _check_device(op, "indices", indices, values.device)
    _check_device(op, "indptr", indptr, values.device)


def is_readable(t: Tensor) -> bool:
    """Return whether the contents of a tensor are checked.

    Those of a GPU's would be waited for. A tensor that is traced, or a fake tensor, has no contents.
    """
    return t.device.type == "cpu" and type(t) is Tensor and not torch.compiler.is_compiling()


def check_contents(
    op: str,
    values: Tensor | None,
    indices: Tensor,
    indptr: Tensor,
    num_columns: int,
    validate: bool,
    prefix: str = "",
) -> None:
    """Check the contents of a CSR matrix in one pass over the non-zeros, on the CPU only.

    `prefix` is "label_" for labels.
    """
    if not validate or not is_readable(indices):
        return
    fault, row, position = _ops.check_csr(
        None if values is None else values.detach(), indices, indptr, num_columns
    )
    if fault == 0:
        return
    kind, size = ("label", "L") if prefix else ("feature", "D")
    at = f"{prefix}indices[{position}] (row {row})"
    if fault == 1:
        rule = f"{prefix}indptr[0] must be 0, got {indptr[0]}"
    elif fault == 2:
        rule = f"{prefix}indptr must not decrease, got {indptr[row]} then {indptr[row + 1]} at row {row}"
    elif fault == 3:
        rule = f"{prefix}indptr must end at the number of non-zeros {len(indices)}, got {indptr[row]}"
    elif fault == 4:
        rule = f"{at} must be in [0, {size}={num_columns}), got {indices[position]}"
    elif fault == 5:
        rule = f"a {kind} must occur once in a row, got {kind} {indices[position]} twice in row {row}"
    else:
        assert values is not None
        rule = f"values must be finite, got {values[position].item()} at values[{position}] (row {row})"
    raise ValueError(f"{op}: {rule}")


def check_buckets_weight(op: str, hidden: Any, weight: Any, bias: Tensor | None) -> None:
    """Check hidden [N, H] or [N, R, H], weight [R, H, B] and bias [R, B] together."""
    check_kind(op, "hidden", hidden, 3 if isinstance(hidden, Tensor) and hidden.dim() == 3 else 2, FLOATS)
    check_tensor(op, "weight", weight, 3, hidden)
    R, H, B = weight.shape
    if R == 0:
        raise ValueError(f"{op}: weight must have R >= 1 repetitions, got shape {list(weight.shape)}")
    if tuple(hidden.shape[1:]) not in ((H,), (R, H)):
        raise ValueError(
            f"{op}: hidden must be [N, H={H}] or [N, R={R}, H={H}] to match weight, got {list(hidden.shape)}"
        )
    check_bias(op, bias, (R, B), hidden)


def check_precision(op: str, precision: str, *floats: Tensor | None) -> None:
    """Refuse an unknown precision, and refuse to round float64.

    Args:
        op: The function that the message names.
        precision: The precision, one of `PRECISIONS`.
        *floats: The factors of the product.

    Raises:
        TypeError: bfloat16 was asked of float64.
        ValueError: The precision is unknown.

    Example:
        >>> from mach_ext.functional import check_precision
        >>> check_precision("predict", "float32")
        >>> check_precision("predict", "half")
        Traceback (most recent call last):
        ValueError: predict: precision must be one of float32, bfloat16, got 'half'
    """
    if precision not in PRECISIONS:
        raise ValueError(f"{op}: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "float32":
        return
    if any(t is not None and t.dtype == torch.float64 for t in floats):
        raise TypeError(f"{op}: precision {precision} is for float32, got float64")


def check_hash(op: str, hash: LabelHash, R: int, B: int, device: torch.device) -> None:
    """Check a label hash: its type, its sizes, its device, and that its buckets were not written to."""
    if not isinstance(hash, LabelHash):
        raise TypeError(f"{op}: hash must be a mach_ext.LabelHash, got {type(hash).__name__}")
    if (hash.num_repetitions, hash.num_buckets) != (R, B):
        raise ValueError(
            f"{op}: hash has R={hash.num_repetitions} repetitions and B={hash.num_buckets} buckets, "
            f"the scores or weights have R={R}, B={B}"
        )
    if hash.buckets.device != device:
        raise ValueError(
            f"{op}: hash is on {hash.buckets.device}, the tensors on {device}; use hash.to({str(device)!r})"
        )
    if not torch.compiler.is_compiling():
        hash.check_buckets()


def check_answer(out: Tensor, hash: LabelHash, validate: bool) -> Tensor:
    """Return the result of an operator.

    If it contains NaN, buckets that were written to may be the cause. This is checked, and raises an error.
    """
    if validate and is_readable(out) and math.isnan(out.detach().sum()):
        hash.check_contents()
    return out


def check_scores(op: str, scores: Any, hash: LabelHash, merge: str) -> None:
    """Check scores [N, R, B], their label hash and the name of a merge."""
    check_kind(op, "scores", scores, 3, FLOATS)
    check_hash(op, hash, scores.shape[1], scores.shape[2], scores.device)
    if merge not in MERGES:
        raise ValueError(f"{op}: merge must be one of {', '.join(MERGES)}, got {merge!r}")


def labels_by_document(op: str, labels: Any, N: int, hash: LabelHash, validate: bool) -> Tensor:
    """Check labels [m] or [N, m], and return them as [N, m] int64."""
    check_kind(op, "labels", labels, 2 if isinstance(labels, Tensor) and labels.dim() == 2 else 1, _INTS)
    _check_device(op, "labels", labels, hash.buckets.device)
    if labels.dim() == 1:
        labels = labels.expand(N, -1)
    elif labels.shape[0] != N:
        raise ValueError(f"{op}: labels must be [m] or [N={N}, m], got {list(labels.shape)}")
    if validate and is_readable(labels) and labels.numel():
        low, high = labels.aminmax()
        if low < 0 or high >= hash.num_labels:
            wrong = int(low if low < 0 else high)
            raise ValueError(f"{op}: labels must be in [0, L={hash.num_labels}), got {wrong}")
    as_int64: Tensor = labels.long()
    return as_int64


def check_label_csr(
    op: str,
    label_indices: Any,
    label_indptr: Any,
    N: int,
    device: torch.device,
    hash: LabelHash,
    validate: bool,
) -> tuple[Tensor, Tensor]:
    """Check the labels of N documents in CSR form, and return the label ids as int64."""
    _check_index_pair(op, label_indices, label_indptr, "label_")
    _check_device(op, "label_indices", label_indices, device)
    _check_device(op, "label_indptr", label_indptr, device)
    if label_indptr.shape[0] != N + 1:
        raise ValueError(
            f"{op}: label_indptr must have N + 1 = {N + 1} entries, one row a document, "
            f"got {label_indptr.shape[0]}"
        )
    if N == 0:
        raise ValueError(f"{op}: the mean over documents needs at least one, got N=0")
    check_contents(op, None, label_indices, label_indptr, hash.num_labels, validate, "label_")
    return label_indices.long(), label_indptr
