"""HybridMatrix: what it takes, what it refuses, and how its rows are joined."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from mach_ext.data import Dataset, HybridMatrix, Split, check_dense, hold_out, row_features

N, D, E = 7, 9, 3
rng = np.random.default_rng(0)
SPARSE = scipy.sparse.random(N, D, 0.4, "csr", np.float32, rng=np.random.default_rng(1))
DENSE = rng.normal(size=(N, E)).astype(np.float32)


def hybrid(dense=DENSE):
    return HybridMatrix(SPARSE, dense)


def mapped(folder, dense, mode="r"):
    np.save(folder / "dense.npy", dense)
    return np.load(folder / "dense.npy", mmap_mode=mode)


# -------------------------------------------------------------------------------------- what it takes


@pytest.mark.parametrize(
    "dense",
    [
        DENSE,
        DENSE.astype(np.float16),
        DENSE.astype(np.float64),
        DENSE.astype(">f4"),
        np.arange(N * E, dtype=np.int64).reshape(N, E),
        np.arange(N * E, dtype=np.uint8).reshape(N, E),
        DENSE > 0,
        np.asfortranarray(DENSE),
        np.ascontiguousarray(DENSE[::-1])[::-1],
        DENSE.view(np.matrix),
        torch.from_numpy(DENSE),
        torch.from_numpy(DENSE).double().requires_grad_(),
        torch.from_numpy(DENSE).half(),
        torch.from_numpy(DENSE).bfloat16(),
        torch._neg_view(torch.from_numpy(DENSE)),
        torch.from_numpy(DENSE.T.copy()).T,
        pd.DataFrame(DENSE, columns=["a", "b", "c"]),
    ],
    ids=lambda dense: f"{type(dense).__name__}-{getattr(dense, 'dtype', '')}",
)
def test_each_kind_of_dense_matrix_joins_as_its_float32_numbers(dense):
    if isinstance(dense, torch.Tensor):
        expected = dense.detach().double().resolve_neg().numpy()
    else:
        expected = np.asarray(dense, np.float64)
    X = hybrid(dense)
    assert X.shape == (N, D + E)
    assert type(X.dense) is np.ndarray
    joined = X.join()
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined.toarray()[:, D:], expected.astype(np.float32))
    np.testing.assert_array_equal(joined.toarray()[:, :D], SPARSE.toarray())


def test_the_dense_part_is_not_copied_and_not_changed(tmp_path):
    dense = DENSE.copy()
    X = hybrid(dense)
    assert X.dense is dense
    X.join(np.ones(E), 2.0), X[1:3], X[[0, -1]], row_features(X)
    np.testing.assert_array_equal(dense, DENSE)
    file = mapped(tmp_path, DENSE)
    X = hybrid(file)
    assert isinstance(X.dense, np.memmap)
    assert not X.dense.flags.writeable
    assert isinstance(X[2:5].dense.base, np.memmap)  # a slice reads nothing
    assert (X.join(np.ones(E), 2.0) != hybrid().join(np.ones(E), 2.0)).nnz == 0


def test_float16_on_disk_joins_as_in_memory(tmp_path):
    half = DENSE.astype(np.float16)
    assert (hybrid(mapped(tmp_path, half)).join() != hybrid(half.astype(np.float32)).join()).nnz == 0


def test_no_documents_and_a_single_dense_feature():
    X = HybridMatrix(scipy.sparse.csr_matrix((0, D)), np.zeros((0, 1)))
    assert (X.shape, len(X), X.nnz, X.join().shape, list(X)) == ((0, D + 1), 0, 0, (0, D + 1), [])
    assert row_features(X).tolist() == []
    one = HybridMatrix(scipy.sparse.csr_matrix((2, D)), np.array([[0.0], [5.0]]))
    assert one.join().toarray()[:, D].tolist() == [0.0, 5.0]
    assert one.join().nnz == 2  # a zero is stored


def test_copies_pickles_and_repr(tmp_path):
    X = hybrid(mapped(tmp_path, DENSE))
    for other in (copy.copy(X), copy.deepcopy(X), pickle.loads(pickle.dumps(X))):
        assert isinstance(other, HybridMatrix)
        assert (other.join() != X.join()).nnz == 0
    assert repr(X) == (
        f"HybridMatrix(7 documents, 9 sparse features with {SPARSE.nnz} non-zeros, "
        "3 dense features of dtype float32)"
    )


def test_row_features_count_numbers_that_are_not_zero():
    sparse = scipy.sparse.csr_matrix(([1.0, 0.0], [0, 1], [0, 2, 2]), (2, 4))  # with a stored zero
    dense = np.array([[0.0, 2.0], [0.0, 0.0]])
    X = HybridMatrix(sparse, dense)
    assert row_features(X).tolist() == [2, 0]
    assert Split(sparse, sparse, dense=dense).without_features == 1


# --------------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("dense", "kind", "message"),
    [
        (DENSE[:-1], ValueError, "sparse and dense must have as many rows, got 7 and 6"),
        (DENSE[0], ValueError, r"dense: must have shape \[N, E\] with E at least 1, got shape \(3,\)"),
        (DENSE[:, :0], ValueError, r"with E at least 1, got shape \(7, 0\)"),
        (DENSE[None], ValueError, r"got shape \(1, 7, 3\)"),
        (SPARSE, TypeError, "dense: must be a NumPy array or a dense tensor, got csr_matrix"),
        (torch.from_numpy(DENSE).to_sparse(), TypeError, "dense tensor, got one of layout sparse_coo"),
        (DENSE.tolist(), TypeError, "dense: must be a NumPy array or a dense tensor, got list"),
        (None, TypeError, "got NoneType"),
        (np.ma.masked_array(DENSE, DENSE > 0), TypeError, "without a mask"),
        (DENSE.astype(str), TypeError, "must hold real numbers, got dtype <U32"),
        (DENSE.astype(object), TypeError, "must hold real numbers, got dtype object"),
        (DENSE + 1j, TypeError, "must hold real numbers, got dtype complex64"),
        (torch.from_numpy(DENSE) + 1j, TypeError, "must hold real numbers, got dtype torch.complex64"),
        (np.full((N, E), np.datetime64("2020")), TypeError, "must hold real numbers, got dtype datetime64"),
    ],
)
def test_other_things_are_refused_in_words(dense, kind, message):
    with pytest.raises(kind, match=message):
        hybrid(dense)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e39])
def test_numbers_that_are_not_finite_name_their_row(number, tmp_path):
    dense = DENSE.astype(np.float64)
    dense[4, 1] = number
    for given in (dense, mapped(tmp_path, dense), np.asfortranarray(dense), torch.from_numpy(dense)):
        with pytest.raises(ValueError, match="HybridMatrix: dense, row 4: numbers must be finite and fit"):
            hybrid(given)
    if number != 1e39:
        with pytest.raises(ValueError, match="dense, row 4"):
            hybrid(dense.astype(np.float16))


def test_the_row_is_right_beyond_the_first_block(monkeypatch):
    monkeypatch.setattr("mach_ext.data.hybrid._BLOCK", 2 * E)
    dense = DENSE.copy()
    dense[5, 2] = np.nan
    with pytest.raises(ValueError, match="dense, row 5"):
        check_dense(dense)
    assert row_features(hybrid()).tolist() == (np.diff(SPARSE.indptr) + E).tolist()


def test_the_sparse_part_is_checked_too():
    broken = SPARSE.copy()
    broken.data[0] = np.nan
    with pytest.raises(ValueError, match="HybridMatrix: sparse, row 0"):
        HybridMatrix(broken, DENSE)
    assert HybridMatrix(SPARSE.toarray(), DENSE).sparse.nnz == SPARSE.nnz  # a dense array is taken
    shuffled = scipy.sparse.csr_matrix(([1.0, 2.0, 4.0], [3, 0, 3], [0, 3]), (1, D))
    X = HybridMatrix(shuffled, DENSE[:1])
    assert X.sparse.indices.tolist() == [0, 3]
    assert X.sparse.data.tolist() == [2.0, 5.0]


def test_numbers_that_overflow_when_they_are_joined():
    dense = np.array([[1.0], [-3e38], [2.0]])
    X = HybridMatrix(scipy.sparse.csr_matrix((3, 2)), dense)
    with pytest.raises(ValueError, match="row 1: centred and scaled numbers must fit float32"):
        X.join(np.array([3e38]), 1.0)
    with pytest.raises(ValueError, match="row 1"):
        X.join(None, 10.0)
    dense[2] = np.nan  # changed behind the matrix's back
    with pytest.raises(ValueError, match="row 2"):
        X.join()


# --------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(
    "rows",
    [
        slice(None), slice(2, 5), slice(None, None, -2), slice(5, 2), slice(0, 100), 0, 3, -1, -2,
        np.int64(6), [0, 2, 2], [-1, 0], [], np.array([], np.int64), np.array([6, 1], np.int32), np.array(4),
        [True, False, True, False, False, False, True], np.zeros(N, bool), np.ones(N, bool),
        torch.tensor([1, 5]),
    ],
    ids=str,
)  # fmt: skip
def test_rows_are_those_of_a_matrix(rows, on_disk, tmp_path):
    X = hybrid(mapped(tmp_path, DENSE) if on_disk else DENSE)
    at = np.asarray(rows) if not isinstance(rows, slice) else rows
    at = at.astype(np.int64) if not isinstance(at, slice) and at.size == 0 else at
    expected = hybrid().join().toarray()[at].reshape(-1, D + E)
    assert isinstance(X[rows], HybridMatrix)
    np.testing.assert_array_equal(X[rows].join().toarray(), expected)
    assert X[rows].join().has_sorted_indices


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        (N, IndexError), (-N - 1, IndexError), ([0, N], IndexError), ([True, False], IndexError),
        (True, TypeError), (0.0, TypeError), ([0.5], TypeError), (None, TypeError), ("0", TypeError),
        ((0, 1), TypeError), (np.zeros((2, 2), int), TypeError), (Ellipsis, TypeError),
    ],
    ids=str,
)  # fmt: skip
def test_rows_that_do_not_exist(rows, kind):
    with pytest.raises(kind, match="HybridMatrix: "):
        hybrid()[rows]


def test_iteration_ends():
    assert [x.shape for x in hybrid()] == N * [(1, D + E)]


# --------------------------------------------------------------------------------------------------- join


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_join_against_float64(dtype):
    center, scale = rng.normal(size=E).astype(np.float32), 0.37
    X = hybrid(DENSE.astype(dtype))
    joined = X.join(center, scale)
    expected = np.hstack([SPARSE.toarray(), (X.dense.astype(np.float64) - center) * np.float32(scale)])
    np.testing.assert_allclose(joined.toarray(), expected, rtol=2e-6, atol=1e-7)
    checked = scipy.sparse.csr_matrix((joined.data, joined.indices, joined.indptr), joined.shape)
    assert joined.has_canonical_format
    assert checked.has_canonical_format
    assert joined.indices.dtype == joined.indptr.dtype == np.int32
    np.testing.assert_array_equal(np.diff(joined.indptr), np.diff(SPARSE.indptr) + E)


def test_a_split_keeps_its_dense_rows():
    Y = scipy.sparse.eye(N, format="csr")
    split = Split(SPARSE, Y, dense=DENSE)
    taken = split.take(np.array([4, 1]))
    np.testing.assert_array_equal(taken.dense, DENSE[[4, 1]])
    assert taken.documents.shape == (2, D + E)
    many, eye = np.arange(30.0).reshape(30, 1), scipy.sparse.eye(30, format="csr")
    held = hold_out(Dataset("d", "d", Split(eye, eye, dense=many)))
    assert (held.num_dense, held.columns.num_dense) == (1, 1)
    assert held.dev.dense.ravel().tolist() == held.dev.X.indices.tolist()
    assert held.train.dense.ravel().tolist() == held.train.X.indices.tolist()
