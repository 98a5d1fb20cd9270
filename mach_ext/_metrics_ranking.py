"""What the metrics look at, and the metrics of it, without checks.

All that the metrics look at is true labels with their ranks: either those that were predicted (hits), or
all of them in the best order (best).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mach_ext._metrics_checks import Floats, Ints, check_distinct, check_predictions, check_truth

_BLOCK_CELLS = 1 << 18  # predictions looked up at a time, so that their keys stay in cache


class Ranking(NamedTuple):
    """True labels at ranks of documents, m of them, by document, then by rank."""

    rows: Ints  # [m] document
    ranks: Ints  # [m] 0-based
    labels: Ints  # [m]
    sizes: Ints  # [N] number of true labels of each document, ranked or not


def rank_hits(function: str, Y_true: Any, predictions: npt.ArrayLike) -> tuple[Any, Ranking]:
    """The checked truth (CSR) and the predictions that hit it."""
    truth = check_truth(function, "Y_true", Y_true)
    ids = check_predictions(function, predictions, truth.shape)
    sizes = np.diff(truth.indptr)
    stride = truth.shape[1] + 1  # the key of label l in row r of a block is r * stride + l + 1; -1 never hits
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
    """Every document's true labels by descending q."""
    sizes = np.diff(truth.indptr)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    ranks = np.arange(len(rows)) - np.repeat(truth.indptr[:-1], sizes)
    order = np.lexsort((-q[truth.indices], rows))
    return Ranking(rows, ranks, truth.indices[order], sizes)


def restrict(truth: Any, hits: Ranking, band: npt.NDArray[np.bool_]) -> tuple[Any, Ranking]:
    """The same with only the band's labels true."""
    part = truth.copy()
    part.data = band[part.indices]
    part.eliminate_zeros()
    kept = band[hits.labels]
    return part, Ranking(hits.rows[kept], hits.ranks[kept], hits.labels[kept], np.diff(part.indptr))


def all_metrics(
    truth: Any, hits: Ranking, ks: tuple[int, ...], recall_ks: tuple[int, ...], q: Floats | None
) -> dict[str, float]:
    metrics = {f"P@{k}": precision(hits, k) for k in ks}
    metrics |= {f"nDCG@{k}": ndcg(hits, k) for k in ks}
    if q is not None:
        best = best_ranking(truth, q)
        metrics |= {f"PSP@{k}": psp(hits, best, q, k) for k in ks}
        metrics |= {f"PSnDCG@{k}": psndcg(hits, best, q, k) for k in ks}
    return metrics | {f"R@{k}": recall(hits, k) for k in recall_ks}


def precision(hits: Ranking, k: int) -> float:
    return _ratio(np.count_nonzero(hits.ranks < k), k * len(hits.sizes))


def ndcg(hits: Ranking, k: int) -> float:
    return _ratio(normalised_dcg(hits, np.ones(len(hits.rows)), k).sum(), len(hits.sizes))


def recall(hits: Ranking, k: int) -> float:
    right = np.bincount(hits.rows[hits.ranks < k], minlength=len(hits.sizes))
    return _ratio((right / np.maximum(hits.sizes, 1)).sum(), np.count_nonzero(hits.sizes))


def psp(hits: Ranking, best: Ranking, q: Floats, k: int) -> float:
    return _ratio(q[hits.labels[hits.ranks < k]].sum(), q[best.labels[best.ranks < k]].sum())


def psndcg(hits: Ranking, best: Ranking, q: Floats, k: int) -> float:
    reached = normalised_dcg(hits, q[hits.labels], k)
    return _ratio(reached.sum(), normalised_dcg(best, q[best.labels], k).sum())


def normalised_dcg(ranked: Ranking, gains: Floats, k: int) -> Floats:
    """sum_{i<=k} gain_i d_i / sum_{i<=min(k, |y|)} d_i of each document, [N]; 0 without labels."""
    top = ranked.ranks < k
    discounted = gains[top] / np.log2(ranked.ranks[top] + 2)
    dcg = np.bincount(ranked.rows[top], weights=discounted, minlength=len(ranked.sizes))
    counted = np.minimum(ranked.sizes, k)
    ideal = np.cumsum(1 / np.log2(np.arange(counted.max(initial=1)) + 2))  # [j]: the best j + 1 hits
    normalised: Floats = dcg / ideal[np.maximum(counted, 1) - 1]
    return normalised


def _ratio(numerator: Any, denominator: Any) -> float:
    return float(numerator) / float(denominator) if denominator else math.nan


def sums_of_documents(ranked: Ranking, gains: Floats, k: int) -> Floats:  # [N]
    top = ranked.ranks < k
    sums = np.bincount(ranked.rows[top], weights=gains[top], minlength=len(ranked.sizes))
    return np.asarray(sums, np.float64)


def as_columns(parts: list[Floats], num_documents: int) -> Floats:  # [N, len(parts)]
    """Columns that lie in one piece each, so that their sums are those of the parts to the bit."""
    return np.stack(parts).T if parts else np.empty((num_documents, 0))
