"""Matrices: what is taken, what is refused, and that they come out canonical."""

import numpy as np
import pytest
import scipy.sparse
import torch
from data_cases import random_split
from scipy import sparse

import mach_ext
from mach_ext import data, metrics
from mach_ext.data import check_csr, check_labels


def test_check_csr_makes_canonical_without_touching_the_argument():
    X = sparse.csr_matrix((np.array([1.0, 2, 3, 4]), [2, 0, 2, 1], [0, 3, 4]), shape=(2, 3))
    checked = check_csr(X)
    assert checked.dtype == np.float32
    assert checked.has_canonical_format
    assert checked.toarray().tolist() == [[2, 0, 4], [0, 4, 0]]
    assert X.indices.tolist() == [2, 0, 2, 1]
    assert X.data.tolist() == [1, 2, 3, 4]


def test_check_csr_sums_integers_without_overflow():
    X = sparse.csr_matrix((np.array([100, 100], np.int8), [1, 1], [0, 2]), shape=(1, 2))
    assert check_csr(X).toarray().tolist() == [[0, 200]]


@pytest.mark.parametrize(
    "form", ["csr_array", "csc_matrix", "coo_array", "lil_matrix", "dok_matrix", "bsr_matrix"]
)
def test_check_csr_takes_any_sparse_form(form):
    dense = np.array([[0, 1.5, 0], [2, 0, 0]])
    checked = check_csr(getattr(sparse, form)(dense))
    assert isinstance(checked, sparse.csr_matrix)
    assert checked.toarray().tolist() == dense.tolist()


def test_check_csr_shares_memory_where_nothing_changes():
    X = random_split().X
    assert np.shares_memory(check_csr(X).data, X.data)


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        ([[1.0]], TypeError, "X: must be a SciPy sparse matrix, a NumPy array or a torch tensor, got list"),
        (np.ma.array(np.eye(2)), TypeError, "X: must be a SciPy sparse matrix, .*, got MaskedArray"),
        (sparse.eye(2) * 1j, TypeError, "X: must hold real numbers, got dtype complex128"),
        (np.ones((1, 2, 3)), ValueError, r"X: must have two dimensions, or one .*, got shape \(1, 2, 3\)"),
        (sparse.csr_matrix((1, 2**31)), ValueError, r"X: rows and columns must be below 2\^31, got shape"),
        (sparse.diags([1.0, np.nan]), ValueError, "X, row 1: values must be finite .*, got nan in column 1"),
        (sparse.diags([np.inf, 1.0]), ValueError, "X, row 0: values must be finite .*, got inf in column 0"),
        (sparse.diags([1.0, 1e39]), ValueError, "X, row 1: values must be finite and fit float32"),
    ],
)
def test_check_csr_refuses(matrix, error, message):
    with pytest.raises(error, match=message):
        check_csr(matrix)


@pytest.mark.parametrize(
    ("indices", "indptr", "message"),
    [
        ([0, 3], [0, 1, 2], r"X: .*indices must be < 3, got shape \(., .\), 2 values"),
        ([0, -1], [0, 1, 2], "X: .*indices must be >= 0"),
        ([0, 1], [0, 2, 1], "X: .*(last value of index pointer|non-decreasing|should be)"),
        ([0, 1], [0, 9, 2], "X: .*(non-decreasing|index pointer)"),
    ],
)
@pytest.mark.parametrize("form", ["csr", "csc"])
def test_check_csr_refuses_broken_structure(form, indices, indptr, message):
    X = sparse.csr_matrix((2, 3)) if form == "csr" else sparse.csc_matrix((3, 2))
    X.data, X.indices, X.indptr = np.ones(2), np.array(indices, np.int32), np.array(indptr, np.int32)
    with pytest.raises(ValueError, match=message):
        check_csr(X)


def test_check_labels():
    Y = sparse.csr_matrix((np.array([2.0, 0.0, 1.0]), [0, 1, 2], [0, 3]), shape=(1, 3))
    assert check_labels(Y).toarray().tolist() == [[1, 0, 1]]
    assert check_labels(Y).nnz == 2
    assert Y.nnz == 3


def test_learning_refuses_weights():
    X, Y = scipy.sparse.eye(4, format="csr"), scipy.sparse.eye(4, format="csr") * 0.5
    linear = {"num_repetitions": 8, "num_buckets": 4, "hidden_size": 0}
    model = mach_ext.MACH(4, 4, **linear, merge="mean_logprob")
    for learn in (mach_ext.fit, mach_ext.fit_svm):
        with pytest.raises(ValueError, match="Y: labels must be 1 where they hold"):
            learn(model, X, Y, progress=False)


DENSE = np.array([[0, 1.5, 0], [2, 0, 3]])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
@pytest.mark.parametrize(
    "form",
    [np.asarray, np.asmatrix, np.asfortranarray, torch.tensor, lambda x: torch.tensor(x).to_sparse(),
     lambda x: torch.tensor(x).to_sparse_csr(), lambda x: torch.tensor(x).to_sparse_csc(),
     np.float16, lambda x: torch.tensor(x).half(),
     lambda x: torch.tensor(x, dtype=torch.bfloat16), lambda x: torch.tensor(x).requires_grad_(),
     scipy.sparse.csr_array, scipy.sparse.csc_array, scipy.sparse.coo_array, scipy.sparse.dia_array],
)  # fmt: skip
def test_any_matrix_is_taken(form):
    assert check_csr(form(DENSE)).toarray().tolist() == DENSE.tolist()


@pytest.mark.parametrize(
    "row",
    [DENSE[1], torch.tensor(DENSE)[1], torch.tensor(DENSE)[1].to_sparse(), scipy.sparse.csr_array(DENSE)[1],
     scipy.sparse.coo_array(DENSE[1]), scipy.sparse.csr_matrix(DENSE)[1]],
)  # fmt: skip
def test_one_dimension_is_one_document(row):
    assert check_csr(row).toarray().tolist() == [DENSE[1].tolist()]
    model = mach_ext.MACH(3, 5, num_repetitions=8, num_buckets=8, hidden_size=4)
    _, labels = model.predict(row, k=2)
    assert labels.tolist() == model.predict(scipy.sparse.csr_matrix(DENSE[1:]), k=2)[1].tolist()
    why = mach_ext.explain.integrated_gradients(model, row, labels[0])
    assert why.features.tolist() == [0, 2]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int64])
@pytest.mark.parametrize("form", ["coo", "csr", "csc", "bsr"])
def test_duplicates_are_widened_before_they_are_summed(dtype, form):
    big = min(np.iinfo(dtype).max, 1 << 20)
    values = np.array([big, big, 1], dtype)
    X = scipy.sparse.coo_array((values, ([0, 0, 1], [1, 1, 0])), shape=(2, 2))
    if form != "coo":  # with both entries still there
        indptr = [0, 2, 3] if form != "csc" else [0, 1, 3]
        indices = [1, 1, 0] if form != "csc" else [1, 0, 0]
        values = values if form != "csc" else values[[2, 0, 1]]
        if form == "bsr":
            X = scipy.sparse.bsr_array((values.reshape(3, 1, 1), indices, indptr), shape=(2, 2))
        else:
            X = getattr(scipy.sparse, f"{form}_array")((values, indices, indptr), shape=(2, 2))
    assert check_csr(X).toarray().tolist() == [[0, 2 * big], [1, 0]]
    assert check_labels(X).toarray().tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("indptr", [[0, -(2**63), 0, 0], [0, 1, 2, -2], [1, 1, 1, 1], [0, 5, 0, 0]])
@pytest.mark.parametrize("form", [scipy.sparse.csr_matrix, scipy.sparse.csc_array])
def test_pointers_that_scipy_lets_pass(indptr, form):
    X = form((3, 3))
    X.data, X.indices, X.indptr = np.ones(3), np.zeros(3, np.int64), np.array(indptr)
    with pytest.raises(ValueError, match=r"X: .*, got shape"):
        check_csr(X)
    with pytest.raises(ValueError, match="Y_true is not a valid"):
        metrics.evaluate(X, [[0], [1], [2]], ks=(1,))


def test_coordinates_outside_the_matrix():
    X = scipy.sparse.coo_array(([1.0], ([0], [1])), shape=(1, 2))
    X.coords = (np.array([0]), np.array([7]))
    with pytest.raises(ValueError, match="X: row and column indices must be inside the matrix"):
        check_csr(X)


def test_value_does_not_depend_on_duplicates_elsewhere():
    value = np.uint64(2**60 + 2**36 + 1)  # rounds to another float32 by way of a double
    alone = sparse.csr_matrix((np.array([value, 1]), [0, 1], [0, 1, 2]), shape=(2, 2))
    beside = sparse.csr_matrix((np.array([value, 1, 1]), [0, 1, 1], [0, 1, 3]), shape=(2, 2))
    assert check_csr(alone)[0, 0] == check_csr(beside)[0, 0]


def test_matrix_in_memory_with_falling_indptr():
    matrix = sparse.csr_matrix((3, 4))
    matrix.indptr = np.array([0, 10**6, 0, 0], np.int32)
    with pytest.raises(ValueError, match=r"X: index pointer values must form a non-decreasing sequence"):
        check_csr(matrix)


def test_a_stored_zero_is_no_feature():
    X = scipy.sparse.csr_matrix((np.float32([0, 2, 0]), [0, 1, 1], [0, 1, 2, 3]), (3, 2))
    assert data.row_features(X).tolist() == [0, 1, 0]
    assert X.nnz == 3
    split = data.Split(X, scipy.sparse.csr_matrix((3, 2), dtype=np.float32))
    assert split.without_features == 2
