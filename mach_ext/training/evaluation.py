"""A model's answers to documents, and their metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mach_ext import metrics
from mach_ext._memory import check_memory, memory_errors
from mach_ext.nn import MACH


@memory_errors("pass fewer documents at a time")
def evaluate_model(
    model: MACH,
    X: Any,
    Y: Any,
    ks: Sequence[int] = (1, 3, 5),
    recall_ks: Sequence[int] = (),
    inverse_propensity: Any = None,
    filtered: Any = None,
) -> dict[str, float]:
    """Metrics of the model's exact top-k on documents X with labels Y; see `mach_ext.metrics.evaluate`.

    `filtered`: [N, L], non-zero where a label is no answer (`metrics.without_filtered`).
    """
    labels = answers(model, X, max((*ks, *recall_ks), default=0), filtered)
    return metrics.evaluate(Y, labels, ks, recall_ks, inverse_propensity)


@memory_errors("pass fewer documents at a time or lower k")
def answers(
    model: MACH, X: Any, k: int, filtered: Any = None, rerank: Any = None
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The k best labels of each document, without those that are no answers.

    Args:
        model: The model.
        X: Documents [N, D], SciPy CSR.
        k: How many.
        filtered: [N, L], SciPy CSR, non-zero where a label is no answer; None: all are.
        rerank: (X, k) -> labels [N, k] in place of the model's `predict`.

    Returns:
        [N, k] label ids, filled up with -1 where the model has no more labels.
    """
    ask = rerank or (lambda documents, count: model.predict(documents, count)[1])
    excluded = np.zeros(X.shape[0], np.int64) if filtered is None else np.diff(filtered.indptr)
    N = X.shape[0]
    check_memory("answers: labels", 8 * N * k, "pass fewer documents or lower k", N=N, k=k)
    labels = np.full((N, k), -1, np.int64)
    # Few documents have many labels excluded: those of a size are asked for as many more labels.
    sizes = np.ceil(np.log2(excluded + 1)).astype(int)
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        documents = X if len(rows) == X.shape[0] else X[rows]
        ranked = ask(documents, min(k + int(excluded[rows].max()), model.num_labels))
        if size:
            ranked = metrics.without_filtered(ranked, filtered[rows])
        labels[rows, : ranked.shape[1]] = ranked[:, :k]
    return labels
