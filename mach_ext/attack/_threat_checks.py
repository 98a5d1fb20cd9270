"""Checks of threat models: of sizes, of values, and of changes in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse
import torch


def check_epsilon(op: str, epsilon: Any) -> None:
    """Refuses a size that is no number or negative."""
    if not (isinstance(epsilon, (int, float, np.number)) and 0 <= epsilon < math.inf):
        raise ValueError(f"{op}: epsilon must be a number >= 0, got {epsilon!r}")


def negative_values(op: str, threat: Any, value: float, row: int) -> ValueError:
    """Returns the error for a negative value where the threat model keeps values >= 0."""
    return ValueError(
        f"{op}: threat model {threat} keeps values >= 0, but X has {value:g} in row {row}; "
        f"use {type(threat).__name__}(nonnegative=False) for such features"
    )


def holds_on_all_entries(threat: Any, X: Any, adversarial: Any, epsilon: float) -> bool:
    """Returns whether matrices are within a threat model's ball. Entries that are 0 may change, too."""
    change = change_of(to_float64(X), to_float64(adversarial), threat.nonnegative)
    return change is not None and in_ball(change, threat.norm, epsilon)


def change_of(X: Any, adversarial: Any, nonnegative: bool) -> Any:
    """Returns the change of documents. None: it is not finite, or it leads to values that must not be < 0."""
    change = adversarial - X
    change.eliminate_zeros()
    is_negative = nonnegative and adversarial.data.min(initial=0) < 0
    return None if is_negative or not np.isfinite(change.data).all() else change


def to_float64(X: Any) -> Any:
    """Returns CSR of float64. Duplicates are summed in float64, not in a smaller dtype of their own."""
    return scipy.sparse.csr_matrix(scipy.sparse.coo_matrix(X).astype(np.float64))


def in_ball(change: Any, norm: float, epsilon: float) -> bool:
    """Returns whether the change of every document is within a ball of radius epsilon."""
    rows = np.repeat(np.arange(change.shape[0]), np.diff(change.indptr))
    size = np.abs(change.data)
    if norm == math.inf:
        reached = size
    elif norm == 1:
        reached = np.bincount(rows, size, minlength=1)
    else:
        reached = np.sqrt(np.bincount(rows, size**2, minlength=1))
    return bool(reached.max(initial=0.0) <= epsilon * (1 + 1e-12))


def change_outside(X: Any, change: Any) -> Any:
    """Returns the part of a change at features at which X is 0."""
    outside = scipy.sparse.csr_matrix(change - change.multiply(X != 0))
    outside.eliminate_zeros()
    return outside


def round_down(epsilon: float, dtype: torch.dtype) -> float:
    """Returns the largest number of the dtype that is not above epsilon."""
    near = torch.tensor(epsilon, dtype=dtype)
    if near.double().item() > epsilon:
        near = near.nextafter(near.new_tensor(0.0))
    return float(near)
