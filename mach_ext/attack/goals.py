"""Goals of attacks: the labels that a batch's losses are about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mach_ext.data import check_labels
from mach_ext.nn import MACH, USUAL_K, checked_k

GOALS = ("untargeted", "own", "positive", "negative")
NEAREST = 100  # ranks in which a false label to push up is looked for


@dataclass
class Targets:
    """What a batch's losses are about."""

    labels: tuple[Tensor, Tensor]  # indices, indptr of the labels whose loss is to rise
    pairs: Tensor | None = None  # [N, 2]: the label to raise, the label to lower
    active: Tensor | float = 1.0  # [N]: 0 where there is nothing to aim at
    targets: Tensor | None = None  # [N]: the label that is to leave or enter; -1


def goal_k(op: str, model: MACH, goal: str, k: int | None) -> int:
    """The k of a goal, checked; labels can leave and enter the top k only if there are others."""
    L = model.num_labels
    if goal not in ("positive", "negative"):
        return checked_k(op, k, L)
    if L < 2:
        raise ValueError(f"{op}: goal {goal!r} needs a label outside the top k, got L={L}")
    chosen = min(USUAL_K, L - 1) if k is None else checked_k(op, k, L)
    if chosen == L:
        raise ValueError(f"{op}: goal {goal!r} needs k < L={L}, got {chosen}")
    return chosen


def check_true_labels(op: str, model: MACH, goal: str, X: Any, Y: Any) -> Any:
    """True labels [N, L] of documents X, checked; None where there are none and the goal needs none."""
    if Y is None:
        if goal != "own":
            raise ValueError(f'{op}: goal {goal!r} needs the true labels Y; goal "own" needs none')
        return None
    Y = check_labels(Y, f"{op}: Y")
    if Y.shape != (X.shape[0], model.num_labels):
        raise ValueError(f"{op}: Y must be [N, L] = [{X.shape[0]}, {model.num_labels}], got shape {Y.shape}")
    return Y


def first_label(ranked: NDArray[Any], eligible: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of each document the first label that is eligible, or -1."""
    at = ranked[np.arange(len(ranked)), eligible.argmax(1)]
    return np.where(eligible.any(1), at, -1).astype(np.int64)


def is_true(Y: Any, labels: NDArray[Any]) -> NDArray[np.bool_]:  # [N, K]
    """Whether labels [N, K] are true for their documents; -1 is none."""
    stride = Y.shape[1]
    keys = np.repeat(np.arange(Y.shape[0]), np.diff(Y.indptr)) * stride + Y.indices
    asked = np.arange(len(labels))[:, None] * stride + labels
    result: NDArray[np.bool_] = np.isin(asked, keys) & (labels >= 0)
    return result
