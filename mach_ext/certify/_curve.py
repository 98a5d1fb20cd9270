"""`Curve` counts overtakers at each size, and finds the size at which certified P@k reaches zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach_ext._progress import tqdm
from mach_ext.attack.threats import Delete
from mach_ext.certify._bounds import Bounds
from mach_ext.certify._witness import Witness, record_ranks

_TRIED = 256  # number of witnesses that the model predicts together
_Survivors = Callable[[float, NDArray[np.bool_]], NDArray[np.bool_]]


class Curve:
    """The certificates of documents X [N, D] over all sizes.

    `labels` [N, k] are the clean top k. `correct` [N, k] says which of them are right. `limit` is the number
    of candidates that are bounded one by one.
    """

    def __init__(
        self, bounds: Bounds, X: Any, labels: NDArray[Any], correct: NDArray[np.bool_], limit: int
    ) -> None:
        """Takes the parts that all sizes share."""
        self.bounds, self.X, self.labels, self.correct, self.limit = bounds, X, labels, correct, limit

    def over(self, grid: list[float], progress: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        """Returns overtakers and attained ranks [E, N, k] at ascending sizes."""
        labels, correct = self.labels, self.correct
        k = labels.shape[1]
        overtakers = np.full((len(grid), *labels.shape), k)
        attained = np.broadcast_to(np.arange(k), overtakers.shape).copy()
        alive = correct
        with tqdm(total=len(grid) * len(labels), unit="doc", disable=not progress, dynamic_ncols=True) as bar:
            for e, epsilon in enumerate(grid):
                if epsilon == 0:
                    overtakers[e][correct] = np.nonzero(correct)[1]
                else:
                    overtakers[e], attained[e] = self._at(epsilon, alive)
                alive = overtakers[e] < k
                bar.update(len(labels))
        attained = np.maximum.accumulate(attained, 0)
        # A larger threat set contains the smaller ones, so a certificate also holds at all smaller sizes.
        return np.minimum.accumulate(overtakers[::-1], 0)[::-1], attained

    def _at(self, epsilon: float, alive: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Returns overtakers and attained ranks [N, k] at a size, for labels that are still alive [N, k].

        Other labels have k overtakers and attain their clean rank. k is at most that of `labels`.
        """
        k = alive.shape[1]
        labels, model = self.labels[:, :k], self.bounds.network.model
        overtakers = np.full(labels.shape, k)
        attained = np.broadcast_to(np.arange(k), labels.shape).copy()
        tried: list[tuple[int, int, Witness]] = []
        documents = np.flatnonzero(alive.any(1)).tolist()
        for form in self.bounds.propagation.forms(self.X, documents, epsilon):
            ranks = np.flatnonzero(alive[form.n]).tolist()
            counts = self.bounds.overtakers.counts(form, labels[form.n, ranks].tolist(), k, self.limit)
            for rank, (count, witness) in zip(ranks, counts, strict=True):
                overtakers[form.n, rank] = count
                if witness is not None:
                    tried.append((form.n, rank, witness))
            if len(tried) >= _TRIED:
                record_ranks(model, labels, tried, attained)
                tried = []
        record_ranks(model, labels, tried, attained)
        return overtakers, attained

    def zero(self, k: int, grid: list[float], overtakers: NDArray[Any]) -> tuple[float, float]:
        """Returns the sizes between which certified P@k falls to zero. The bisection starts from the grid."""
        correct = self.correct & (np.arange(self.labels.shape[1]) < k)
        if not self.bounds.insertion.possible:  # nothing can change a document without features
            movable = self.bounds.propagation.part.columns(self.X)
            correct = correct & (np.diff(movable.indptr) > 0)[:, None]
        if not correct.any():
            return -1.0, 0.0
        holds = [bool((correct & (o < k)).any()) for o in overtakers]
        last = max((e for e, held in enumerate(holds) if held), default=-1)
        low = grid[last] if last >= 0 else 0.0
        alive = correct & (overtakers[last] < k) if last >= 0 else correct
        high = next((epsilon for epsilon in grid if epsilon > low), math.inf)

        def survivors(epsilon: float, alive: NDArray[np.bool_]) -> NDArray[np.bool_]:
            # Only labels of the top k are needed, because a label below cannot enter it by being overtaken.
            return self._at(epsilon, alive)[0] < k

        words, alive = isinstance(self.bounds.threat, Delete), alive[:, :k]
        if math.isinf(high):
            low, high, alive = _double(survivors, low, alive, words)
        return _bisect(survivors, low, high, alive, words)


def _double(
    survivors: _Survivors, low: float, alive: NDArray[np.bool_], words: bool
) -> tuple[float, float, NDArray[np.bool_]]:
    """Doubles the size until no label survives, at most 24 times.

    Returns:
        The last size that a label survives, the first size that none survives (or inf), and the survivors.
    """
    size = max(2 * low, 1.0 if words else 1e-3)
    for _ in range(24):
        left = survivors(size, alive)
        if not left.any():
            return low, size, alive
        low, alive, size = size, left, 2 * size
    return low, math.inf, alive


def _bisect(
    survivors: _Survivors, low: float, high: float, alive: NDArray[np.bool_], words: bool
) -> tuple[float, float]:
    """Narrows the sizes with and without survivors to neighbouring numbers of words, or to within 2 %."""
    for _ in range(16 if math.isfinite(high) else 0):
        middle = float((int(low) + int(high)) // 2) if words else (low + high) / 2
        if (words and middle == low) or (not words and high <= 1.02 * low):
            break
        left = survivors(middle, alive)
        if left.any():
            low, alive = middle, left
        else:
            high = middle
    return low, high
