"""MACHClassifier with dense features: the last columns of X, or those of a HybridMatrix."""

import pickle

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import FeatureUnion, make_pipeline

import mach_ext
from mach_ext.data import HybridMatrix
from mach_ext.sklearn import MACHClassifier

pytestmark = pytest.mark.usefixtures("one_thread")

N, D, E, L = 60, 8, 3, 6
rng = np.random.default_rng(0)
LABELS = np.arange(N) % L
WORDS = scipy.sparse.csr_matrix(np.eye(D, dtype=np.float32)[LABELS % 3])
DENSE = (5 + 2 * np.eye(E)[LABELS // 3] + 0.1 * rng.normal(size=(N, E))).astype(np.float32)
STACKED = scipy.sparse.hstack([WORDS, scipy.sparse.csr_matrix(DENSE)], format="csr")
SIZES = {"num_repetitions": 4, "num_buckets": 5, "hidden_size": 16, "epochs": 60, "learning_rate": 0.02}


def fitted(X=STACKED, **parameters):
    return MACHClassifier(**{**SIZES, "num_dense": E, **parameters}).fit(X, LABELS)


def test_the_last_columns_are_centred_and_scaled():
    classifier = fitted()
    assert classifier.score(STACKED, LABELS) == 1
    assert classifier.n_features_in_ == D + E
    model = classifier.model_
    assert (model.num_features, model.num_dense) == (D, E)
    np.testing.assert_allclose(model.dense_center, DENSE.mean(0, dtype=np.float64), rtol=1e-6)
    assert fitted(WORDS, num_dense=0).score(WORDS, LABELS) < 0.7  # the words alone do not tell


def test_all_methods_are_those_of_the_model():
    classifier = fitted()
    X = HybridMatrix(WORDS, DENSE)
    scores, labels = classifier.model_.predict(X, L)
    for given in (STACKED, STACKED.toarray(), STACKED.tocsc(), X):
        np.testing.assert_array_equal(classifier.predict(given), LABELS)
        found, names = classifier.predict_topk(given, L)
        np.testing.assert_array_equal(found, scores)
        np.testing.assert_array_equal(names, labels)
        all_scores = classifier.decision_function(given)
        np.testing.assert_array_equal(np.take_along_axis(all_scores, labels, 1), scores)
    Y = np.eye(L)[LABELS]
    by_threshold = MACHClassifier(**SIZES, num_dense=E, threshold=0.0).fit(X, Y)
    np.testing.assert_array_equal(by_threshold.predict(STACKED), by_threshold.decision_function(X) >= 0)


def test_the_same_bits_as_train(tmp_path):
    classifier = fitted(epochs=2)
    split = mach_ext.data.Split(WORDS, scipy.sparse.csr_matrix(np.eye(L)[LABELS]), dense=DENSE)
    given = {**SIZES, "epochs": 2, "holdout": False, "svm": False}
    run = mach_ext.train(
        mach_ext.data.Dataset("d", "d", split), **given, output=tmp_path / "run", progress=False
    )
    assert all(
        a.equal(b) for a, b in zip(classifier.model_.parameters(), run.model.parameters(), strict=True)
    )


def test_svms_and_holdout():
    assert fitted(svm=True, hidden_size=None, epochs=None, learning_rate=None).score(STACKED, LABELS) == 1
    assert fitted(holdout=True).history_[-1]["dev"]["P@1"] == 1


def test_dense_columns_alone():
    names = LABELS // 3
    classifier = MACHClassifier(**SIZES, num_dense=E).fit(DENSE, names)
    assert classifier.score(DENSE, names) == 1
    assert classifier.n_features_in_ == E
    assert classifier.predict(scipy.sparse.csr_matrix(DENSE)).tolist() == names.tolist()


def test_a_feature_union_in_a_pipeline():
    pets, verbs = ("cat", "dog", "owl"), ("purrs", "sleeps")
    texts = [f"{pets[label % 3]} {verbs[label // 3]} {n}" for n, label in enumerate(LABELS)]
    dense = make_pipeline(TfidfVectorizer(), TruncatedSVD(4, random_state=0))
    union = FeatureUnion([("words", TfidfVectorizer(min_df=2)), ("dense", dense)])
    pipeline = make_pipeline(union, MACHClassifier(**SIZES, num_dense=4, dense_length=0.5))
    assert pipeline.fit(texts, LABELS).score(texts, LABELS) == 1
    assert pipeline[-1].model_.num_dense == 4


def test_clones_and_pickles():
    classifier = fitted(epochs=2)
    assert clone(classifier).num_dense == E
    other = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(other.decision_function(STACKED), classifier.decision_function(STACKED))


@pytest.mark.parametrize(
    ("X", "num_dense", "kind", "message"),
    [
        (STACKED, D + E + 1, ValueError, "num_dense must be at most the number of columns of X, got 12 > 11"),
        (STACKED, -1, ValueError, "num_dense must be at least 0, got -1"),
        (STACKED, 1.5, TypeError, "num_dense must be an int, got float"),
        (
            HybridMatrix(WORDS, DENSE),
            0,
            ValueError,
            "num_dense must be the dense features of X, got 0 and a Hyb",
        ),
        (HybridMatrix(WORDS, DENSE), E - 1, ValueError, "got 2 and a HybridMatrix of 3"),
    ],
)
def test_what_does_not_fit(X, num_dense, kind, message):
    with pytest.raises(kind, match=message):
        fitted(X, num_dense=num_dense)


def test_other_columns_in_predict():
    classifier = fitted(epochs=2)
    with pytest.raises(ValueError, match="expecting 11 features"):
        classifier.predict(STACKED[:, 1:])
    with pytest.raises(
        ValueError, match="num_dense must be the dense features of X, got 3 and a HybridMatrix of 2"
    ):
        classifier.predict(HybridMatrix(WORDS, DENSE[:, 1:]))
