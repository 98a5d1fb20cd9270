"""A model's answers as an indicator [N, L] or as all scores [N, L], in bounded memory."""

from __future__ import annotations

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
from mach_ext._memory import memory_errors
from mach_ext._prediction import document_batches
from mach_ext.data.matrices import Csr
from mach_ext.merges import MODEL_MERGES
from mach_ext.nn import MACH, check_scores, checked_k, predict_batch

_FIRST_K = 16  # So many labels of a document are decoded first, and fourfold while all reach the threshold.
_ANSWERS = 1 << 22  # So many scores and labels are decoded at a time: 48 MiB.


def check_rule(k: Any, threshold: Any, num_labels: int) -> tuple[int, float | None]:
    """Return the largest number of labels of a document, and the threshold, both checked.

    Without a threshold, k is 5 by default. With a threshold, all labels may reach it.
    """
    if threshold is None:
        return checked_k("MACHClassifier", k, num_labels), None
    is_real = isinstance(threshold, numbers.Real) and not isinstance(threshold, bool)
    if not is_real or math.isnan(threshold):
        raise ValueError(f"MACHClassifier: threshold must be None or a number, got {threshold!r}")
    return (num_labels if k is None else checked_k("MACHClassifier", k, num_labels)), float(threshold)


@memory_errors("pass fewer documents at a time, or raise threshold", "MACHClassifier.predict")
def best_indicator(model: MACH, X: Csr, k: int, threshold: float | None) -> Csr:
    """Return the indicator [N, L] of the best k labels, or of those among them that reach the threshold."""
    if threshold is None:
        labels = model.predict(X, k)[1]
        pairs = [(np.repeat(np.arange(len(labels)), k), labels.ravel())]
    else:
        with torch.inference_mode():
            pairs = [
                (start + rows.cpu().numpy(), labels.cpu().numpy())
                for start, scores in _merged_batches(model, X)
                for rows, labels in _reaching(model, scores, k, threshold)
            ]
    rows, columns = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    ones = np.ones(len(rows), np.int64)
    return scipy.sparse.csr_matrix((ones, (rows, columns)), shape=(X.shape[0], model.num_labels))


@memory_errors("pass fewer documents at a time", "MACHClassifier.decision_function")
def all_scores(model: MACH, X: Csr) -> NDArray[np.float32]:
    """Return the scores [N, L] of all labels. They equal those of `MACH.predict`, to the bit."""
    L, reduction = model.num_labels, MODEL_MERGES[model.merge].reduction
    out = np.empty((X.shape[0], L), np.float32)
    labels = torch.arange(L, device=model.bucket_bias.device)
    with torch.inference_mode():
        for start, scores in _merged_batches(model, X):
            for part in scores.split(max(1, _ANSWERS // L)):
                merged = F.merge_scores(part, model.hash, labels, reduction, validate=False)
                check_scores("MACHClassifier.decision_function", model, merged)
                out[start : start + len(part)] = merged.cpu().numpy()
                start += len(part)
    return out


def _merged_batches(model: MACH, X: Csr) -> Iterator[tuple[int, Tensor]]:
    """Yield the first document of each batch, and its bucket scores [n, R, B], transformed for the merge.

    The batches are those of `MACH.predict`, so that the scores have the same bits.
    """
    merge, size = MODEL_MERGES[model.merge], predict_batch(model.num_repetitions, model.num_buckets)
    for start, documents in document_batches(model, X, size):
        yield start, merge.transformed(model(*documents, validate=False, dropout=False))


def _reaching(model: MACH, scores: Tensor, limit: int, threshold: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield documents of a batch and labels of theirs: of the best `limit`, those that reach the threshold.

    k grows until the lowest of a document's k scores is below the threshold.
    """
    reduction = MODEL_MERGES[model.merge].reduction
    rows, k = torch.arange(len(scores), device=scores.device), min(_FIRST_K, limit)
    while len(rows):
        unfinished = []
        for part in rows.split(max(1, _ANSWERS // k)):
            best, labels = F.merge_topk(scores[part], model.hash, k, reduction)
            check_scores("MACHClassifier.predict", model, best)
            reached = best >= threshold
            has_more = reached[:, -1] & (k < limit)
            n, place = (reached & ~has_more[:, None]).nonzero(as_tuple=True)
            yield part[n], labels[n, place]
            unfinished.append(part[has_more])
        rows, k = torch.cat(unfinished), min(4 * k, limit)
