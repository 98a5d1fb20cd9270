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

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy
import torch

from mach_ext._memory import check_memory, memory_errors
from mach_ext.data.matrices import check_structure, from_torch

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

KS = (1, 3, 5)  # the customary k of P, nDCG, PSP and PSnDCG
RECALL_KS = (10, 50)

_BLOCK_CELLS = 1 << 18  # predictions looked up at a time, so that their keys stay in cache

_Ints = npt.NDArray[np.integer[Any]]
_Floats = npt.NDArray[np.float64]


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
    k = _checked_k("precision_at_k", "k", k)
    _, hits = _ranked("precision_at_k", Y_true, predictions)
    return _precision(hits, k)


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
    k = _checked_k("ndcg_at_k", "k", k)
    _, hits = _ranked("ndcg_at_k", Y_true, predictions)
    return _ndcg(hits, k)


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
    k = _checked_k("recall_at_k", "k", k)
    _, hits = _ranked("recall_at_k", Y_true, predictions)
    return _recall(hits, k)


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
    k = _checked_k("psp_at_k", "k", k)
    truth, hits = _ranked("psp_at_k", Y_true, predictions)
    q = _checked_inverse_propensity("psp_at_k", inverse_propensity, truth.shape[1])
    return _psp(hits, _best(truth, q), q, k)


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
    k = _checked_k("psndcg_at_k", "k", k)
    truth, hits = _ranked("psndcg_at_k", Y_true, predictions)
    q = _checked_inverse_propensity("psndcg_at_k", inverse_propensity, truth.shape[1])
    return _psndcg(hits, _best(truth, q), q, k)


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
    truth, hits = _ranked("evaluate", Y_true, predictions)
    ks, recall_ks = _measured_ks("evaluate", ks, recall_ks, np.shape(predictions)[1], truth.shape[1])
    q = inverse_propensity
    if q is not None:
        q = _checked_inverse_propensity("evaluate", q, truth.shape[1])
    return _evaluate(truth, hits, ks, recall_ks, q)


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
    truth, hits = _ranked("evaluate_by_band", Y_true, predictions)
    num_labels = truth.shape[1]
    ks, recall_ks = _measured_ks("evaluate_by_band", ks, recall_ks, np.shape(predictions)[1], num_labels)
    q = inverse_propensity
    if q is not None:
        q = _checked_inverse_propensity("evaluate_by_band", q, num_labels)
    masks = {name: _checked_band("evaluate_by_band", name, mask, num_labels) for name, mask in bands.items()}
    return {name: _evaluate(*_restricted(truth, hits, m), ks, recall_ks, q) for name, m in masks.items()}


@memory_errors("pass fewer labels")
def inverse_propensity(Y_train: Any, A: float = 0.55, B: float = 1.5) -> _Floats:
    """How much more each label should count, given how likely it is to be missing from the labelled data.

    q_l = 1 + C (N_l + B)^-A,  C = (ln N - 1) (B + 1)^A

    with N training documents, N_l of them carrying label l. Source: Jain, Prabhu, Varma, Extreme Multi-label
    Loss Functions (KDD 2016). Customary values of A, B: 0.5, 0.4 for Wikipedia-scale data, 0.6, 2.6 for
    Amazon's, 0.55, 1.5 for everything else.

    Args:
        Y_train: matrix [N, L], the labels of the **training** documents.
        A: exponent, >= 0.
        B: offset of the counts, > 0.

    Returns:
        float64 [L], each >= 1; rarer labels have larger ones.

    Raises:
        TypeError: Y_train is no matrix.
        ValueError: N < 3 (C would be negative), A < 0, B <= 0, or A and B give a number that is not finite.

    Example:
        >>> import scipy.sparse as sp
        >>> inverse_propensity(sp.csr_array([[1, 0], [1, 0], [1, 1]])).round(4)
        array([1.0714, 1.0986])
    """
    truth = _checked_truth("inverse_propensity", "Y_train", Y_train)
    return inverse_propensity_of_counts(label_counts(truth), truth.shape[0], A, B)


@memory_errors("pass fewer labels")
def inverse_propensity_of_counts(
    counts: npt.ArrayLike, num_documents: int, A: float = 0.55, B: float = 1.5
) -> _Floats:
    """The same from N_l, how many training documents carry each label [L], and N, how many there are.

    Example:
        >>> inverse_propensity_of_counts([3, 1], num_documents=3).round(4)
        array([1.0714, 1.0986])
    """
    if num_documents < 3:
        raise ValueError(f"inverse_propensity: Y_train must have at least 3 documents, got {num_documents}")
    if not (math.isfinite(A) and A >= 0):
        raise ValueError(f"inverse_propensity: A must be finite and >= 0, got {A}")
    if not (math.isfinite(B) and B > 0):
        raise ValueError(f"inverse_propensity: B must be finite and > 0, got {B}")
    counts = np.asarray(counts)
    check_memory(
        "inverse_propensity: two numbers a label", 16 * counts.size, "pass fewer labels", L=counts.size
    )
    with np.errstate(all="ignore"):
        C = (math.log(num_documents) - 1) * np.float64(B + 1) ** A
        q: _Floats = 1 + C * (counts + B) ** -A
    if not np.isfinite(q).all():
        raise ValueError(f"inverse_propensity: A and B must be small enough for float64, got A={A}, B={B}")
    return q


def propensity_constants(dataset: str) -> tuple[float, float]:
    """A and B of `inverse_propensity` that published figures of a dataset were computed with.

    Amazon-670K, Amazon-3M and the LF-Amazon sets: 0.6, 2.6. Wikipedia-500K, WikiLSHTC-325K and LF-WikiTitles:
    0.5, 0.4. All others, among them AmazonCat-13K, Wiki10-31K and LF-WikiSeeAlso: 0.55, 1.5. Source: the
    evaluation scripts of pyxclib, DeepXML and AttentionXML.

    Args:
        dataset: its name, in any spelling.

    Example:
        >>> propensity_constants("amazon-670k"), propensity_constants("Wiki10-31K")
        ((0.6, 2.6), (0.55, 1.5))
    """
    name = re.sub("[^a-z0-9]", "", dataset.lower())
    if "amazon" in name and "amazoncat" not in name:
        return 0.6, 2.6
    if "wiki" in name and "wiki10" not in name and "wikiseealso" not in name:
        return 0.5, 0.4
    return 0.55, 1.5


@memory_errors("pass fewer labels")
def label_frequency_bands(
    Y_train: Any, tail_max: int = 5, torso_max: int = 100
) -> dict[str, npt.NDArray[np.bool_]]:
    """Split the labels into head, torso and tail by how many training documents carry them.

    tail: N_l <= tail_max (unseen labels too);  torso: tail_max < N_l <= torso_max;  head: N_l > torso_max

    The cuts are absolute counts because examples are what a learner has to go by: 5 are few in any data set,
    and a band means the same in all of them. Cuts at equal shares of the label mass do not have this: thirds
    put labels with some 175 training documents in the tail on EURLEX57K, and with 13 on TIBKAT. Masks from
    any other rule can be passed to `evaluate_by_band`.

    Args:
        Y_train: matrix [N, L], the labels of the **training** documents.
        tail_max: the largest count in the tail, >= 0.
        torso_max: the largest count in the torso, > tail_max.

    Returns:
        ``{"head": ..., "torso": ..., "tail": ...}``, booleans [L]; every label is in exactly one band.

    Raises:
        TypeError: Y_train is no matrix, a cut is not an integer.
        ValueError: not 0 <= tail_max < torso_max.

    Example:
        >>> import scipy.sparse as sp
        >>> Y_train = sp.csr_array([[1, 1, 0], [1, 1, 0], [1, 0, 0]])
        >>> {name: m.nonzero()[0].tolist() for name, m in label_frequency_bands(Y_train, 1, 2).items()}
        {'head': [0], 'torso': [1], 'tail': [2]}
    """
    truth = _checked_truth("label_frequency_bands", "Y_train", Y_train)
    tail_max = _checked_k("label_frequency_bands", "tail_max", tail_max, least=0)
    torso_max = _checked_k("label_frequency_bands", "torso_max", torso_max, least=tail_max + 1)
    return frequency_bands_of_counts(label_counts(truth), tail_max, torso_max)


@memory_errors("pass fewer labels")
def frequency_bands_of_counts(
    counts: npt.ArrayLike, tail_max: int = 5, torso_max: int = 100
) -> dict[str, npt.NDArray[np.bool_]]:
    """The same from how many training documents carry each label [L]."""
    counts = np.asarray(counts)
    tail, head = counts <= tail_max, counts > torso_max
    return {"head": head, "torso": ~head & ~tail, "tail": tail}


@memory_errors("pass fewer documents at a time")
def without_filtered(predictions: npt.ArrayLike, filtered: Any) -> _Ints:
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
    _, hits = _ranked("without_filtered", filtered, predictions)
    ids = np.array(predictions, np.int64)
    ids[hits.rows, hits.ranks] = -1
    order = np.argsort(ids < 0, axis=1, kind="stable")
    kept: _Ints = np.take_along_axis(ids, order, axis=1)
    return kept


# ------------------------------------------------------------------------------------------------------------
# All that the metrics look at is true labels with their ranks: either those that were predicted (hits), or
# all of them in the best order (best).


class _Ranked(NamedTuple):
    """True labels at ranks of documents, m of them, by document, then by rank."""

    rows: _Ints  # [m] document
    ranks: _Ints  # [m] 0-based
    labels: _Ints  # [m]
    sizes: _Ints  # [N] number of true labels of each document, ranked or not


def _ranked(function: str, Y_true: Any, predictions: npt.ArrayLike) -> tuple[Any, _Ranked]:
    """The checked truth (CSR) and the predictions that hit it."""
    truth = _checked_truth(function, "Y_true", Y_true)
    ids = _checked_predictions(function, predictions, truth.shape)
    sizes = np.diff(truth.indptr)
    stride = truth.shape[1] + 1  # the key of label l in row r of a block is r * stride + l + 1; -1 never hits
    step = max(1, _BLOCK_CELLS // max(1, ids.shape[1]))
    rows, ranks = [np.empty(0, np.intp)], [np.empty(0, np.intp)]
    for start in range(0, len(ids), step):
        block = ids[start : start + step]
        _check_distinct(function, block, start)
        stop = start + len(block)
        true_rows = np.repeat(np.arange(len(block)), sizes[start:stop])
        true_labels = truth.indices[truth.indptr[start] : truth.indptr[stop]]
        true_keys = np.append(true_rows * stride + true_labels + 1, np.iinfo(np.int64).max)  # ascending
        keys = np.arange(len(block))[:, None] * stride + block.astype(np.int64) + 1
        row, rank = np.nonzero(true_keys[np.searchsorted(true_keys, keys)] == keys)
        rows.append(row + start)
        ranks.append(rank)
    row, rank = np.concatenate(rows), np.concatenate(ranks)
    return truth, _Ranked(row, rank, ids[row, rank], sizes)


def _best(truth: Any, q: _Floats) -> _Ranked:
    """Every document's true labels by descending q."""
    sizes = np.diff(truth.indptr)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    ranks = np.arange(len(rows)) - np.repeat(truth.indptr[:-1], sizes)
    order = np.lexsort((-q[truth.indices], rows))
    return _Ranked(rows, ranks, truth.indices[order], sizes)


def _restricted(truth: Any, hits: _Ranked, band: npt.NDArray[np.bool_]) -> tuple[Any, _Ranked]:
    """The same with only the band's labels true."""
    part = truth.copy()
    part.data = band[part.indices]
    part.eliminate_zeros()
    kept = band[hits.labels]
    return part, _Ranked(hits.rows[kept], hits.ranks[kept], hits.labels[kept], np.diff(part.indptr))


def _evaluate(
    truth: Any, hits: _Ranked, ks: tuple[int, ...], recall_ks: tuple[int, ...], q: _Floats | None
) -> dict[str, float]:
    metrics = {f"P@{k}": _precision(hits, k) for k in ks}
    metrics |= {f"nDCG@{k}": _ndcg(hits, k) for k in ks}
    if q is not None:
        best = _best(truth, q)
        metrics |= {f"PSP@{k}": _psp(hits, best, q, k) for k in ks}
        metrics |= {f"PSnDCG@{k}": _psndcg(hits, best, q, k) for k in ks}
    return metrics | {f"R@{k}": _recall(hits, k) for k in recall_ks}


def _precision(hits: _Ranked, k: int) -> float:
    return _ratio(np.count_nonzero(hits.ranks < k), k * len(hits.sizes))


def _ndcg(hits: _Ranked, k: int) -> float:
    return _ratio(_normalised_dcg(hits, np.ones(len(hits.rows)), k).sum(), len(hits.sizes))


def _recall(hits: _Ranked, k: int) -> float:
    found = np.bincount(hits.rows[hits.ranks < k], minlength=len(hits.sizes))
    return _ratio((found / np.maximum(hits.sizes, 1)).sum(), np.count_nonzero(hits.sizes))


def _psp(hits: _Ranked, best: _Ranked, q: _Floats, k: int) -> float:
    return _ratio(q[hits.labels[hits.ranks < k]].sum(), q[best.labels[best.ranks < k]].sum())


def _psndcg(hits: _Ranked, best: _Ranked, q: _Floats, k: int) -> float:
    reached = _normalised_dcg(hits, q[hits.labels], k)
    return _ratio(reached.sum(), _normalised_dcg(best, q[best.labels], k).sum())


def _normalised_dcg(ranked: _Ranked, gains: _Floats, k: int) -> _Floats:
    """sum_{i<=k} gain_i d_i / sum_{i<=min(k, |y|)} d_i of each document, [N]; 0 without labels."""
    top = ranked.ranks < k
    discounted = gains[top] / np.log2(ranked.ranks[top] + 2)
    dcg = np.bincount(ranked.rows[top], weights=discounted, minlength=len(ranked.sizes))
    counted = np.minimum(ranked.sizes, k)
    ideal = np.cumsum(1 / np.log2(np.arange(counted.max(initial=1)) + 2))  # [j]: the best j + 1 hits
    normalised: _Floats = dcg / ideal[np.maximum(counted, 1) - 1]
    return normalised


def _ratio(numerator: Any, denominator: Any) -> float:
    return float(numerator) / float(denominator) if denominator else math.nan


def label_counts(truth: Any) -> _Ints:
    """Documents of each label: [L] of a label matrix [N, L]."""
    L = truth.shape[1]
    check_memory("label_counts: a count for each label", 8 * L, "pass fewer labels", L=L)
    return np.bincount(truth.indices, minlength=truth.shape[1])


# ------------------------------------------------------------------------------------------------------------
# Checks: each returns its argument in the one form the code above works with.


def _checked_truth(function: str, argument: str, Y: Any) -> Any:
    """CSR of booleans, sorted, without duplicates and explicit zeros; shares memory with Y where it can."""
    stored = _stored_entries(function, argument, Y)
    valid = stored.data >= 0
    if not valid.all():
        value = stored.data[np.argmin(valid)]
        raise ValueError(f"{function}: {argument} must not have negative or NaN entries, got {value}")
    # Booleans before duplicates meet: a sum of numbers could leave their dtype and come out as 0.
    true = stored.data != 0
    if stored.format == "csr":
        truth = scipy.sparse.csr_array((true, stored.indices, stored.indptr), shape=stored.shape)
    else:
        truth = scipy.sparse.coo_array((true, (stored.row, stored.col)), shape=stored.shape).tocsr()
    if not (truth.has_canonical_format and truth.data.all()):
        truth = truth.copy()
        truth.sum_duplicates()
        truth.eliminate_zeros()
    return truth


def _stored_entries(function: str, argument: str, Y: Any) -> Any:
    """A matrix as CSR or COO [N, L] of its entries as they are stored: duplicates are not summed."""
    if isinstance(Y, torch.Tensor):
        Y = from_torch(Y, f"{function}: {argument}")
    if not (scipy.sparse.issparse(Y) or isinstance(Y, np.ndarray)):
        came = type(Y).__name__
        raise TypeError(f"{function}: {argument} must be a SciPy sparse matrix [N, L], got {came}")
    if Y.ndim not in (1, 2):
        raise ValueError(f"{function}: {argument} must have 2 dimensions [N, L], got shape {Y.shape}")
    if Y.dtype.kind not in "biuf":
        raise TypeError(f"{function}: {argument} must hold booleans, integers or floats, got dtype {Y.dtype}")
    if isinstance(Y, np.ndarray) and Y.dtype.kind in "iu" and Y.max(initial=0) > 1:
        raise ValueError(
            f"{function}: {argument}, a dense matrix [N, L] of integers, must hold 0 and 1 (not label ids), "
            f"got {Y.max()}"
        )
    if scipy.sparse.issparse(Y):
        try:
            check_structure(Y)
        except ValueError as error:
            raise ValueError(f"{function}: {argument} is not a valid {Y.format} matrix: {error}") from error
    if Y.ndim == 2 and scipy.sparse.issparse(Y) and Y.format == "csr":
        return Y
    stored = scipy.sparse.coo_array(Y.astype(np.float32) if Y.dtype == np.float16 else Y)
    return stored if stored.ndim == 2 else stored.reshape(1, -1)


def _checked_predictions(function: str, predictions: npt.ArrayLike, shape: tuple[int, int]) -> _Ints:
    ids = _array(function, "predictions", predictions)
    if ids.dtype.kind not in "iu":
        came = f"{type(predictions).__name__} of dtype {ids.dtype}"
        raise TypeError(f"{function}: predictions must be integer label ids [N, K] in rank order, got {came}")
    if ids.ndim != 2 or len(ids) != shape[0]:
        raise ValueError(
            f"{function}: predictions must be [N, K] with one row for each of the {shape[0]} documents "
            f"of Y_true, got shape {ids.shape}"
        )
    wrong = (ids < -1) | (ids >= shape[1])
    if wrong.any():
        row, rank = np.argwhere(wrong)[0]
        raise ValueError(
            f"{function}: predictions must be label ids in [0, {shape[1]}), or -1 for none, "
            f"got {ids[row, rank]} in row {row}"
        )
    return ids


def _check_distinct(function: str, block: _Ints, first_row: int) -> None:
    ordered = np.sort(block, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != -1)
    if repeated.any():
        row, place = np.argwhere(repeated)[0]
        raise ValueError(
            f"{function}: predictions must not repeat a label within a row, "
            f"got label {ordered[row, place]} more than once in row {first_row + row}"
        )


def _checked_inverse_propensity(function: str, values: npt.ArrayLike, num_labels: int) -> _Floats:
    q = _array(function, "inverse_propensity", values)
    if q.dtype.kind not in "fiu":
        raise TypeError(f"{function}: inverse_propensity must be numbers [L], got dtype {q.dtype}")
    if q.shape != (num_labels,):
        raise ValueError(f"{function}: inverse_propensity must be [L] = [{num_labels}], got shape {q.shape}")
    valid = np.isfinite(q) & (q >= 1)
    if not valid.all():
        label = np.argmin(valid)
        raise ValueError(
            f"{function}: inverse_propensity must be finite and >= 1 (1/p, not p), "
            f"got {q[label]} for label {label}"
        )
    return q.astype(np.float64, copy=False)


def _checked_band(function: str, name: str, mask: npt.ArrayLike, num_labels: int) -> npt.NDArray[np.bool_]:
    band = _array(function, f"band {name!r}", mask)
    if band.dtype.kind != "b":
        raise TypeError(f"{function}: band {name!r} must be booleans [L], got dtype {band.dtype}")
    if band.shape != (num_labels,):
        raise ValueError(f"{function}: band {name!r} must be [L] = [{num_labels}], got shape {band.shape}")
    return band


def _measured_ks(
    function: str,
    ks: Iterable[int] | None,
    recall_ks: Iterable[int] | None,
    num_columns: int,
    num_labels: int,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The k to report: those asked for, or of the usual ones what the columns of predictions carry."""

    def carried(k: int) -> bool:
        return num_columns >= min(k, num_labels)

    def chosen(argument: str, asked: Iterable[int] | None, usual: tuple[int, ...]) -> tuple[int, ...]:
        if asked is None:
            return tuple(k for k in usual if carried(k))
        checked = _checked_ks(function, argument, asked)
        for k in checked:
            if not carried(k):
                raise ValueError(
                    f"{function}: {argument} must be at most K={num_columns}, the columns of predictions, "
                    f"got {k}; rows of fewer labels than that are filled up with -1"
                )
        return checked

    return chosen("ks", ks, KS), chosen("recall_ks", recall_ks, RECALL_KS)


def _checked_ks(function: str, argument: str, ks: Iterable[int]) -> tuple[int, ...]:
    if not isinstance(ks, Iterable):
        raise TypeError(f"{function}: {argument} must be a sequence of integers, got {ks!r}")
    return tuple(_checked_k(function, argument, k) for k in ks)


def _checked_k(function: str, argument: str, k: int, least: int = 1) -> int:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
        raise TypeError(f"{function}: {argument} must be an integer, got {k!r}")
    if k < least:
        raise ValueError(f"{function}: {argument} must be at least {least}, got {k}")
    return int(k)


def _array(function: str, argument: str, value: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors in device memory
        raise TypeError(f"{function}: {argument} can't be read as a NumPy array: {error}") from error


# ------------------------------------------------------------------------------------------------------------
# The same by document.


class ByDocument(NamedTuple):
    """Metrics of each document, [N, len(ks)] each: a column for each k.

    PSP@k of a set of documents is a ratio of two sums, so its two parts are kept apart.
    """

    ks: tuple[int, ...]
    precision: _Floats
    ndcg: _Floats
    gain: _Floats | None  # propensity-scored hits of PSP@k, None without inverse propensities
    best_gain: _Floats | None  # the largest gain that k predictions can reach

    @property
    def psp(self) -> _Floats | None:
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
    truth, hits = _ranked("by_document", Y_true, predictions)
    ks, _ = _measured_ks("by_document", ks, (), np.shape(predictions)[1], truth.shape[1])
    ones = np.ones(len(hits.rows))
    precision = [_sums_of_documents(hits, ones, k) / k for k in ks]
    ndcg = [_normalised_dcg(hits, ones, k) for k in ks]
    gain = best_gain = None
    if inverse_propensity is not None:
        q = _checked_inverse_propensity("by_document", inverse_propensity, truth.shape[1])
        best = _best(truth, q)
        gain = _columns([_sums_of_documents(hits, q[hits.labels], k) for k in ks], len(hits.sizes))
        best_gain = _columns([_sums_of_documents(best, q[best.labels], k) for k in ks], len(hits.sizes))
    N = len(hits.sizes)
    return ByDocument(ks, _columns(precision, N), _columns(ndcg, N), gain, best_gain)


def _sums_of_documents(ranked: _Ranked, gains: _Floats, k: int) -> _Floats:  # [N]
    top = ranked.ranks < k
    sums = np.bincount(ranked.rows[top], weights=gains[top], minlength=len(ranked.sizes))
    return np.asarray(sums, np.float64)


def _columns(parts: list[_Floats], num_documents: int) -> _Floats:  # [N, len(parts)]
    """Columns that lie in one piece each, so that their sums are those of the parts to the bit."""
    return np.stack(parts).T if parts else np.empty((num_documents, 0))
