"""The ranks of true labels, and the metrics of these ranks, without checks.

A metric needs only true labels with their ranks. These are either the labels that were predicted (hits), or
all true labels in the best order (best).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mach_ext._metrics_checks import Floats, Ints, check_distinct, check_predictions, check_truth

_BLOCK_CELLS = 1 << 18  # So many predictions are looked up at a time. Their keys stay in cache.


class Ranking(NamedTuple):
    """m true labels with their ranks, ordered by document and then by rank."""

    rows: Ints  # [m] document
    ranks: Ints  # [m] 0-based
    labels: Ints  # [m]
    sizes: Ints  # [N] number of true labels of each document, ranked or not


def rank_hits(function: str, Y_true: Any, predictions: npt.ArrayLike) -> tuple[Any, Ranking]:
    """Return the checked truth (CSR) and the predictions that hit it."""
    truth = check_truth(function, "Y_true", Y_true)
    ids = check_predictions(function, predictions, truth.shape)
    sizes = np.diff(truth.indptr)
    stride = truth.shape[1] + 1  # Label l in row r of a block has the key r * stride + l + 1. -1 never hits.
    step = max(1, _BLOCK_CELLS // max(1, ids.shape[1]))
    rows, ranks = [np.empty(0, np.intp)], [np.empty(0, np.intp)]
    for start in range(0, len(ids), step):
        block = ids[start : start + step]
        check_distinct(function, block, start)
        stop = start + len(block)
        true_rows = np.repeat(np.arange(len(block)), sizes[start:stop])
        true_labels = truth.indices[truth.indptr[start] : truth.indptr[stop]]
        true_keys = np.append(true_rows * stride + true_labels + 1, np.iinfo(np.int64).max)  # ascending
        keys = np.arange(len(block))[:, None] * stride + block.astype(np.int64) + 1
        row, rank = np.nonzero(true_keys[np.searchsorted(true_keys, keys)] == keys)
        rows.append(row + start)
        ranks.append(rank)
    row, rank = np.concatenate(rows), np.concatenate(ranks)
    return truth, Ranking(row, rank, ids[row, rank], sizes)


def best_ranking(truth: Any, q: Floats) -> Ranking:
    """Rank every document's true labels by descending q."""
    sizes = np.diff(truth.indptr)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    ranks = np.arange(len(rows)) - np.repeat(truth.indptr[:-1], sizes)
    order = np.lexsort((-q[truth.indices], rows))
    return Ranking(rows, ranks, truth.indices[order], sizes)


def restrict(truth: Any, hits: Ranking, band: npt.NDArray[np.bool_]) -> tuple[Any, Ranking]:
    """Return the same truth and hits with only the band's labels true."""
    part = truth.copy()
    part.data = band[part.indices]
    part.eliminate_zeros()
    kept = band[hits.labels]
    return part, Ranking(hits.rows[kept], hits.ranks[kept], hits.labels[kept], np.diff(part.indptr))


def all_metrics(
    truth: Any, hits: Ranking, ks: tuple[int, ...], recall_ks: tuple[int, ...], q: Floats | None
) -> dict[str, float]:
    """Return the metrics that `evaluate` returns."""
    metrics = {f"P@{k}": precision(hits, k) for k in ks}
    metrics |= {f"nDCG@{k}": ndcg(hits, k) for k in ks}
    if q is not None:
        best = best_ranking(truth, q)
        metrics |= {f"PSP@{k}": psp(hits, best, q, k) for k in ks}
        metrics |= {f"PSnDCG@{k}": psndcg(hits, best, q, k) for k in ks}
    return metrics | {f"R@{k}": recall(hits, k) for k in recall_ks}


def precision(hits: Ranking, k: int) -> float:
    """Return P@k."""
    return _ratio(np.count_nonzero(hits.ranks < k), k * len(hits.sizes))


def ndcg(hits: Ranking, k: int) -> float:
    """Return nDCG@k."""
    return _ratio(normalised_dcg(hits, np.ones(len(hits.rows)), k).sum(), len(hits.sizes))


def recall(hits: Ranking, k: int) -> float:
    """Return R@k."""
    right = np.bincount(hits.rows[hits.ranks < k], minlength=len(hits.sizes))
    return _ratio((right / np.maximum(hits.sizes, 1)).sum(), np.count_nonzero(hits.sizes))


def psp(hits: Ranking, best: Ranking, q: Floats, k: int) -> float:
    """Return PSP@k."""
    return _ratio(q[hits.labels[hits.ranks < k]].sum(), q[best.labels[best.ranks < k]].sum())


def psndcg(hits: Ranking, best: Ranking, q: Floats, k: int) -> float:
    """Return PSnDCG@k."""
    reached = normalised_dcg(hits, q[hits.labels], k)
    return _ratio(reached.sum(), normalised_dcg(best, q[best.labels], k).sum())


def normalised_dcg(ranked: Ranking, gains: Floats, k: int) -> Floats:
    """Return the DCG of each document over the best DCG of as many labels, [N]. 0 means no labels.

    ```text
    sum_{i<=k} gain_i d_i / sum_{i<=min(k, |y|)} d_i
    ```
    """
    top = ranked.ranks < k
    discounted = gains[top] / np.log2(ranked.ranks[top] + 2)
    dcg = np.bincount(ranked.rows[top], weights=discounted, minlength=len(ranked.sizes))
    counted = np.minimum(ranked.sizes, k)
    ideal = np.cumsum(1 / np.log2(np.arange(counted.max(initial=1)) + 2))  # [j]: the best j + 1 hits
    normalised: Floats = dcg / ideal[np.maximum(counted, 1) - 1]
    return normalised


def _ratio(numerator: Any, denominator: Any) -> float:
    """Return a ratio, or NaN if the denominator is 0."""
    return float(numerator) / float(denominator) if denominator else math.nan


def sums_of_documents(ranked: Ranking, gains: Floats, k: int) -> Floats:  # [N]
    """Return the sum of the gains at the first k ranks of each document."""
    top = ranked.ranks < k
    sums = np.bincount(ranked.rows[top], weights=gains[top], minlength=len(ranked.sizes))
    return np.asarray(sums, np.float64)


def as_columns(parts: list[Floats], num_documents: int) -> Floats:  # [N, len(parts)]
    """Stack columns that are contiguous in memory, so that their sums equal those of the parts to the bit."""
    return np.stack(parts).T if parts else np.empty((num_documents, 0))
