"""Neighbors against dense arithmetic in float64: cosines, which ones are kept, shares, order, errors."""

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

import mach_ext
from mach_ext import neighbors


def matrices(seed, documents=30, queries=7, D=12, L=9):
    """X [documents, D], Y [documents, L], queries [., D]; empty rows, equal documents."""
    rng = np.random.default_rng(seed)

    def some(rows, columns):
        return rng.integers(1, 4, (rows, columns)) * (rng.random((rows, columns)) < 0.3)

    X, Y, Q = some(documents, D), some(documents, L) > 0, some(queries, D)
    X[1], X[2], Q[0] = X[0], 0, 0
    return tuple(scipy.sparse.csr_matrix(M.astype(np.float32)) for M in (X, Y, Q))


def dense_shares(X, Y, Q, n, power):
    """All labels' shares [queries, L] and the cosines [queries, documents], float64."""
    X, Q = (M.toarray().astype(np.float64) for M in (X, Q))
    X, Q = (M / np.maximum(np.linalg.norm(M, axis=1, keepdims=True), 1e-30) for M in (X, Q))
    cosines = np.round(Q @ X.T, 6)  # equal ones as equal
    shares = np.zeros((len(Q), Y.shape[1]))
    for i, row in enumerate(cosines):
        best = [j for j in np.argsort(-row, kind="stable")[:n] if row[j] > 0]
        weights = row[best] ** power
        if best:
            shares[i] = weights @ Y.toarray()[best] / weights.sum()
    return shares, cosines


@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([0.0, 1.0, 4.0]))
def test_shares_are_those_of_dense_arithmetic(seed, n, power):
    X, Y, Q = matrices(seed)
    labels = np.tile(np.arange(Y.shape[1]), (Q.shape[0], 1))
    asked = mach_ext.Neighbors(X, Y, n, power)
    shares = asked.shares(Q, labels)
    expected, cosines = dense_shares(X, Y, Q, n, power)
    assert shares.dtype == np.float32
    assert (shares[0] == 0).all()  # no features, no neighbours
    best = np.sort(cosines, axis=1)[:, ::-1][:, :n]
    kept = np.sort(asked.nearest(Q).toarray(), axis=1)[:, ::-1][:, :n]
    np.testing.assert_allclose(kept, best, atol=2e-6)
    if n >= X.shape[0]:  # else cosines that differ only by rounding may fall on either side of the cut
        np.testing.assert_allclose(shares, expected, atol=2e-5)


def test_the_nearest_are_kept_and_of_equal_ones_the_first():
    X = scipy.sparse.csr_matrix(np.array([[1, 0], [0, 1], [2, 0], [1, 1], [3, 0]], np.float32))
    near = mach_ext.Neighbors(X, scipy.sparse.csr_matrix(np.eye(5)), n=2).nearest(X[:1])
    assert near.indices.tolist() == [0, 2]  # 4 has the same cosine, 3 a smaller one, 1 none
    np.testing.assert_allclose(near.data, [1, 1])
    far = mach_ext.Neighbors(X, scipy.sparse.csr_matrix(np.eye(5)), n=4).nearest(X[:1])
    assert far.indices.tolist() == [0, 2, 3, 4]


def test_batches_make_no_difference(monkeypatch):
    X, Y, Q = matrices(3)
    asked = mach_ext.Neighbors(X, Y, n=5)
    whole = asked.nearest(Q).toarray()
    monkeypatch.setattr(neighbors, "_COSINES", 60)  # two documents at a time
    np.testing.assert_array_equal(asked.nearest(Q).toarray(), whole)


def test_the_default_weight_follows_from_the_merge():
    X, Y, Q = matrices(1)
    asked = mach_ext.Neighbors(X, Y, n=3)
    labels = np.tile(np.arange(4), (7, 1))
    scores = np.zeros((7, 4), np.float32)
    for merge, weight in neighbors.WEIGHTS.items():
        for a, b in zip(
            asked.rerank(Q, scores, labels, merge=merge), asked.rerank(Q, scores, labels, weight), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    assert neighbors.WEIGHTS["mean_logit"] == 4.0
    assert neighbors.WEIGHTS.keys() <= mach_ext.merges.MODEL_MERGES.keys()
    with pytest.raises(ValueError, match=r"merge must be one of .* if no weight is given, got 'min_prob'"):
        asked.rerank(Q, scores, labels, merge="min_prob")
    asked.rerank(Q, scores, labels, 1.0, merge="min_prob")


def test_rerank_adds_the_share_and_sorts():
    X, Y, Q = matrices(5)
    rng = np.random.default_rng(0)
    labels = np.stack([rng.permutation(Y.shape[1])[:6] for _ in range(Q.shape[0])])
    scores = -np.sort(rng.random(labels.shape).astype(np.float32))
    asked = mach_ext.Neighbors(X, Y, n=5)
    new_scores, new_labels = asked.rerank(Q, scores, labels, weight=3.0)
    expected = scores + np.float32(3) * asked.shares(Q, labels)
    for i in range(len(labels)):
        by_label = dict(zip(labels[i], expected[i], strict=True))
        order = sorted(by_label, key=lambda label: (-by_label[label], label))
        assert new_labels[i].tolist() == order
        np.testing.assert_array_equal(new_scores[i], [by_label[label] for label in order])
    same_scores, same_labels = asked.rerank(Q, scores, labels, weight=0.0)
    np.testing.assert_array_equal(same_scores, scores)
    np.testing.assert_array_equal(same_labels, labels)


def test_a_label_that_is_none_has_no_share():
    X, Y, _ = matrices(1)
    shares = mach_ext.Neighbors(X, Y).shares(X[:1], np.array([[-1, Y.shape[1], Y.indices[0]]]))
    assert shares[0, :2].tolist() == [0, 0]


def test_no_documents_and_no_candidates():
    X, Y, Q = matrices(1)
    asked = mach_ext.Neighbors(X, Y)
    assert asked.nearest(Q[:0]).shape == (0, X.shape[0])
    scores, labels = asked.rerank(Q[:0], np.empty((0, 4), np.float32), np.empty((0, 4), np.int64))
    assert scores.shape == labels.shape == (0, 4)
    scores, labels = asked.rerank(Q, np.empty((7, 0), np.float32), np.empty((7, 0), np.int64))
    assert scores.shape == labels.shape == (7, 0)
    none = mach_ext.Neighbors(X[:0], Y[:0])
    assert (none.shares(Q, np.zeros((7, 3), np.int64)) == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Y": "short"}, r"as many rows, got 30 and 29"),
        ({"n": 0}, r"n must be at least 1, got 0"),
        ({"power": -1.0}, r"power must be finite \(float32\) and not negative, got -1"),
        ({"power": float("nan")}, r"power must be finite \(float32\) and not negative, got nan"),
    ],
)
def test_bad_neighbors(change, message):
    X, Y, _ = matrices(1)
    given = {"X": X, "Y": Y, **change}
    if change.get("Y") == "short":
        given["Y"] = Y[:29]
    with pytest.raises(ValueError, match=message):
        mach_ext.Neighbors(**given)


def test_a_large_power_leaves_the_nearest():
    """The powers themselves are beyond any float, 0 for all but the nearest."""
    X = scipy.sparse.csr_matrix(np.array([[1, 100, 0], [1, 50, 1], [0, 1, 1]], np.float32))
    asked = mach_ext.Neighbors(X, scipy.sparse.csr_matrix(np.eye(3)), power=1e4)
    query = scipy.sparse.csr_matrix(np.array([[1, 0, 0]], np.float32))
    np.testing.assert_array_equal(asked.shares(query, np.array([[0, 1, 2]])), [[0, 1, 0]])


def test_bad_requests():
    X, Y, Q = matrices(1)
    asked = mach_ext.Neighbors(X, Y)
    scores, labels = np.zeros((7, 3), np.float32), np.zeros((7, 3), np.int64)
    with pytest.raises(TypeError, match=r"SciPy sparse matrix, .*, got list"):
        asked.rerank(Q.toarray().tolist(), scores, labels)
    with pytest.raises(ValueError, match=r"must have D=12 columns, got shape \(7, 11\)"):
        asked.rerank(Q[:, :11], scores, labels)
    with pytest.raises(ValueError, match=r"one shape, got \(7, 3\) and \(7, 2\)"):
        asked.rerank(Q, scores, labels[:, :2])
    with pytest.raises(ValueError, match=r"labels must be \[6, k\], got shape \(7, 3\)"):
        asked.rerank(Q[:6], scores, labels)
    with pytest.raises(TypeError, match="labels must be integers, got dtype float64"):
        asked.rerank(Q, scores, labels.astype(float))
    with pytest.raises(TypeError, match="weight must be a number, got str"):
        asked.rerank(Q, scores, labels, weight="1")
    with pytest.raises(ValueError, match=r"weight must be finite .* got 1e"):
        asked.rerank(Q, scores, labels, weight=1e300)
    with pytest.raises(ValueError, match=r"weight must be finite \(float32\) and not negative, got inf"):
        asked.rerank(Q, scores, labels, weight=float("inf"))
