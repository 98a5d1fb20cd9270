"""Ranking metrics of extreme multi-label classification: P@k, nDCG@k, PSP@k, PSnDCG@k, R@k.

Every function takes the same two things:

* ``Y_true``: a matrix [N, L]: SciPy sparse of any format, a NumPy array, or a torch tensor in host memory,
  dense or sparse. One dimension [L] is one document. A non-zero entry (n, l) says that label l is true for
  document n; how large it is does not matter, but it must not be negative or NaN. Dense integers must be 0
  or 1, so that rows of label ids are not taken for a matrix.
* ``predictions``: integer array [N, K] (NumPy, nested lists, or a torch tensor in host memory): label ids,
  best first, each at most once in a row. -1 stands for "no prediction": a miss that keeps its place.

Notation: y_n is the set of true labels of document n, r_ni the label predicted at rank i = 1..K,
hit_ni = 1 if r_ni is in y_n, else 0 (also for i > K: fewer than k predictions count as misses),
d_i = 1 / log2(i + 1), and q_l >= 1 the inverse propensity of label l.

Results are Python floats, fractions of 1. What averages over nothing (no document at all; for R, PSP and
PSnDCG, no document that has a label) is NaN rather than a 0 that would look like a failure.

Memory is O(nnz(Y_true) + N * K), never O(N * L). Arguments are not modified.
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
    """Precision at k: which part of the first k predictions is right.

    P@k = 1/N sum_n 1/k sum_{i<=k} hit_ni

    The mean is over all N documents; one without labels counts 0. The divisor is k, also where a document has
    fewer labels or fewer predictions.

    Args:
        Y_true: matrix [N, L], the true labels.
        predictions: integers [N, K], label ids in rank order, -1 for none.
        k: how many of the first predictions count, >= 1. Where it exceeds K, what is not there is a miss.

    Returns:
        P@k in [0, 1]; NaN if N = 0.

    Raises:
        TypeError: Y_true is no matrix, predictions are not integers, k is not an integer.
        ValueError: shapes differ, a label id is not in [-1, L), a row repeats a label, k < 1.

    Example:
        >>> import scipy.sparse as sp
        >>> Y_true = sp.csr_array([[1, 1, 0, 0], [0, 0, 1, 0]])
        >>> precision_at_k(Y_true, [[0, 3], [1, 2]], k=2)
        0.5
    """
    k = check_k("precision_at_k", "k", k)
    _, hits = ranking.rank_hits("precision_at_k", Y_true, predictions)
    return ranking.precision(hits, k)


@memory_errors("pass fewer documents at a time")
def ndcg_at_k(Y_true: Any, predictions: npt.ArrayLike, k: int) -> float:
    """Normalised discounted cumulative gain at k: precision that values early ranks.

    nDCG@k = 1/N sum_n (sum_{i<=k} hit_ni d_i) / (sum_{i<=min(k, |y_n|)} d_i)

    The mean is over all N documents; one without labels counts 0.

    Args:
        Y_true: matrix [N, L], the true labels.
        predictions: integers [N, K], label ids in rank order, -1 for none.
        k: how many of the first predictions count, >= 1. Where it exceeds K, what is not there is a miss.

    Returns:
        nDCG@k in [0, 1]; NaN if N = 0.

    Raises:
        TypeError, ValueError: as for `precision_at_k`.

    Example:
        >>> import scipy.sparse as sp
        >>> Y_true = sp.csr_array([[1, 1, 0, 0], [0, 0, 1, 0]])
        >>> round(ndcg_at_k(Y_true, [[0, 3], [1, 2]], k=2), 4)  # (1 / 1.6309 + 0.6309 / 1) / 2
        0.622
    """
    k = check_k("ndcg_at_k", "k", k)
    _, hits = ranking.rank_hits("ndcg_at_k", Y_true, predictions)
    return ranking.ndcg(hits, k)


@memory_errors("pass fewer documents at a time")
def recall_at_k(Y_true: Any, predictions: npt.ArrayLike, k: int) -> float:
    """Recall at k: which part of a document's labels is among the first k predictions.

    R@k = mean over documents with |y_n| > 0 of 1/|y_n| sum_{i<=k} hit_ni

    Unlike P@k and nDCG@k, the mean leaves out documents without labels: their recall is not defined.

    Args:
        Y_true: matrix [N, L], the true labels.
        predictions: integers [N, K], label ids in rank order, -1 for none.
        k: how many of the first predictions count, >= 1. Where it exceeds K, what is not there is a miss.

    Returns:
        R@k in [0, 1]; NaN if no document has a label.

    Raises:
        TypeError, ValueError: as for `precision_at_k`.

    Example:
        >>> import scipy.sparse as sp
        >>> Y_true = sp.csr_array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
        >>> recall_at_k(Y_true, [[0, 3], [1, 2], [0, 1]], k=2)  # (1/2 + 1/1) / 2
        0.75
    """
    k = check_k("recall_at_k", "k", k)
    _, hits = ranking.rank_hits("recall_at_k", Y_true, predictions)
    return ranking.recall(hits, k)


@memory_errors("pass fewer documents at a time")
def psp_at_k(Y_true: Any, predictions: npt.ArrayLike, inverse_propensity: npt.ArrayLike, k: int) -> float:
    """Propensity-scored precision at k: precision that values rare labels, over the best possible.

    PSP@k = (sum_n sum_{i<=k} hit_ni q(r_ni)) / (sum_n the k largest q_l, l in y_n)

    A ratio of two sums over all documents, not a mean of ratios. Source: Jain, Prabhu, Varma, Extreme
    Multi-label Loss Functions (KDD 2016), normalised as pyxclib and napkinXC do.

    Args:
        Y_true: matrix [N, L], the true labels.
        predictions: integers [N, K], label ids in rank order, -1 for none.
        inverse_propensity: floats [L], q_l >= 1, from `inverse_propensity` of the **training** labels.
        k: how many of the first predictions count, >= 1. Where it exceeds K, what is not there is a miss.

    Returns:
        PSP@k in [0, 1]; NaN if no document has a label.

    Raises:
        TypeError: as for `precision_at_k`; inverse_propensity is not numeric.
        ValueError: as for `precision_at_k`; inverse_propensity is not [L], or has a value that is not a
            finite number >= 1 (such as a propensity in place of its inverse).

    Example:
        >>> import scipy.sparse as sp
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
    """Propensity-scored nDCG at k: nDCG that values rare labels, over the best possible.

    PSnDCG@k = (sum_n 1/Z_n sum_{i<=k} hit_ni d_i q(r_ni)) / (sum_n 1/Z_n sum_{i<=k} d_i q(b_ni))

    with Z_n = sum_{i<=min(k, |y_n|)} d_i as in nDCG@k, and b_n the labels y_n by descending q (none beyond
    rank |y_n|; documents without labels add nothing). A ratio of two sums over all documents, not a mean of
    ratios. Source: Jain et al. (KDD 2016), with the Z_n of each document as in pyxclib and napkinXC.

    Args:
        Y_true: matrix [N, L], the true labels.
        predictions: integers [N, K], label ids in rank order, -1 for none.
        inverse_propensity: floats [L], q_l >= 1, from `inverse_propensity` of the **training** labels.
        k: how many of the first predictions count, >= 1. Where it exceeds K, what is not there is a miss.

    Returns:
        PSnDCG@k in [0, 1]; NaN if no document has a label.

    Raises:
        TypeError, ValueError: as for `psp_at_k`.

    Example:
        >>> import scipy.sparse as sp
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
    """All metrics at once; the same numbers as the single functions, in one pass over the predictions.

    Only what the predictions carry is measured: a metric at k needs K >= k columns, or K = L, where nothing
    is left to predict. Rows of fewer predictions are filled up with -1, which counts as a miss. R@k is wanted
    at larger k than P@k, since P@k saturates at a few hash repetitions and R@50 keeps rising.

    Args:
        Y_true: matrix [N, L], the true labels.
        predictions: integers [N, K], label ids in rank order, -1 for none.
        ks: the k of P@k and nDCG@k, and of PSP@k and PSnDCG@k. None: of 1, 3, 5 those that the predictions
            carry.
        recall_ks: the k of R@k. None: of 10, 50 those that the predictions carry.
        inverse_propensity: floats [L], q_l >= 1, from `inverse_propensity` of the **training** labels; None
            leaves PSP@k and PSnDCG@k out.

    Returns:
        ``{"P@1": ..., "nDCG@1": ..., "PSP@1": ..., "PSnDCG@1": ..., "R@10": ...}``, fractions of 1.

    Raises:
        TypeError, ValueError: as for `precision_at_k` and `psp_at_k`; the predictions do not carry a k that
            was asked for.

    Example:
        >>> import scipy.sparse as sp
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
    """`evaluate`, once for each band of labels: only the band's labels count as true.

    The metrics of band S are those of `evaluate` with y_n replaced by y_n & S. The predictions and their
    ranks stay as they are: no user sees a ranking of the tail alone. Hence:

    * P@k(S) = 1/(N k) sum_n sum_{i<=k} [r_ni in y_n & S]: which part of the k shown labels is right **and**
      in the band. Over bands that partition the labels these contributions sum to the overall P@k.
    * R@k(S) = mean over documents with a label in S of |{r_n1 ... r_nk} & y_n & S| / |y_n & S|: which part
      of the band's true labels is found. It compares bands on one scale; P@k does not, as bands differ in
      how many true labels they hold.
    * nDCG@k(S), PSP@k(S), PSnDCG@k(S) normalise by the best ranking for y_n & S, labels of S first. A perfect
      overall ranking has to place the other bands too, so it need not reach 1 in every band.

    Args:
        Y_true: matrix [N, L], the true labels.
        predictions: integers [N, K], label ids in rank order, -1 for none.
        bands: name -> booleans [L], such as `label_frequency_bands` gives; any other grouping works, also
            one that overlaps.
        ks, recall_ks, inverse_propensity: as for `evaluate`.

    Returns:
        For each band, in the order given, the dictionary of `evaluate`. A band without a true label in Y_true
        has P@k = nDCG@k = 0 and NaN for the rest.

    Raises:
        TypeError: as for `evaluate`; bands is not a mapping, or a band is not boolean.
        ValueError: as for `evaluate`; a band is not [L].

    Example:
        >>> import scipy.sparse as sp
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
    """Predictions without the labels that must not be answered; later ones move up, -1 fills the end.

    Datasets whose documents are labels, too (the LF sets), list pairs that would be too easy, such as a
    document and itself. The field removes them from the answers before it computes metrics.

    Args:
        predictions: integers [N, K], label ids in rank order, -1 for none.
        filtered: sparse [N, L], non-zero where a label must not be answered.

    Returns:
        integers [N, K].

    Raises:
        TypeError, ValueError: as for `precision_at_k`.

    Example:
        >>> import scipy.sparse as sp
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
    """Metrics of each document, [N, len(ks)] each: a column for each k.

    PSP@k of a set of documents is a ratio of two sums, so its two parts are kept apart.
    """

    ks: tuple[int, ...]
    precision: Floats
    ndcg: Floats
    gain: Floats | None  # propensity-scored hits of PSP@k, None without inverse propensities
    best_gain: Floats | None  # the largest gain that k predictions can reach

    @property
    def psp(self) -> Floats | None:
        """PSP@k of each document alone: NaN where it has no label."""
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
    """P@k, nDCG@k and the parts of PSP@k of each document, in one pass over the predictions.

    The means of `ndcg` over the documents are `evaluate`'s to the bit. Those of `precision`, and the ratio of
    the sums of `gain` and `best_gain`, equal `evaluate`'s up to rounding.

    Args:
        Y_true, predictions, ks, inverse_propensity: as for `evaluate`.

    Raises:
        TypeError, ValueError: as for `evaluate`.

    Example:
        >>> import scipy.sparse as sp
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
