"""Neighbors with dense features, against arithmetic in float64."""

import numpy as np
import pytest
import scipy.sparse

import mach_ext
from mach_ext.data import HybridMatrix, row_lengths

N, Q, D, E, L = 40, 9, 12, 5, 7


def documents(seed=0, dtype=np.float32, offset=3.0):
    """Training documents, labels and queries. Some rows lack the one part, or the other, or both."""
    rng = np.random.default_rng(seed)

    def some(rows):
        sparse = rng.integers(1, 4, (rows, D)) * (rng.random((rows, D)) < 0.3)
        sparse[[0, 3]] = 0
        dense = (offset + rng.normal(size=(rows, E))).astype(dtype)
        return sparse, dense

    (sparse, dense), (asked, asked_dense) = some(N), some(Q)
    asked[1], asked_dense[1] = sparse[5], dense[5]
    Y = scipy.sparse.csr_matrix((rng.random((N, L)) < 0.3).astype(np.float32))
    return HybridMatrix(sparse, dense), Y, HybridMatrix(asked, asked_dense)


def exact_cosines(X, asked, weight):
    """Cosines [queries, N] in float64, by the definition."""
    center = X.dense.astype(np.float64).mean(0)

    def unit(matrix):
        return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-300)

    def rows(matrix):
        parts = unit(matrix.sparse.toarray().astype(np.float64)), unit(matrix.dense - center)
        return unit(np.hstack([parts[0], weight * parts[1]]))

    return rows(asked) @ rows(X).T


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 6, N])
def test_nearest_and_shares_against_float64(weight, dtype, n):
    X, Y, asked = documents(1, dtype)
    near = mach_ext.Neighbors(X, Y, n=n, power=2.0, dense_weight=weight)
    expected = exact_cosines(X, asked, weight)
    found = near.nearest(asked)
    assert found.shape == (Q, N)
    assert found.has_sorted_indices
    for row in range(Q):
        best = np.sort(expected[row][expected[row] > 1e-6])[::-1][:n]
        np.testing.assert_allclose(np.sort(found[row].data)[::-1][: len(best)], best, atol=3e-6)
        np.testing.assert_allclose(found[row].data, expected[row][found[row].indices], atol=3e-6)
    labels = np.tile(np.arange(L), (Q, 1))
    weights = found.astype(np.float64).power(2)
    total = np.maximum(np.asarray(weights.sum(1)), 1e-300)
    np.testing.assert_allclose(near.shares(asked, labels), (weights @ Y).toarray() / total, atol=1e-5)


def test_a_training_document_finds_itself_and_both_parts_count_alike():
    X, Y, asked = documents()
    found = mach_ext.Neighbors(X, Y, n=1).nearest(asked)
    assert found[1].indices.tolist() == [5]
    assert found[1].data[0] == pytest.approx(1, abs=1e-6)
    both = exact_cosines(X, asked, 1.0)[4, 10]
    alone = [exact_cosines(X, asked, weight)[4, 10] for weight in (0.0, 1e9)]
    assert both == pytest.approx(sum(alone) / 2)


def test_weight_0_ranks_as_the_sparse_part_alone():
    X, Y, asked = documents()
    plain = mach_ext.Neighbors(X.sparse, Y).nearest(asked.sparse).toarray()
    hybrid = mach_ext.Neighbors(X, Y, dense_weight=0).nearest(asked).toarray()
    np.testing.assert_allclose(hybrid, plain, atol=1e-6)


def test_pieces_and_files_make_no_difference(monkeypatch, tmp_path):
    X, Y, asked = documents()
    whole = mach_ext.Neighbors(X, Y, n=5)
    expected = whole.nearest(asked).toarray()
    np.save(tmp_path / "dense.npy", X.dense)
    mapped = HybridMatrix(X.sparse, np.load(tmp_path / "dense.npy", mmap_mode="r"))
    monkeypatch.setattr("mach_ext.neighbors._COSINES", 2 * N)  # two documents at a time
    monkeypatch.setattr("mach_ext.data.hybrid._BLOCK", 3 * E)
    np.testing.assert_allclose(
        mach_ext.Neighbors(mapped, Y, n=5).nearest(asked).toarray(), expected, atol=1e-6
    )
    assert whole.nearest(asked[:0]).shape == (0, N)


def test_equal_documents_and_a_large_offset():
    """Documents around a far point differ by their distance from their mean, not by the common direction."""
    X, Y, asked = documents(2, np.float64, offset=1000.0)
    found = mach_ext.Neighbors(X, Y, n=N).nearest(asked)
    near = HybridMatrix(X.sparse, X.dense - 1000), HybridMatrix(asked.sparse, asked.dense - 1000)
    expected = exact_cosines(*near, 1.0)
    np.testing.assert_allclose(found.data, expected[found.nonzero()], atol=1e-3)  # 1000 + x is float32
    same = HybridMatrix(scipy.sparse.csr_matrix((4, D)), np.ones((4, E)))
    assert mach_ext.Neighbors(same, Y[:4]).nearest(same).nnz == 0  # nothing tells them apart


def test_rerank_with_a_model():
    X, Y, asked = documents()
    model = mach_ext.MACH(D, L, num_repetitions=4, num_buckets=5, hidden_size=3, num_dense=E)
    model.scale_dense(X.dense)
    scores, labels = model.predict(asked, L)
    near = mach_ext.Neighbors(X, Y)
    ranked, order = near.rerank(asked, scores, labels, weight=2.0)
    expected = scores + 2 * near.shares(asked, labels)
    np.testing.assert_allclose(ranked, -np.sort(-expected, axis=1), atol=1e-5)
    assert (np.sort(order, axis=1) == np.arange(L)).all()


def test_documents_of_another_kind_are_refused():
    X, Y, asked = documents()
    hybrid, plain = mach_ext.Neighbors(X, Y), mach_ext.Neighbors(X.sparse, Y)
    with pytest.raises(
        TypeError, match=r"Neighbors.nearest: X must be a mach_ext.data.HybridMatrix, because"
    ):
        hybrid.nearest(asked.sparse)
    with pytest.raises(TypeError, match=r"Neighbors.shares: X must be a matrix, because the training"):
        plain.shares(asked, np.zeros((Q, 1), int))
    with pytest.raises(ValueError, match="must have D=12 sparse and E=5 dense features, got 12 and 4"):
        hybrid.nearest(HybridMatrix(asked.sparse, asked.dense[:, 1:]))
    for weight in (-1, np.inf, np.nan):
        with pytest.raises(ValueError, match="Neighbors: dense_weight must be finite"):
            mach_ext.Neighbors(X, Y, dense_weight=weight)
    with pytest.raises(ValueError, match="X and Y must have as many rows, got 40 and 39"):
        mach_ext.Neighbors(X, Y[1:])


def test_the_memory_of_the_dense_part_is_counted(monkeypatch):
    X, Y, _ = documents()
    needed = []
    monkeypatch.setattr("mach_ext.neighbors.check_memory", lambda what, count, *_, **__: needed.append(count))
    mach_ext.Neighbors(X, Y)
    mach_ext.Neighbors(X.sparse, Y)
    assert needed[0] - needed[1] == 4 * N * E


def test_numbers_near_the_end_of_float32():
    dense = np.array([[3e38, -3e38], [-3e38, 3e38], [1e38, 0.0]])
    X = HybridMatrix(scipy.sparse.csr_matrix((3, 2)), dense)
    found = mach_ext.Neighbors(X, scipy.sparse.eye(3)).nearest(X).toarray()
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.diagonal(), 1, atol=1e-6)
    assert (row_lengths(X.sparse) == 0).all()
