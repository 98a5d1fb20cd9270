"""MACHClassifier: the forms of y."""

import collections

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from estimator_cases import (
    DENSE,
    FIRST,
    LISTS,
    NAMES,
    ROWS,
    L,
    N,
    X,
    assert_same_model,
    brief,
    dense,
    shared_fit,
    small,
)
from sklearn.exceptions import DataConversionWarning
from sklearn.metrics import accuracy_score

pytestmark = pytest.mark.usefixtures("one_thread")


INDICATORS = {
    **{f: (lambda f=f: sp.csr_matrix(DENSE).asformat(f)) for f in ("csr", "csc", "coo", "lil", "dok", "dia")},
    "bsr": lambda: sp.bsr_matrix(DENSE, blocksize=(2, 2)),
    "csr_array": lambda: sp.csr_array(DENSE),
    "sparse bool": lambda: sp.csr_matrix(DENSE.astype(bool)),
    "sparse float": lambda: sp.csr_matrix(DENSE.astype(np.float32)),
    "dense": lambda: DENSE,
    "dense bool": lambda: DENSE.astype(bool),
    "dense float": lambda: DENSE.astype(float),
    "lists of zeros and ones": lambda: DENSE.tolist(),
    "arrays of zeros and ones": lambda: list(DENSE),
    "DataFrame": lambda: pd.DataFrame(DENSE),
    "nullable DataFrame": lambda: pd.DataFrame(DENSE).astype("Int64"),
    "sparse DataFrame": lambda: pd.DataFrame.sparse.from_spmatrix(sp.csr_matrix(DENSE)),
    "tensor": lambda: torch.from_numpy(DENSE),
}
LABEL_LISTS = {
    "lists of names": lambda: LISTS,
    "tuples": lambda: [tuple(labels) for labels in LISTS],
    "sets": lambda: [set(labels) for labels in LISTS],
    "frozen sets": lambda: tuple(frozenset(labels) for labels in LISTS),
    "arrays": lambda: [np.array(labels) for labels in LISTS],
    "objects": lambda: np.array([*LISTS, []], dtype=object)[:-1],
    "Series": lambda: pd.Series(LISTS),
    "repeated labels": lambda: [[*labels, labels[0]] for labels in LISTS],
    "a Series of sets": lambda: pd.Series([set(labels) for labels in LISTS], index=range(N, 0, -1)),
    "Series of names": lambda: [pd.Series(labels, index=labels, dtype=object) for labels in LISTS],
    "deques": lambda: collections.deque(collections.deque(labels) for labels in LISTS),
    "keys": lambda: [dict.fromkeys(labels).keys() for labels in LISTS],
    "numbers": lambda: ROWS,
    "numbers of NumPy": lambda: [[np.int64(label) for label in row] for row in ROWS],
    "tensors": lambda: [torch.tensor(row) for row in ROWS],
}


@pytest.mark.parametrize("form", [*INDICATORS, *LABEL_LISTS])
def test_forms_of_labels(form):
    y = {**INDICATORS, **LABEL_LISTS}[form]()
    estimator, fitted = brief().fit(X, y), shared_fit(make=brief)
    assert_same_model(estimator, fitted)
    is_named = form in LABEL_LISTS and "numbers" not in form and form != "tensors"
    names = NAMES.tolist() if is_named else list(range(L))
    assert estimator.classes_.tolist() == names
    assert {type(name) for name in estimator.classes_.tolist()} == {str if is_named else int}  # fit for JSON
    predicted = estimator.predict(X)
    was_dense = form in INDICATORS and "sparse" not in form and not sp.issparse(y)
    assert isinstance(predicted, np.ndarray if was_dense else sp.csr_matrix)
    assert predicted.dtype == np.int64
    assert (dense(predicted) == fitted.predict(X).toarray()).all()
    assert estimator.score(X, y) == fitted.score(X, DENSE)


@pytest.mark.parametrize(
    "y",
    [FIRST, FIRST.tolist(), NAMES[FIRST], NAMES[FIRST].astype(object), pd.Series(NAMES[FIRST]), FIRST + 0.0],
    ids=["array", "list", "names", "objects", "Series", "floats"],
)
def test_forms_of_classes(y):
    estimator = brief().fit(X, y)
    classes = np.unique(np.asarray(y))
    assert (estimator.classes_ == classes).all()
    predicted = estimator.predict(X)
    assert predicted.shape == (N,)
    assert predicted.dtype == estimator.classes_.dtype
    assert estimator.score(X, y) == accuracy_score(np.asarray(y), predicted)
    assert_same_model(estimator, shared_fit("classes", make=brief))


def test_classes_are_learned():
    assert shared_fit("classes").score(X, NAMES[FIRST]) > 0.8


def test_two_classes():
    y = np.where(FIRST > 2, "yes", "no")
    estimator = small(epochs=3).fit(X, y)
    decision = estimator.decision_function(X)
    assert decision.shape == (N,)
    assert (np.array(["no", "yes"])[(decision > 0).astype(int)] == estimator.predict(X)).all()


def test_a_column_of_classes_is_taken_with_a_warning():
    with pytest.warns(DataConversionWarning, match="column-vector"):
        estimator = brief().fit(X, FIRST[:, None])
    assert estimator.predict(X).shape == (N,)


def test_a_column_of_lists_is_taken_with_a_warning():
    with pytest.warns(DataConversionWarning, match="y is a column of lists of labels; pass the lists in one"):
        estimator = brief().fit(X, pd.DataFrame({"labels": LISTS}))
    assert_same_model(estimator, shared_fit(make=brief))


def test_lists_of_one_number_are_lists():
    """Equally long lists of zeros and ones are an indicator only from two columns on."""
    estimator = brief().fit(X, [[n % 2] for n in range(N)])
    assert estimator.predict(X).shape == (N, 2)


def mixed():
    return [*LISTS[:-1], "cat"]


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        (None, ValueError, "requires y to be passed, but the target y is None"),
        (DENSE * 2, ValueError, "MACHClassifier: y must hold 0 and 1 alone, got 2"),
        (-DENSE, ValueError, "MACHClassifier: y must hold 0 and 1 alone, got -1"),
        (DENSE * 0.5, ValueError, "MACHClassifier: y must hold 0 and 1 alone, got 0.5"),
        (sp.csr_matrix(DENSE * 2), ValueError, "MACHClassifier: y must hold 0 and 1 alone, got 2"),
        (sp.csr_matrix(-DENSE), ValueError, "MACHClassifier: y must hold 0 and 1 alone, got -1"),
        (sp.csr_matrix(DENSE * np.nan), ValueError, "MACHClassifier: y must hold 0 and 1 alone, got nan"),
        (sp.csr_matrix((N, 0)), ValueError, r"must be an indicator \[N, L\] .* shape \(60, 0\)"),
        (
            NAMES[:2][DENSE],
            ValueError,
            r"or lists of label names\), got dtype <U3 and shape \(60, 8\)",
        ),
        (mixed(), ValueError, "MACHClassifier: y, row 59: must be a list of labels, .*, got 'cat'"),
        ([[] for _ in range(N)], ValueError, "y must hold at least one label, got only empty lists"),
        ([["cat"], [3]] * 30, TypeError, "must be hashable and sortable, .*, got int, str"),
        ([["cat"], [None]] * 30, TypeError, "must be hashable and sortable, .*, got NoneType, str"),
        ([[None]] * 60, ValueError, "labels in y must not be None or NaN, got None"),
        ([[1.5], [np.nan]] * 30, ValueError, "labels in y must not be None or NaN, got nan"),
        ([[pd.NA]] * 60, ValueError, "labels in y must not be None or NaN, got <NA>"),
        (pd.Series([np.nan, *LISTS[1:]]), ValueError, "y, row 0: must be a list of labels, .*, got nan"),
        (
            [["cat"], {"dog": 1.0}] * 30,
            ValueError,
            "y, row 1: must be a list of labels, .*, got {'dog': 1.0}",
        ),
        ([{"dog": 1.0}] * 60, TypeError, "y, row 0: must be a class or a list of labels, got dict"),
        ([iter("ab")] * 60, TypeError, "y, row 0: must be a class or a list of labels, got str_.*iterator"),
        ([[["cat"]], [["dog"]]] * 30, TypeError, "must be hashable and sortable, .*, got list"),
        (LISTS[:-1], ValueError, "inconsistent numbers of samples: "),
        (FIRST[:-1], ValueError, "inconsistent numbers of samples: "),
        (DENSE[:-1], ValueError, "inconsistent numbers of samples: "),
        (np.linspace(0, 1, N), ValueError, "Unknown label type: continuous"),
        ([np.nan, *FIRST[1:]], ValueError, "Input y contains NaN"),
        (np.zeros((N, 2, 2)), ValueError, "dim 3"),
        *[
            (y, TypeError, f"MACHClassifier: y must be an array or a list of .*, got {name}")
            for y, name in [
                ("cats", "str"),
                (3, "int"),
                (np.array("cat"), "ndarray"),
                ({"cat", "dog"}, "set"),
                (dict(enumerate(LISTS)), "dict"),
                ((labels for labels in LISTS), "generator"),
            ]
        ],
    ],
)
def test_bad_labels_are_refused(y, error, message):
    with pytest.raises(error, match=message):
        brief().fit(X, y)


def test_an_entry_that_is_stored_twice_is_one_label():
    rows, columns = DENSE.nonzero()
    Y = sp.coo_matrix((np.ones(2 * len(rows), int), (np.tile(rows, 2), np.tile(columns, 2))), shape=(N, L))
    assert_same_model(brief().fit(X, Y), brief().fit(X, DENSE))


def test_lists_of_zeros_and_ones_have_the_form_of_the_fit():
    """Lists of the labels 0 and 1 look like an indicator of two labels, so `score` asks what `fit` had."""
    lists = brief(k=1).fit(X, [[0], [1], [0, 1]] * 20)
    assert lists.score(X, [[0, 1], [1, 0]] * 30) == 1.0
    named, numbered, fitted = (brief().fit(X, y) for y in (LISTS, ROWS, DENSE))
    for estimator in (named, fitted):
        assert estimator.score(X, DENSE.tolist()) == fitted.score(X, DENSE)
    best = fitted.predict_topk(X, 1)[1][:, 0]
    for estimator in (numbered, fitted):
        assert estimator.score(X, [[0, 1], [1, 0]] * 30) == np.mean(best < 2)
    two = brief().fit(X, DENSE[:, :2])
    assert two.score(X, DENSE[:, :2].tolist()) == two.score(X, DENSE[:, :2])
    with pytest.raises(ValueError, match=r"y must have L=8 columns, got shape \(60, 3\)"):
        fitted.score(X, [[0, 1, 1]] * N)
