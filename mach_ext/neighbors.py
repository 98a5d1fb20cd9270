"""Re-ranking by the nearest training documents.

MACH adds up evidence feature by feature. A near copy of a training document says more than its features do
one by one. So do the few documents of a rare label. `Neighbors` keeps the training documents. To MACH's score
of a candidate label it adds the share of the nearest documents that have the label.

Each document costs a sparse product with all training documents. This takes milliseconds for 10^5 training
documents and a tenth of a second for 10^6. Dense features, such as embeddings, add a dense product.
docs/results/accuracy.md shows what re-ranking gains.

Example:
    >>> import numpy as np, scipy.sparse
    >>> from mach_ext.neighbors import Neighbors
    >>> X = scipy.sparse.csr_matrix(np.array([[1, 0], [1, 1], [0, 1]], np.float32))
    >>> Neighbors(X, scipy.sparse.eye(3), n=1).nearest(X[:1]).indices  # itself
    array([0], dtype=int32)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from mach_ext._memory import check_memory, memory_errors
from mach_ext.data import HybridMatrix, check_columns, check_csr, check_labels, row_lengths
from mach_ext.data.hybrid import mean_row, row_blocks
from mach_ext.data.matrices import Csr, unit_rows
from mach_ext.functional import as_int

__all__ = ["Neighbors"]

# The weight of the shares for each `MACH.merge` that has one. For mean log probabilities it was chosen with
# SVMs on dev: P@1 rises from 50.45 to 50.85 on 25,000 documents of wordnet, and falls from 82.15 to 81.95 on
# 10,000 of EURLEX57K. A weight of 4 costs 1.8 points on both.
WEIGHTS = {"mean_logit": 4.0, "mean_logprob": 0.5}
_COSINES = 1 << 24  # A matrix of cosines [documents, N] has at most so many entries: 192 MB.


class Neighbors:
    """The training documents, which `nearest` searches for the documents nearest to another by cosine.

    The object keeps Y and a transposed copy of X with rows of unit length. This takes 8 bytes for each
    non-zero of each, and 4 bytes for each dense feature.

    With dense features, both parts of a row are scaled to unit length. The mean of the training documents is
    first subtracted from the dense part, because embeddings of all documents point in about one direction.
    With both parts, the cosine is a mean: (cosine of the sparse parts + `dense_weight`^2 * cosine of the
    dense parts) / (1 + `dense_weight`^2).

    Args:
        X: Training documents [N, D], a SciPy, NumPy or torch matrix, or a `mach_ext.data.HybridMatrix`. The
            documents of the other methods then are one, too.
        Y: Their labels [N, L], a SciPy, NumPy or torch matrix.
        n: How many neighbours count.
        power: The weight of a neighbour is its cosine to this power. A larger power favours the nearest
            neighbours.
        dense_weight: The length of the dense part of a row. The sparse part has length 1.

    Raises:
        TypeError: A matrix or a number has a wrong type.
        ValueError: A matrix is not valid, X and Y differ in their rows, or `n` is below 1. `power` or
            `dense_weight` is negative or not finite.

    Example:
        >>> import numpy as np, scipy.sparse, mach_ext
        >>> Y = scipy.sparse.csr_matrix(np.eye(20)[np.arange(200) % 20])
        >>> X = scipy.sparse.csr_matrix(Y, dtype=np.float32)
        >>> model = mach_ext.MACH(20, 20, num_repetitions=8, num_buckets=10, hidden_size=32)
        >>> scores, labels = model.predict(X[:3], k=20)
        >>> scores, labels = mach_ext.Neighbors(X, Y).rerank(X[:3], scores, labels, weight=100.0)
        >>> labels[:, 0]
        array([0, 1, 2])
    """

    @memory_errors("pass fewer training documents")
    def __init__(self, X: Any, Y: Any, n: int = 50, power: float = 6.0, dense_weight: float = 1.0) -> None:
        X = X if isinstance(X, HybridMatrix) else check_csr(X, "Neighbors: X")
        Y = check_labels(Y, "Neighbors: Y", allow_weights=False)
        if X.shape[0] != Y.shape[0]:
            raise ValueError(f"Neighbors: X and Y must have as many rows, got {X.shape[0]} and {Y.shape[0]}")
        self.n, self.power = as_int("Neighbors", "n", n), _not_negative("Neighbors: power", power)
        if self.n < 1:
            raise ValueError(f"Neighbors: n must be at least 1, got {n}")
        self._dense_weight = _not_negative("Neighbors: dense_weight", dense_weight)
        sparse = X.sparse if isinstance(X, HybridMatrix) else X
        # While the copy of X is made, its rows and their lengths are held as float64.
        needed, (N, D) = 16 * sparse.nnz + 4 * sparse.shape[1] + 4 * Y.nnz, X.shape
        needed += 4 * X.dense.size if isinstance(X, HybridMatrix) else 0
        check_memory("Neighbors: copies of X and Y", needed, "pass fewer documents", N=N, D=D)
        self._center: NDArray[np.float32] | None = None  # [E], if there are dense features
        if isinstance(X, HybridMatrix):
            self._center = mean_row(X.dense)
            sparse, self._dense = self._unit_parts(X)  # [N, D], [N, E]
        else:
            sparse = unit_rows(X)
        self._documents = sparse.T.tocsr()  # [D, N], so that a document needs only its features' rows
        self._labels = Y.astype(np.float32)

    @memory_errors("pass fewer documents at a time")
    def nearest(self, X: Any) -> Csr:
        """Return the cosines of the n nearest training documents.

        Only cosines above 0 count. Of equal cosines, that of the earlier training document is taken.

        Args:
            X: Documents [documents, D], a SciPy, NumPy or torch matrix, or a `mach_ext.data.HybridMatrix`.

        Returns:
            A CSR matrix [documents, N].

        Raises:
            TypeError: `X` is not a matrix, or the training documents have dense features and `X` has none.
            ValueError: `X` is not valid or does not have the features of the training documents.

        Example:
            >>> import numpy as np, scipy.sparse, mach_ext
            >>> X = scipy.sparse.csr_matrix(np.array([[1, 0], [1, 1], [0, 1]], np.float32))
            >>> near = mach_ext.Neighbors(X, X, n=2).nearest(X[:1])
            >>> near.toarray().round(4)
            array([[1.    , 0.7071, 0.    ]], dtype=float32)
        """
        N = self._documents.shape[1]
        X = self._checked("Neighbors.nearest: X", X)
        pieces = [self._nearest(X[piece]) for piece in self._pieces(X.shape[0])]
        return scipy.sparse.vstack([scipy.sparse.csr_matrix((0, N), dtype=np.float32), *pieces], format="csr")

    def _pieces(self, documents: int) -> Iterator[slice]:
        at_a_time = max(1, min(128, _COSINES // max(self._documents.shape[1], 1)))
        return (slice(start, start + at_a_time) for start in range(0, documents, at_a_time))

    def _checked(self, what: str, X: Any) -> Csr | HybridMatrix:
        """Return documents after a check that they have the features of the training documents."""
        D = self._documents.shape[0]
        if self._center is None:
            if isinstance(X, HybridMatrix):
                raise TypeError(f"{what} must be a matrix, because the training documents are one, got {X!r}")
            return check_columns(X, what, D)
        E = len(self._center)
        if not isinstance(X, HybridMatrix):
            raise TypeError(
                f"{what} must be a mach_ext.data.HybridMatrix, because the training documents are one, "
                f"got {type(X).__name__}"
            )
        if (X.num_features, X.num_dense) != (D, E):
            raise ValueError(
                f"{what} must have D={D} sparse and E={E} dense features, "
                f"got {X.num_features} and {X.num_dense}"
            )
        return X

    def _unit_parts(self, X: HybridMatrix) -> tuple[Csr, NDArray[np.float32]]:
        """Return sparse parts [., D] and dense parts [., E] that are rows of length 1 together."""
        assert self._center is not None
        center, weight = self._center, self._dense_weight
        sparse, dense = unit_rows(X.sparse), np.empty(X.dense.shape, np.float32)
        has_words = row_lengths(X.sparse) > 0
        shares = np.ones(len(X), np.float32)
        for rows in row_blocks(X.dense):
            exact = np.asarray(X.dense[rows], np.float32).astype(np.float64) - center
            lengths = np.sqrt((exact**2).sum(1))
            whole = np.hypot(has_words[rows], weight * (lengths > 0))
            whole[whole == 0] = lengths[lengths == 0] = 1
            dense[rows] = exact * (weight / (lengths * whole))[:, None]
            shares[rows] = 1 / whole
        sparse.data *= np.repeat(shares, np.diff(sparse.indptr))
        return sparse, dense

    def _nearest(self, X: Csr | HybridMatrix) -> Csr:
        sparse, dense = self._unit_parts(X) if isinstance(X, HybridMatrix) else (unit_rows(X), None)
        cosines = (sparse @ self._documents).tocsr()
        if dense is not None:
            summed = dense @ self._dense.T  # [documents, N], by BLAS
            rows = np.repeat(np.arange(len(dense)), np.diff(cosines.indptr))
            summed[rows, cosines.indices] += cosines.data
            return _kept([(np.arange(row.size), row) for row in summed], self.n, summed.shape)
        cosines.sort_indices()
        ends = zip(cosines.indptr[:-1], cosines.indptr[1:], strict=True)
        found = [(cosines.indices[first:last], cosines.data[first:last]) for first, last in ends]
        return _kept(found, self.n, cosines.shape)

    @memory_errors("pass fewer documents at a time")
    def shares(self, X: Any, labels: Any) -> NDArray[np.float32]:
        """Return the share of the neighbours' weight that each of the given labels has.

        The share is 0 for labels out of range, such as -1 for "none". It is also 0 for documents without
        neighbours.

        Args:
            X: As in `nearest`.
            labels: [documents, k] integers.

        Returns:
            [documents, k], each in [0, 1].

        Raises:
            TypeError: As in `nearest`, or the labels are not integers.
            ValueError: As in `nearest`, or the labels are not [documents, k].

        Example:
            >>> import numpy as np, scipy.sparse, mach_ext
            >>> X = scipy.sparse.csr_matrix(np.array([[1, 0], [1, 1], [0, 1]], np.float32))
            >>> Y = scipy.sparse.csr_matrix(np.eye(3))
            >>> mach_ext.Neighbors(X, Y, n=2, power=2).shares(X[:1], [[0, 1, 2]]).round(4)
            array([[0.6667, 0.3333, 0.    ]], dtype=float32)
        """
        X = self._checked("Neighbors.shares: X", X)
        labels = np.asarray(labels)
        if labels.dtype.kind not in "iu":
            raise TypeError(f"Neighbors.shares: labels must be integers, got dtype {labels.dtype}")
        if labels.ndim != 2 or labels.shape[0] != X.shape[0]:
            raise ValueError(f"Neighbors.shares: labels must be [{X.shape[0]}, k], got shape {labels.shape}")
        shares = np.empty(labels.shape, np.float32)
        for piece in self._pieces(X.shape[0]):
            shares[piece] = self._shares(self._nearest(X[piece]), labels[piece].astype(np.int64))
        return shares

    def _shares(self, near: Csr, labels: NDArray[np.int64]) -> NDArray[np.float64]:
        weights = near.astype(np.float64)
        counts = np.diff(weights.indptr)
        starts = weights.indptr[:-1][counts > 0]
        largest = np.maximum.reduceat(weights.data, starts) if weights.nnz else np.zeros(0)
        # Cosines are divided by the largest of their document first. Their powers then sum to at least 1,
        # even if the power turns small cosines into 0.
        weights.data = (weights.data / np.repeat(largest, counts[counts > 0])) ** self.power
        weights.data /= np.repeat(np.asarray(weights.sum(1)).ravel(), counts)
        held = (weights @ self._labels).tocsr()
        held.sort_indices()
        # A label of a document becomes a single number, ascending in `held`, so that one search finds all.
        L = held.shape[1]
        rows = np.repeat(np.arange(held.shape[0], dtype=np.int64), np.diff(held.indptr))
        known = np.append(rows * L + held.indices, -1)  # A search beyond the end finds the last entry, -1.
        valid = (labels >= 0) & (labels < L)
        asked = np.where(valid, labels, 0) + np.arange(len(labels), dtype=np.int64)[:, None] * L
        place = np.searchsorted(known[:-1], asked)
        is_held = (known[place] == asked) & valid
        return np.where(is_held, np.append(held.data, 0.0)[place], 0.0)

    @memory_errors("pass fewer documents at a time")
    def rerank(
        self,
        X: Any,
        scores: Any,
        labels: Any,
        weight: float | None = None,
        merge: str = "mean_logit",
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Sort candidates by score + weight * share.

        Let MACH predict more candidates than you need, such as 200. Re-rank them, and take the first ones.

        Args:
            X: The documents, as in `nearest`.
            scores: [N, k], as `MACH.predict` returns them.
            labels: [N, k], as `MACH.predict` returns them.
            weight: In units of the scores. 0 leaves the order as it is. None is that of `WEIGHTS` for the
                merge.
            merge: `MACH.merge` of the model that gave the scores. It matters only for the weight None.

        Returns:
            Scores [N, k] float32 and labels [N, k] int64, best first. Of equal scores, the smaller label
            comes first.

        Raises:
            TypeError: As in `nearest`, or an argument has a wrong type.
            ValueError: As in `nearest`, shapes do not fit, or the weight is negative or not finite. Or no
                weight is given, and there is none for the merge.

        Example:
            >>> import numpy as np, scipy.sparse, mach_ext
            >>> X = scipy.sparse.csr_matrix(np.array([[1, 0], [1, 1], [0, 1]], np.float32))
            >>> Y = scipy.sparse.csr_matrix(np.eye(3))
            >>> neighbors = mach_ext.Neighbors(X, Y, n=2, power=2)
            >>> scores, labels = neighbors.rerank(X[:1], [[2.0, 1.0, 0.0]], [[2, 1, 0]], weight=9.0)
            >>> scores.round(4), labels
            (array([[6., 4., 2.]], dtype=float32), array([[0, 1, 2]]))
        """
        scores, labels = np.asarray(scores), np.asarray(labels)
        if scores.shape != labels.shape:
            raise ValueError(
                "Neighbors.rerank: scores and labels must have one shape, got "
                f"{scores.shape} and {labels.shape}"
            )
        if weight is None:
            if merge not in WEIGHTS:
                raise ValueError(
                    f"Neighbors.rerank: merge must be one of {', '.join(WEIGHTS)} if no weight is given, "
                    f"got {merge!r}"
                )
            weight = WEIGHTS[merge]
        weight = _not_negative("Neighbors.rerank: weight", weight)
        advice, (N, k) = "pass fewer documents or candidates", np.atleast_2d(labels).shape[:2]
        check_memory("Neighbors.rerank: scores and labels", 28 * labels.size, advice, N=N, k=k)
        scores = (scores + np.float32(weight) * self.shares(X, labels)).astype(np.float32)
        order = np.lexsort((labels, -scores), axis=1)
        return np.take_along_axis(scores, order, 1), np.take_along_axis(labels, order, 1).astype(np.int64)


def _kept(
    found: list[tuple[NDArray[np.integer[Any]], NDArray[np.float32]]], n: int, shape: tuple[int, int]
) -> Csr:
    """Return the n largest cosines of each row, given columns in ascending order and their cosines."""
    data: list[NDArray[Any]] = [np.zeros(0, np.float32)]
    indices: list[NDArray[Any]] = [np.zeros(0, np.int64)]
    counts = [0]
    for columns, row in found:
        best = np.flatnonzero(row > 0)
        if best.size > n:
            least = np.partition(row[best], best.size - n)[best.size - n]
            above, equal = np.flatnonzero(row > least), np.flatnonzero(row == least)
            best = np.sort(np.concatenate((above, equal[: n - above.size])))
        data.append(row[best])
        indices.append(columns[best])
        counts.append(best.size)
    return scipy.sparse.csr_matrix((np.concatenate(data), np.concatenate(indices), np.cumsum(counts)), shape)


def _not_negative(name: str, value: Any) -> float:
    """Check a number from 0 to the largest float32."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value <= float(np.finfo(np.float32).max):
        raise ValueError(f"{name} must be finite (float32) and not negative, got {value}")
    return float(value)
