"""Ranking metrics of extreme multi-label classification: P@k, nDCG@k, PSP@k, PSnDCG@k, R@k.

Every function takes the same two arguments:

* `Y_true` is a matrix [N, L]. It may be SciPy sparse of any format, a NumPy array, or a torch tensor in host
  memory, dense or sparse. One dimension [L] is a single document. A non-zero entry (n, l) says that label l
  is true for document n. Its size does not matter, but it must not be negative or NaN. Dense integers must be
  0 or 1, so that rows of label ids are not taken for a matrix.
* `predictions` is an integer array [N, K]: NumPy, nested lists, or a torch tensor in host memory. It holds
  label ids, best first, each at most once in a row. -1 stands for "no prediction". This is a miss that keeps
  its place.

The formulas use this notation. y_n is the set of true labels of document n. r_ni is the label predicted at
rank i = 1..K. hit_ni is 1 if r_ni is in y_n, else 0. It is also 0 for i > K, so missing predictions count as
misses. d_i = 1 / log2(i + 1). q_l >= 1 is the inverse propensity of label l.

Results are Python floats, fractions of 1. A mean over nothing is NaN and not 0, which would look like a
failure. For P and nDCG this happens if there are no documents. For R, PSP and PSnDCG it happens if no
document has a label.

Memory is O(nnz(Y_true) + N * K), never O(N * L). Arguments are not modified.

Example:
    >>> import scipy.sparse as sp
    >>> from mach_ext import metrics
    >>> Y_true = sp.csr_array([[1, 1, 0, 0], [0, 0, 1, 0]])
    >>> metrics.evaluate(Y_true, [[0, 3], [1, 2]], ks=(1, 2), recall_ks=(2,))["R@2"]
    0.75
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mach_ext import _metrics_ranking as ranking
from mach_ext._memory import memory_errors
from mach_ext._metrics_checks import KS as KS
from mach_ext._metrics_checks import RECALL_KS as RECALL_KS
from mach_ext._metrics_checks import (
    Floats,
    Ints,
    check_band,
    check_inverse_propensity,
    check_k,
    select_ks,
)
from mach_ext._metrics_propensity import (
    frequency_bands_of_counts,
    inverse_propensity,
    inverse_propensity_of_counts,
    label_frequency_bands,
    propensity_constants,
)
from mach_ext._metrics_propensity import label_counts as label_counts

__all__ = [
    "ByDocument",
    "by_document",
    "evaluate",
    "evaluate_by_band",
    "frequency_bands_of_counts",
    "inverse_propensity",
    "inverse_propensity_of_counts",
    "label_frequency_bands",
    "ndcg_at_k",
    "precision_at_k",
    "propensity_constants",
    "psndcg_at_k",
    "psp_at_k",
    "recall_at_k",
    "without_filtered",
]


@memory_errors("pass fewer documents at a time")
def precision_at_k(Y_true: Any, predictions: npt.ArrayLike, k: int) -> float:
    """Return precision at k: the part of the first k predictions that is right.

    ```text
    P@k = 1/N sum_n 1/k sum_{i<=k} hit_ni
    ```

    The mean is over all N documents. A document without labels counts 0. The divisor is k, even if a document
    has fewer labels or fewer predictions.

    Args:
        Y_true: The true labels, a matrix [N, L].
        predictions: Label ids in rank order, integers [N, K], -1 for none.
        k: How many of the first predictions count, at least 1. If k exceeds K, the missing predictions are
            misses.

    Returns:
        P@k in [0, 1], or NaN if N = 0.

    Raises:
        TypeError: `Y_true` is no matrix, `predictions` are not integers, or `k` is not an integer.
        ValueError: Shapes differ, a label id is not in [-1, L), a row repeats a label, or k < 1.

    Example:
        >>> import scipy.sparse as sp
        >>> from mach_ext.metrics import precision_at_k
        >>> Y_true = sp.csr_array([[1, 1, 0, 0], [0, 0, 1, 0]])
        >>> precision_at_k(Y_true, [[0, 3], [1, 2]], k=2)
        0.5
    """
    k = check_k("precision_at_k", "k", k)
    _, hits = ranking.rank_hits("precision_at_k", Y_true, predictions)
    return ranking.precision(hits, k)


@memory_errors("pass fewer documents at a time")
def ndcg_at_k(Y_true: Any, predictions: npt.ArrayLike, k: int) -> float:
    """Return normalised discounted cumulative gain at k: precision that values early ranks.

    ```text
    nDCG@k = 1/N sum_n (sum_{i<=k} hit_ni d_i) / (sum_{i<=min(k, |y_n|)} d_i)
    ```

    The mean is over all N documents. A document without labels counts 0.

    Args:
        Y_true: The true labels, a matrix [N, L].
        predictions: Label ids in rank order, integers [N, K], -1 for none.
        k: How many of the first predictions count, at least 1. If k exceeds K, the missing predictions are
            misses.

    Returns:
        nDCG@k in [0, 1], or NaN if N = 0.

    Raises:
        TypeError: As for `precision_at_k`.
        ValueError: As for `precision_at_k`.

    Example:
        >>> import scipy.sparse as sp
        >>> from mach_ext.metrics import ndcg_at_k
        >>> Y_true = sp.csr_array([[1, 1, 0, 0], [0, 0, 1, 0]])
        >>> round(ndcg_at_k(Y_true, [[0, 3], [1, 2]], k=2), 4)  # (1 / 1.6309 + 0.6309 / 1) / 2
        0.622
    """
    k = check_k("ndcg_at_k", "k", k)
    _, hits = ranking.rank_hits("ndcg_at_k", Y_true, predictions)
    return ranking.ndcg(hits, k)


@memory_errors("pass fewer documents at a time")
def recall_at_k(Y_true: Any, predictions: npt.ArrayLike, k: int) -> float:
    """Return recall at k: the part of a document's labels that is among the first k predictions.

    ```text
    R@k = mean over documents with |y_n| > 0 of 1/|y_n| sum_{i<=k} hit_ni
    ```

    Unlike P@k and nDCG@k, the mean leaves out documents without labels. Their recall is not defined.

    Args:
        Y_true: The true labels, a matrix [N, L].
        predictions: Label ids in rank order, integers [N, K], -1 for none.
        k: How many of the first predictions count, at least 1. If k exceeds K, the missing predictions are
            misses.

    Returns:
        R@k in [0, 1], or NaN if no document has a label.

    Raises:
        TypeError: As for `precision_at_k`.
        ValueError: As for `precision_at_k`.

    Example:
        >>> import scipy.sparse as sp
        >>> from mach_ext.metrics import recall_at_k
        >>> Y_true = sp.csr_array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
        >>> recall_at_k(Y_true, [[0, 3], [1, 2], [0, 1]], k=2)  # (1/2 + 1/1) / 2
        0.75
    """
    k = check_k("recall_at_k", "k", k)
    _, hits = ranking.rank_hits("recall_at_k", Y_true, predictions)
    return ranking.recall(hits, k)


@memory_errors("pass fewer documents at a time")
def psp_at_k(Y_true: Any, predictions: npt.ArrayLike, inverse_propensity: npt.ArrayLike, k: int) -> float:
    """Return propensity-scored precision at k: precision that values rare labels, over the best possible.

    ```text
    PSP@k = (sum_n sum_{i<=k} hit_ni q(r_ni)) / (sum_n the k largest q_l, l in y_n)
    ```

    This is a ratio of two sums over all documents, not a mean of ratios. The source is Jain, Prabhu and
    Varma, Extreme Multi-label Loss Functions (KDD 2016). The normalisation is that of pyxclib and napkinXC.

    Args:
        Y_true: The true labels, a matrix [N, L].
        predictions: Label ids in rank order, integers [N, K], -1 for none.
        inverse_propensity: q_l >= 1 for each label, floats [L], from `inverse_propensity` of the **training**
            labels.
        k: How many of the first predictions count, at least 1. If k exceeds K, the missing predictions are
            misses.

    Returns:
        PSP@k in [0, 1], or NaN if no document has a label.

    Raises:
        TypeError: As for `precision_at_k`, or `inverse_propensity` is not numeric.
        ValueError: As for `precision_at_k`, or `inverse_propensity` is not [L]. Each value must be a finite
            number >= 1, so propensities in place of their inverses are refused.

    Example:
        >>> import scipy.sparse as sp
        >>> from mach_ext.metrics import psp_at_k
        >>> Y_true = sp.csr_array([[1, 1, 0, 0], [0, 0, 1, 0]])
        >>> psp_at_k(Y_true, [[0, 3], [1, 2]], [2.0, 4.0, 2.0, 1.0], k=1)  # (2 + 0) / (4 + 2)
        0.3333333333333333
    """
    k = check_k("psp_at_k", "k", k)
    truth, hits = ranking.rank_hits("psp_at_k", Y_true, predictions)
    q = check_inverse_propensity("psp_at_k", inverse_propensity, truth.shape[1])
    return ranking.psp(hits, ranking.best_ranking(truth, q), q, k)


@memory_errors("pass fewer documents at a time")
def psndcg_at_k(Y_true: Any, predictions: npt.ArrayLike, inverse_propensity: npt.ArrayLike, k: int) -> float:
    """Return propensity-scored nDCG at k: nDCG that values rare labels, over the best possible.

    ```text
    PSnDCG@k = (sum_n 1/Z_n sum_{i<=k} hit_ni d_i q(r_ni)) / (sum_n 1/Z_n sum_{i<=k} d_i q(b_ni))
    ```

    Z_n = sum_{i<=min(k, |y_n|)} d_i as in nDCG@k. b_n are the labels y_n by descending q, with none beyond
    rank |y_n|. Documents without labels add nothing. This is a ratio of two sums over all documents, not a
    mean of ratios. The source is Jain et al. (KDD 2016), with the Z_n of each document as in pyxclib and
    napkinXC.

    Args:
        Y_true: The true labels, a matrix [N, L].
        predictions: Label ids in rank order, integers [N, K], -1 for none.
        inverse_propensity: q_l >= 1 for each label, floats [L], from `inverse_propensity` of the **training**
            labels.
        k: How many of the first predictions count, at least 1. If k exceeds K, the missing predictions are
            misses.

    Returns:
        PSnDCG@k in [0, 1], or NaN if no document has a label.

    Raises:
        TypeError: As for `psp_at_k`.
        ValueError: As for `psp_at_k`.

    Example:
        >>> import scipy.sparse as sp
        >>> from mach_ext.metrics import psndcg_at_k
        >>> Y_true = sp.csr_array([[1, 1, 0, 0], [0, 0, 1, 0]])
        >>> round(psndcg_at_k(Y_true, [[0, 3], [1, 2]], [2.0, 4.0, 2.0, 1.0], k=2), 4)
        0.4761
    """
    k = check_k("psndcg_at_k", "k", k)
    truth, hits = ranking.rank_hits("psndcg_at_k", Y_true, predictions)
    q = check_inverse_propensity("psndcg_at_k", inverse_propensity, truth.shape[1])
    return ranking.psndcg(hits, ranking.best_ranking(truth, q), q, k)


@memory_errors("pass fewer documents at a time")
def evaluate(
    Y_true: Any,
    predictions: npt.ArrayLike,
    ks: Iterable[int] | None = None,
    recall_ks: Iterable[int] | None = None,
    inverse_propensity: npt.ArrayLike | None = None,
) -> dict[str, float]:
    """Return all metrics at once, computed in one pass over the predictions.

    The numbers are those of the single functions. A metric at k needs K >= k columns of predictions, or K =
    L, where no other label is left to predict. Rows of fewer predictions are filled up with -1, which counts
    as a miss. R@k is more useful at larger k than P@k. P@k saturates at a few hash repetitions, while R@50
    keeps rising.

    Args:
        Y_true: The true labels, a matrix [N, L].
        predictions: Label ids in rank order, integers [N, K], -1 for none.
        ks: The k of P@k, nDCG@k, PSP@k and PSnDCG@k. None takes those of 1, 3, 5 for which there are columns.
        recall_ks: The k of R@k. None takes those of 10, 50 for which there are columns.
        inverse_propensity: q_l >= 1 for each label, floats [L], from `inverse_propensity` of the **training**
            labels. None leaves PSP@k and PSnDCG@k out.

    Returns:
        `{"P@1": ..., "nDCG@1": ..., "PSP@1": ..., "PSnDCG@1": ..., "R@10": ...}`, fractions of 1.

    Raises:
        TypeError: As for `precision_at_k` and `psp_at_k`.
        ValueError: As for `precision_at_k` and `psp_at_k`. The predictions have too few columns for a
            requested k.

    Example:
        >>> import scipy.sparse as sp
        >>> from mach_ext.metrics import evaluate
        >>> Y_true = sp.csr_array([[1, 1, 0, 0], [0, 0, 1, 0]])
        >>> evaluate(Y_true, [[0, 3], [1, 2]], recall_ks=(2,))
        {'P@1': 0.5, 'nDCG@1': 0.5, 'R@2': 0.75}
    """
    truth, hits = ranking.rank_hits("evaluate", Y_true, predictions)
    ks, recall_ks = select_ks("evaluate", ks, recall_ks, np.shape(predictions)[1], truth.shape[1])
    q = inverse_propensity
    if q is not None:
        q = check_inverse_propensity("evaluate", q, truth.shape[1])
    return ranking.all_metrics(truth, hits, ks, recall_ks, q)


@memory_errors("pass fewer documents at a time")
def evaluate_by_band(
    Y_true: Any,
    predictions: npt.ArrayLike,
    bands: Mapping[str, npt.ArrayLike],
    ks: Iterable[int] | None = None,
    recall_ks: Iterable[int] | None = None,
    inverse_propensity: npt.ArrayLike | None = None,
) -> dict[str, dict[str, float]]:
    """Return `evaluate` once for each band of labels, where only the band's labels count as true.

    The metrics of band S are those of `evaluate` with y_n replaced by y_n & S. The predictions and their
    ranks stay as they are, because no user sees a ranking of the tail alone. The metrics then mean the
    following:

    * P@k(S) = 1/(N k) sum_n sum_{i<=k} [r_ni in y_n & S]. This is the part of the k shown labels that is
      right **and** in the band. If the bands partition the labels, these parts sum to the overall P@k.
    * R@k(S) is the mean of |{r_n1 ... r_nk} & y_n & S| / |y_n & S| over documents with a label in S. This is
      the part of the band's true labels that the predictions contain. It compares bands on one scale. P@k
      does not, because bands differ in how many true labels they hold.
    * nDCG@k(S), PSP@k(S) and PSnDCG@k(S) are normalised by the best ranking for y_n & S, which puts labels of
      S first. A perfect overall ranking also has to place the other bands. So it need not reach 1 in every
      band.

    Args:
        Y_true: The true labels, a matrix [N, L].
        predictions: Label ids in rank order, integers [N, K], -1 for none.
        bands: A mapping of names to booleans [L], such as `label_frequency_bands` returns. Any other grouping
            works, even if its groups overlap.
        ks: As for `evaluate`.
        recall_ks: As for `evaluate`.
        inverse_propensity: As for `evaluate`.

    Returns:
        The dictionary of `evaluate` for each band, in the given order. A band without a true label in
        `Y_true` has P@k = nDCG@k = 0 and NaN for the other metrics.

    Raises:
        TypeError: As for `evaluate`, `bands` is not a mapping, or a band is not boolean.
        ValueError: As for `evaluate`, or a band is not [L].

    Example:
        >>> import scipy.sparse as sp
        >>> from mach_ext.metrics import evaluate_by_band
        >>> Y_true = sp.csr_array([[1, 1, 0, 0], [0, 0, 1, 0]])
        >>> bands = {"head": [True, True, False, False], "tail": [False, False, True, True]}
        >>> by_band = evaluate_by_band(Y_true, [[0, 3], [1, 2]], bands, ks=(2,), recall_ks=(2,))
        >>> by_band["head"]["R@2"], by_band["tail"]["R@2"]
        (0.5, 1.0)
    """
    if not isinstance(bands, Mapping):
        raise TypeError(f"evaluate_by_band: bands must map names to masks, got {type(bands).__name__}")
    truth, hits = ranking.rank_hits("evaluate_by_band", Y_true, predictions)
    num_labels = truth.shape[1]
    ks, recall_ks = select_ks("evaluate_by_band", ks, recall_ks, np.shape(predictions)[1], num_labels)
    q = inverse_propensity
    if q is not None:
        q = check_inverse_propensity("evaluate_by_band", q, num_labels)
    masks = {name: check_band("evaluate_by_band", name, mask, num_labels) for name, mask in bands.items()}
    return {
        name: ranking.all_metrics(*ranking.restrict(truth, hits, m), ks, recall_ks, q)
        for name, m in masks.items()
    }


@memory_errors("pass fewer documents at a time")
def without_filtered(predictions: npt.ArrayLike, filtered: Any) -> Ints:
    """Remove from the predictions the labels that must not be answered.

    Later labels move up, and -1 fills the end. In some datasets (the LF sets) documents are also labels. They
    list pairs that would be too easy, such as a document and itself. The field removes these pairs from the
    answers before it computes metrics.

    Args:
        predictions: Label ids in rank order, integers [N, K], -1 for none.
        filtered: Sparse [N, L], non-zero where a label must not be answered.

    Returns:
        Integers [N, K].

    Raises:
        TypeError: As for `precision_at_k`.
        ValueError: As for `precision_at_k`.

    Example:
        >>> import scipy.sparse as sp
        >>> from mach_ext.metrics import without_filtered
        >>> without_filtered([[2, 0, 1]], sp.csr_array([[0, 0, 1]]))
        array([[ 0,  1, -1]])
    """
    _, hits = ranking.rank_hits("without_filtered", filtered, predictions)
    ids = np.array(predictions, np.int64)
    ids[hits.rows, hits.ranks] = -1
    order = np.argsort(ids < 0, axis=1, kind="stable")
    kept: Ints = np.take_along_axis(ids, order, axis=1)
    return kept


class ByDocument(NamedTuple):
    """Metrics of each document, as arrays [N, len(ks)] with a column for each k.

    PSP@k of a set of documents is a ratio of two sums. Its two parts are therefore kept apart.

    Attributes:
        ks: The k of each column.
        precision: P@k of each document.
        ndcg: nDCG@k of each document.
        gain: Propensity-scored hits of PSP@k, or None without inverse propensities.
        best_gain: The largest gain that k predictions can reach, or None without inverse propensities.

    Example:
        >>> import scipy.sparse as sp
        >>> from mach_ext.metrics import by_document
        >>> result = by_document(sp.csr_array([[1, 1, 0], [0, 0, 1]]), [[0, 2], [1, 2]], ks=(1, 2))
        >>> result.ks, result.precision.mean(axis=0)
        ((1, 2), array([0.5, 0.5]))
    """

    ks: tuple[int, ...]
    precision: Floats
    ndcg: Floats
    gain: Floats | None  # propensity-scored hits of PSP@k, None without inverse propensities
    best_gain: Floats | None  # the largest gain that k predictions can reach

    @property
    def psp(self) -> Floats | None:
        """PSP@k of each document alone, or None without inverse propensities.

        It is NaN for documents without a label.

        Example:
            >>> import scipy.sparse as sp
            >>> from mach_ext.metrics import by_document
            >>> Y_true = sp.csr_array([[1, 1, 0], [0, 0, 1]])
            >>> by_document(Y_true, [[0, 2], [1, 2]], ks=(1, 2), inverse_propensity=[1.0, 3.0, 2.0]).psp
            array([[0.33333333, 0.25      ],
                   [0.        , 1.        ]])
        """
        if self.gain is None or self.best_gain is None:
            return None
        with np.errstate(invalid="ignore"):
            return self.gain / self.best_gain


@memory_errors("pass fewer documents at a time")
def by_document(
    Y_true: Any,
    predictions: npt.ArrayLike,
    ks: Iterable[int] | None = None,
    inverse_propensity: npt.ArrayLike | None = None,
) -> ByDocument:
    """Return P@k, nDCG@k and the parts of PSP@k of each document, in one pass over the predictions.

    The means of `ndcg` over the documents equal those of `evaluate` to the bit. The means of `precision`
    equal them up to rounding. The same holds for the ratio of the sums of `gain` and `best_gain`.

    Args:
        Y_true: The true labels, a matrix [N, L].
        predictions: Label ids in rank order, integers [N, K], -1 for none.
        ks: As for `evaluate`.
        inverse_propensity: As for `evaluate`.

    Returns:
        The metrics, with a row for each document and a column for each k.

    Raises:
        TypeError: As for `evaluate`.
        ValueError: As for `evaluate`.

    Example:
        >>> import scipy.sparse as sp
        >>> from mach_ext.metrics import by_document
        >>> Y_true = sp.csr_array([[1, 1, 0, 0], [0, 0, 1, 0]])
        >>> by_document(Y_true, [[0, 3], [1, 2]], ks=(1, 2)).precision
        array([[1. , 0.5],
               [0. , 0.5]])
    """
    truth, hits = ranking.rank_hits("by_document", Y_true, predictions)
    ks, _ = select_ks("by_document", ks, (), np.shape(predictions)[1], truth.shape[1])
    N, ones = len(hits.sizes), np.ones(len(hits.rows))
    precision = [ranking.sums_of_documents(hits, ones, k) / k for k in ks]
    ndcg = [ranking.normalised_dcg(hits, ones, k) for k in ks]
    gain = best_gain = None
    if inverse_propensity is not None:
        q = check_inverse_propensity("by_document", inverse_propensity, truth.shape[1])
        best = ranking.best_ranking(truth, q)
        gain = ranking.as_columns([ranking.sums_of_documents(hits, q[hits.labels], k) for k in ks], N)
        best_gain = ranking.as_columns([ranking.sums_of_documents(best, q[best.labels], k) for k in ks], N)
    return ByDocument(ks, ranking.as_columns(precision, N), ranking.as_columns(ndcg, N), gain, best_gain)
