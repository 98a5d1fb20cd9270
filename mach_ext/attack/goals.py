"""Goals of attacks: the labels that a batch's losses are about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mach_ext.data import check_labels
from mach_ext.head import MACHHead
from mach_ext.nn import MACH, USUAL_K, checked_k

GOALS = ("untargeted", "own", "positive", "negative")
NEAREST = 100  # ranks among which a false label that is pushed up is chosen


@dataclass
class Targets:
    """The labels that a batch's losses are about."""

    labels: tuple[Tensor, Tensor]  # indices and indptr of the labels whose loss is raised
    pairs: Tensor | None = None  # [N, 2], the label to raise and the label to lower
    active: Tensor | float = 1.0  # [N], 0 if the document has no target
    targets: Tensor | None = None  # [N], the label that is to leave or enter; -1: none


def goal_k(op: str, model: MACH | MACHHead, goal: str, k: int | None) -> int:
    """Returns the checked k of a goal. A label can leave or enter the top k only if there are others."""
    L = model.num_labels
    if goal not in ("positive", "negative"):
        return checked_k(op, k, L)
    if L < 2:
        raise ValueError(f"{op}: goal {goal!r} needs a label outside the top k, got L={L}")
    chosen = min(USUAL_K, L - 1) if k is None else checked_k(op, k, L)
    if chosen == L:
        raise ValueError(f"{op}: goal {goal!r} needs k < L={L}, got {chosen}")
    return chosen


def check_true_labels(op: str, model: MACH | MACHHead, goal: str, X: Any, Y: Any) -> Any:
    """Returns the checked true labels [N, L]. None: there are none, and the goal needs none."""
    if Y is None:
        if goal != "own":
            raise ValueError(f'{op}: goal {goal!r} needs the true labels Y; goal "own" needs none')
        return None
    Y = check_labels(Y, f"{op}: Y")
    if Y.shape != (X.shape[0], model.num_labels):
        raise ValueError(f"{op}: Y must be [N, L] = [{X.shape[0]}, {model.num_labels}], got shape {Y.shape}")
    return Y


def first_label(ranked: NDArray[Any], eligible: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns the first eligible label of each document, or -1."""
    at = ranked[np.arange(len(ranked)), eligible.argmax(1)]
    return np.where(eligible.any(1), at, -1).astype(np.int64)


def is_true(Y: Any, labels: NDArray[Any]) -> NDArray[np.bool_]:  # [N, K]
    """Returns whether labels [N, K] are true for their documents. -1 stands for no label and is not true."""
    stride = Y.shape[1]
    keys = np.repeat(np.arange(Y.shape[0]), np.diff(Y.indptr)) * stride + Y.indices
    asked = np.arange(len(labels))[:, None] * stride + labels
    result: NDArray[np.bool_] = np.isin(asked, keys) & (labels >= 0)
    return result
