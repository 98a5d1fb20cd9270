"""MACHClassifier: the forms of X, and small and odd data."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from estimator_cases import (
    DENSE,
    LISTS,
    SMALL,
    TEXTS,
    D,
    L,
    N,
    X,
    assert_same_model,
    brief,
    shared_fit,
    small,
)

from mach_ext.sklearn import MACHClassifier

pytestmark = pytest.mark.usefixtures("one_thread")


# ------------------------------------------------------------------------------------------------ forms of X

DOCUMENTS = {
    "csc": lambda: X.tocsc(),
    "coo": lambda: X.tocoo(),
    "lil": lambda: X.tolil(),
    "dia": lambda: X.todia(),
    "csr_array": lambda: sp.csr_array(X),
    "dense": lambda: X.toarray(),
    "lists": lambda: X.toarray().tolist(),
    "DataFrame": lambda: pd.DataFrame(X.toarray(), columns=[f"word {d}" for d in range(D)]),
    "sparse DataFrame": lambda: pd.DataFrame.sparse.from_spmatrix(X),
}


@pytest.mark.parametrize("form", DOCUMENTS)
def test_forms_of_documents(form):
    documents = DOCUMENTS[form]()
    estimator, fitted = brief().fit(documents, DENSE), shared_fit(make=brief)
    assert_same_model(estimator, fitted)
    assert (estimator.predict(documents) == fitted.predict(X).toarray()).all()
    assert hasattr(estimator, "feature_names_in_") == (form == "DataFrame")


def test_numbers_of_documents_may_be_integers():
    counts = (X.toarray() * 10).astype(int)
    assert_same_model(brief().fit(counts, DENSE), brief().fit(counts.astype(float), DENSE))


@pytest.mark.parametrize(
    "texts", [TEXTS, tuple(TEXTS), np.array(TEXTS), np.array(TEXTS, object), pd.Series(TEXTS)], ids=type
)
def test_texts_need_a_vectorizer(texts, fitted):
    message = "MACHClassifier: X must hold numbers .*, got texts; put a vectorizer before the estimator"
    for ask in (lambda X: brief().fit(X, LISTS), fitted.predict, lambda X: fitted.score(X, LISTS)):
        with pytest.raises(ValueError, match=message):
            ask(texts)


def with_value(value):
    documents = X.copy()
    documents.data[7] = value
    return documents


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (with_value(np.nan), "Input X contains NaN"),
        (with_value(np.inf), "Input X contains infinity"),
        (with_value(1e300), "MACHClassifier: X, row 1: values must be finite and fit float32"),
        (X.toarray() * 1j, "Complex data not supported"),
        (X.toarray()[0], "Expected 2D array, got 1D array instead"),
        (X[:0], r"Found array with 0 sample\(s\)"),
        (X[:, :0], r"Found array with 0 feature\(s\)"),
    ],
    ids=["NaN", "infinite", "large", "complex", "one dimension", "no document", "no feature"],
)
def test_bad_documents_are_refused(documents, message, fitted):
    with pytest.raises(ValueError, match=message):
        brief().fit(documents, DENSE[: np.shape(documents)[0]])
    for ask in (fitted.predict, fitted.predict_topk, fitted.decision_function):
        with pytest.raises(ValueError, match=message):
            ask(documents)


def test_columns_must_be_those_of_the_fit(fitted):
    message = "X has 11 features, but MACHClassifier is expecting 12 features"
    for ask in (fitted.predict, fitted.predict_topk, fitted.decision_function):
        with pytest.raises(ValueError, match=message):
            ask(X[:, 1:])
    with pytest.raises(ValueError, match=message):
        fitted.score(X[:, 1:], DENSE)


# ---------------------------------------------------------------------------------------- small and odd data


@pytest.mark.parametrize("parameters", [SMALL, {"svm": True}], ids=["hidden", "svm"])
def test_documents_without_features_or_labels(parameters):
    documents, Y = X.copy(), sp.csr_matrix(DENSE).tolil()
    documents.data[documents.indptr[3] : documents.indptr[4]] = 0
    Y[5] = 0
    Y[:, 2] = 0  # a label that no document has
    estimator = MACHClassifier(**parameters).fit(documents, Y)
    scores, labels = estimator.predict_topk(documents, k=L)
    assert np.isfinite(scores).all()
    empty = estimator.predict_topk(sp.csr_matrix((1, D)), k=L)
    assert (labels[3] == empty[1][0]).all()
    assert estimator.predict(documents).shape == (N, L)


def test_no_label_at_all():
    """An indicator without an entry is trained on, as `mach_ext.train` does."""
    estimator = small().fit(X, sp.csr_matrix((N, L)))
    assert estimator.score(X, DENSE) <= 1
    assert (estimator.decision_function(X) < 0).all()


@pytest.mark.parametrize("y", [["cat"], [["cat"]], sp.csr_matrix([[1]])], ids=["class", "list", "indicator"])
def test_one_document_of_one_label(y):
    estimator = small().fit([[1.0, 0.0]], y)
    assert estimator.classes_.shape == (1,)
    assert estimator.predict_topk([[0.0, 1.0]])[1].tolist() == [estimator.classes_.tolist()]
    assert estimator.score([[1.0, 0.0]], y) == 1.0
