"""A model's answers to documents, and their metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mach_ext import metrics
from mach_ext._memory import check_memory, memory_errors
from mach_ext.nn import MACH, AnyMACH


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
    """Return metrics of the model's exact top-k on documents, as `mach_ext.metrics.evaluate` does.

    Args:
        model: The model.
        X: Documents [N, D], SciPy CSR.
        Y: Labels [N, L], SciPy sparse.
        ks: The k of P@k and nDCG@k, and of PSP@k and PSnDCG@k.
        recall_ks: The k of R@k.
        inverse_propensity: As in `mach_ext.metrics.evaluate`.
        filtered: [N, L], SciPy CSR, non-zero where a label must not be answered. None allows all labels.

    Returns:
        The metrics by name, fractions of 1.

    Raises:
        TypeError: As in `mach_ext.metrics.evaluate` and `MACH.predict`.
        ValueError: As in `mach_ext.metrics.evaluate` and `MACH.predict`.

    Example:
        >>> import numpy as np, scipy.sparse, mach_ext
        >>> from mach_ext.training import evaluate_model
        >>> X = scipy.sparse.csr_matrix(np.eye(4, dtype=np.float32))
        >>> model = mach_ext.MACH(4, 4, 8, 4, hidden_size=0, merge="mean_logprob")
        >>> mach_ext.fit_svm(model, X, X, progress=False)
        >>> evaluate_model(model, X, X, ks=(1,))
        {'P@1': 1.0, 'nDCG@1': 1.0}
    """
    labels = answers(model, X, max((*ks, *recall_ks), default=0), filtered)
    return metrics.evaluate(Y, labels, ks, recall_ks, inverse_propensity)


@memory_errors("pass fewer documents at a time or lower k")
def answers(
    model: AnyMACH, X: Any, k: int, filtered: Any = None, rerank: Any = None
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the k best labels of each document, without labels that must not be answered.

    Args:
        model: The model.
        X: Documents [N, D], SciPy CSR.
        k: The number of labels.
        filtered: [N, L], SciPy CSR, non-zero where a label must not be answered. None allows all labels.
        rerank: A function of (X, k) that returns labels [N, k], used in place of the model's `predict`.

    Returns:
        [N, k] label ids. -1 fills the end if the model has no more labels.

    Example:
        >>> import numpy as np, scipy.sparse, mach_ext
        >>> from mach_ext.training import answers
        >>> X = scipy.sparse.csr_matrix(np.eye(4, dtype=np.float32))
        >>> model = mach_ext.MACH(4, 4, 8, 4, hidden_size=0, merge="mean_logprob")
        >>> mach_ext.fit_svm(model, X, X, progress=False)
        >>> answers(model, X, k=1)[:, 0]
        array([0, 1, 2, 3])
    """
    ask = rerank or (lambda documents, count: model.predict(documents, count)[1])
    excluded = np.zeros(X.shape[0], np.int64) if filtered is None else np.diff(filtered.indptr)
    N = X.shape[0]
    check_memory("answers: labels", 8 * N * k, "pass fewer documents or lower k", N=N, k=k)
    labels = np.full((N, k), -1, np.int64)
    # The number of excluded labels differs between documents. Documents are grouped by its power of two. The
    # model predicts so many more labels for a group as its largest number.
    sizes = np.ceil(np.log2(excluded + 1)).astype(int)
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        documents = X if len(rows) == X.shape[0] else X[rows]
        ranked = ask(documents, min(k + int(excluded[rows].max()), model.num_labels))
        if size:
            ranked = metrics.without_filtered(ranked, filtered[rows])
        labels[rows, : ranked.shape[1]] = ranked[:, :k]
    return labels
