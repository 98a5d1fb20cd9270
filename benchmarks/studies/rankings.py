"""Rankings with scores, and how they change where frequent labels pay for being frequent.

A ranking has log probabilities. `adjusted` ranks by log p - tau log(n + 1), where n is the number of the
label's training documents. `choose_tau` picks tau on documents that nothing was learnt from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from mach_ext import metrics

KS = (1, 3, 5)
TAUS = tuple(i / 20 for i in range(15))  # 0, 0.05, ..., 0.7
TINY = 1e-38  # stands for probabilities that are 0 in float32

Labels = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


class Ranking(NamedTuple):
    """The best labels of each document, best first: ids [N, k], -1 for none, and their log probabilities."""

    labels: Labels
    scores: Floats


def logs(probabilities: Any) -> Floats:
    """The logarithms of probabilities, with a floor where they are 0."""
    return np.log(np.maximum(np.asarray(probabilities, np.float64), TINY))


def log_sigmoid(margins: Any, slope: float = 1.0) -> Floats:
    """The log probabilities of margins that a logistic function of this slope turns into probabilities."""
    return -np.logaddexp(0, -slope * np.asarray(margins, np.float64))


def of_pairs(rows: Sequence[Sequence[tuple[int, float]]], k: int) -> Ranking:
    """A ranking of k places from (label, probability) pairs, best first. There may be fewer pairs."""
    labels, scores = np.full((len(rows), k), -1, np.int64), np.full((len(rows), k), -np.inf)
    for n, row in enumerate(rows):
        if kept := row[:k]:
            labels[n, : len(kept)] = [label for label, _ in kept]
            scores[n, : len(kept)] = logs([probability for _, probability in kept])
    return Ranking(labels, scores)


def best(probabilities: sp.csr_matrix, k: int) -> Ranking:
    """The k best columns of each row of a sparse matrix of probabilities, ties by the smaller column."""
    rows = []
    for start, end in zip(probabilities.indptr[:-1], probabilities.indptr[1:], strict=True):
        labels, values = probabilities.indices[start:end], probabilities.data[start:end]
        order = np.lexsort((labels, -values))[:k]
        rows.append(list(zip(labels[order].tolist(), values[order].tolist(), strict=True)))
    return of_pairs(rows, k)


def filled(ranking: Ranking, k: int) -> Ranking:
    """A ranking of k places, with "none" at the end where it has fewer."""
    room = ((0, 0), (0, max(k - ranking.labels.shape[1], 0)))
    places = (
        np.pad(ranking.labels, room, constant_values=-1),
        np.pad(ranking.scores, room, constant_values=-np.inf),
    )
    return Ranking(*(part[:, :k] for part in places))


def adjusted(ranking: Ranking, counts: np.ndarray[Any, Any], tau: float) -> Labels:
    """The labels ranked again by log p - tau log(n + 1). Ties keep their order, and "none" stays last."""
    scores = ranking.scores - tau * np.log1p(counts)[ranking.labels]
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(ranking.labels, order, axis=1)


def choose_tau(Y: sp.csr_matrix, ranking: Ranking, counts: np.ndarray[Any, Any]) -> float:
    """The tau of the grid with the best mean of P@1, P@3 and P@5. Of equal ones the smallest is taken."""

    def mean(tau: float) -> float:
        found = metrics.evaluate(Y, adjusted(ranking, counts, tau)[:, : max(KS)], KS)
        return sum(found[f"P@{k}"] for k in KS)

    return max(TAUS, key=lambda tau: (round(mean(tau), 12), -tau))


def second_column(
    Y: sp.csr_matrix,
    ranking: Ranking,
    counts: np.ndarray[Any, Any],
    tau: float,
    q: np.ndarray[Any, Any],
) -> dict[str, float]:
    """What a result says of the ranking with adjustment: tau, and P@k and PSP@k. q: inverse propensities."""
    found = metrics.evaluate(Y, adjusted(ranking, counts, tau), KS, (), q)
    return {"tau": tau} | {
        f"adjusted {metric}@{k}": found[f"{metric}@{k}"] for metric in ("P", "PSP") for k in KS
    }
