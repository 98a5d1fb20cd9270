"""Overtakers at one size of the threat set, and the size at which certified P@k reaches zero."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from mach_ext.attack.threats import Delete
from mach_ext.certify._bounds import Model
from mach_ext.nn import MACH


def _at(
    bounds: Model, X: Any, labels: NDArray[Any], alive: NDArray[np.bool_], epsilon: float, most: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """overtakers and attained ranks [N, k] at one size, of the labels still alive; k and clean for others."""
    k = labels.shape[1]
    overtakers = np.full(labels.shape, k)
    attained = np.broadcast_to(np.arange(k), labels.shape).copy()
    tried: list[tuple[int, int, Any]] = []
    documents = np.flatnonzero(alive.any(1)).tolist()
    for local in bounds.forms(X, documents, epsilon):
        ranks = np.flatnonzero(alive[local.n]).tolist()
        found = bounds.overtakers(local, labels[local.n, ranks].tolist(), k, most)
        for rank, (count, point) in zip(ranks, found, strict=True):
            overtakers[local.n, rank] = count
            if point is not None:
                tried.append((local.n, rank, point))
        if len(tried) >= 256:
            _try(bounds.model, labels, tried, attained)
            tried = []
    _try(bounds.model, labels, tried, attained)
    return overtakers, attained


def _try(
    model: MACH, labels: NDArray[Any], tried: list[tuple[int, int, Any]], attained: NDArray[Any]
) -> None:
    """The ranks that labels take in the documents found, by the model itself."""
    if not tried:
        return
    k = labels.shape[1]
    lengths = [len(features) for _, _, (features, _) in tried]
    X = scipy.sparse.csr_matrix(
        (
            np.concatenate([values for _, _, (_, values) in tried]),
            np.concatenate([features for _, _, (features, _) in tried]),
            np.concatenate(([0], np.cumsum(lengths))),
        ),
        (len(tried), model.num_features),
    )
    X.sort_indices()
    ranked = model.predict(X, k)[1]
    for (n, rank, _), found in zip(tried, ranked, strict=True):
        at = np.flatnonzero(found == labels[n, rank])
        attained[n, rank] = max(attained[n, rank], at[0] if len(at) else k)


def _zero(
    bounds: Model, X: Any, labels: NDArray[Any], correct: NDArray[np.bool_], overtakers: NDArray[Any],
    grid: list[float], k: int, most: int,
) -> tuple[float, float]:  # fmt: skip
    """Where certified P@k is above zero and where it is zero, by bisection from the grid on."""
    correct = correct & (np.arange(labels.shape[1]) < k)
    if not (bounds.new or bounds.everywhere):  # nothing can change a document without features
        correct = correct & (np.diff(X.indptr) > 0)[:, None]
    words = isinstance(bounds.threat, Delete)
    holds = [bool((correct & (o < k)).any()) for o in overtakers]
    last = max((e for e, held in enumerate(holds) if held), default=-1)
    if not correct.any():
        return -1.0, 0.0
    low = grid[last] if last >= 0 else 0.0
    alive = correct & (overtakers[last] < k) if last >= 0 else correct
    high = next((epsilon for epsilon in grid if epsilon > low), math.inf)

    def survivors(epsilon: float) -> NDArray[np.bool_]:
        # Only the top k counts: labels below can't be overtaken into it.
        found = _at(bounds, X, labels[:, :k], alive[:, :k], epsilon, most)[0] < k
        wide = np.zeros_like(alive)
        wide[:, :k] = found
        return wide

    if math.isinf(high):
        size = max(2 * low, 1.0 if words else 1e-3)
        for _ in range(24):
            found = survivors(size)
            if not found.any():
                high = size
                break
            low, alive, size = size, found, 2 * size
        else:
            return low, math.inf
    for _ in range(16):
        middle = float((int(low) + int(high)) // 2) if words else (low + high) / 2
        if (words and middle == low) or (not words and high <= 1.02 * low):
            break
        found = survivors(middle)
        if found.any():
            low, alive = middle, found
        else:
            high = middle
    return low, high
