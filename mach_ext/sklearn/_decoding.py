"""A model's answers as an indicator [N, L] or as all scores [N, L], in bounded memory."""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from mach_ext import functional as F
from mach_ext._memory import check_memory, memory_errors
from mach_ext._prediction import document_batches
from mach_ext.data import HybridMatrix
from mach_ext.data.matrices import Csr
from mach_ext.merges import MODEL_MERGES
from mach_ext.nn import MACH, check_scores, checked_k, predict_batch

_OP, _ADVICE = "MACHClassifier.predict", "pass fewer documents at a time, or raise threshold"
_FIRST_K = 16  # So many labels of a document are decoded first. While all reach the threshold, k grows.
_LAST_K = 256  # From here on the decoder visits nearly all labels anyway.
_ANSWERS = 1 << 22  # So many scores and labels are decoded at a time: 48 MiB.
_PAIR_BYTES = 32  # What the indicator takes for each 1 while it is put together.


def check_rule(k: Any, threshold: Any, num_labels: int) -> tuple[int, float | None]:
    """Return the largest number of labels of a document, and the threshold, both checked.

    Without a threshold, k is 5 by default. With a threshold, all labels may reach it.
    """
    if threshold is None:
        return checked_k("MACHClassifier", k, num_labels), None
    number = math.nan
    if isinstance(threshold, numbers.Real) and not isinstance(threshold, bool):
        with contextlib.suppress(OverflowError):
            number = float(threshold)
    if math.isnan(number):
        raise ValueError(f"MACHClassifier: threshold must be None or a number, got {threshold!r}")
    return (num_labels if k is None else checked_k("MACHClassifier", k, num_labels)), number


@memory_errors(_ADVICE, _OP)
def best_indicator(model: MACH, X: Csr | HybridMatrix, k: int, threshold: float | None) -> Csr:
    """Return the indicator [N, L] of the best k labels, or of those among them that reach the threshold."""
    if threshold is None:
        labels = model.predict(X, k)[1]
        pairs = [(np.repeat(np.arange(len(labels)), k), labels.ravel())]
    else:
        with torch.inference_mode():
            pairs = _pairs(model, X, k, threshold)
    rows, columns = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    ones = np.ones(len(rows), np.int64)
    return scipy.sparse.csr_matrix((ones, (rows, columns)), shape=(X.shape[0], model.num_labels))


@memory_errors("pass fewer documents at a time", "MACHClassifier.decision_function")
def all_scores(model: MACH, X: Csr | HybridMatrix) -> NDArray[np.float32]:
    """Return the scores [N, L] of all labels. They equal those of `MACH.predict`, to the bit."""
    out = np.empty((X.shape[0], model.num_labels), np.float32)
    with torch.inference_mode():
        for start, scores in _merged_batches(model, X):
            rows = torch.arange(len(scores), device=scores.device)
            for part, merged in _all_merged("MACHClassifier.decision_function", model, scores, rows):
                out[start + part.cpu().numpy()] = merged.cpu().numpy()
    return out


def _pairs(
    model: MACH, X: Csr | HybridMatrix, k: int, threshold: float
) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Return documents and labels of theirs: of the best k, those that reach the threshold.

    Raises:
        MemoryError: There are too many.
    """
    pairs, total = [], 0
    for start, scores in _merged_batches(model, X):
        for rows, labels in _reaching(model, scores, k, threshold):
            pairs.append(((start + rows).int().cpu().numpy(), labels.int().cpu().numpy()))
            total += len(labels)
            check_memory(
                f"{_OP}: labels that reach the threshold", _PAIR_BYTES * total, _ADVICE, labels=total
            )
    return pairs


def _all_merged(op: str, model: MACH, scores: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield some of the given documents of a batch, and their scores [n, L] of all labels."""
    L, reduction = model.num_labels, MODEL_MERGES[model.merge].reduction
    labels = torch.arange(L, device=scores.device)
    for part in rows.split(max(1, _ANSWERS // L)):
        merged = F.merge_scores(scores[part], model.hash, labels, reduction, validate=False)
        check_scores(op, model, merged)
        yield part, merged


def _merged_batches(model: MACH, X: Csr | HybridMatrix) -> Iterator[tuple[int, Tensor]]:
    """Yield the first document of each batch, and its bucket scores [n, R, B], transformed for the merge.

    The batches are those of `MACH.predict`, so that the scores have the same bits.
    """
    merge, size = MODEL_MERGES[model.merge], predict_batch(model.num_repetitions, model.num_buckets)
    for start, documents in document_batches(model, X, size):
        yield start, merge.transformed(model(*documents, validate=False, dropout=False))


def _reaching(model: MACH, scores: Tensor, limit: int, threshold: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield documents of a batch and labels of theirs: of the best `limit`, those that reach the threshold.

    k grows until the lowest of a document's k scores is below the threshold. Beyond `_LAST_K` the decoder
    takes as long as the scores of all labels do, so those follow if `limit` excludes none.
    """
    L, reduction = model.num_labels, MODEL_MERGES[model.merge].reduction
    rows, k = torch.arange(len(scores), device=scores.device), min(_FIRST_K, limit)
    while len(rows) and not (k > _LAST_K and limit == L):
        unfinished = []
        for part in rows.split(max(1, _ANSWERS // k)):
            best, labels = F.merge_topk(scores[part], model.hash, k, reduction)
            check_scores(_OP, model, best)
            reached = best >= threshold
            has_more = reached[:, -1] & (k < limit)
            n, place = (reached & ~has_more[:, None]).nonzero(as_tuple=True)
            yield part[n], labels[n, place]
            unfinished.append(part[has_more])
        rows, k = torch.cat(unfinished), min(16 * k, limit)
    for part, merged in _all_merged(_OP, model, scores, rows) if len(rows) else ():
        n, label = (merged >= threshold).nonzero(as_tuple=True)
        yield part[n], label
