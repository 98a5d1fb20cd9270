"""MACHClassifier: scikit-learn's own checks, the forms of y, exact answers, and the same bits as `train`."""

import copy
import inspect
import pickle
import signal
import sys
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import sklearn
import torch
from helpers import num_threads
from joblib.externals.loky import get_reusable_executor
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_classifier_multioutput, parametrize_with_checks
from training_cases import same_bits

import mach_ext
from mach_ext import data, metrics
from mach_ext._memory import available
from mach_ext.runs.recipe import SETTINGS
from mach_ext.sklearn import MACHClassifier, _decoding, classifier
from mach_ext.training.progress import Progress

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = np.array(["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"])
N, D, L = 60, 12, len(NAMES)
SMALL = {"num_repetitions": 8, "num_buckets": 16, "hidden_size": 16, "epochs": 15, "batch_size": 8}
SMALL["learning_rate"] = 0.01

rng = np.random.default_rng(0)
ROWS = [sorted(rng.choice(L, rng.integers(1, 4), replace=False).tolist()) for _ in range(N)]
DENSE = np.array([[int(label in row) for label in range(L)] for row in ROWS])
LISTS = [[str(NAMES[label]) for label in row] for row in ROWS]
X = sp.csr_matrix(np.hstack([DENSE * rng.uniform(0.5, 1, (N, L)), rng.uniform(0, 0.2, (N, D - L))]))
FIRST = np.array([row[0] for row in ROWS])  # one label of each document
TEXTS = [" ".join(labels) for labels in LISTS]


def small(**parameters):
    return MACHClassifier(**{**SMALL, **parameters})


@pytest.fixture(scope="module")
def fitted():
    """Trained on a sparse indicator. Tests do not change it."""
    return small().fit(X, sp.csr_matrix(DENSE))


def state(estimator):
    return {name: tensor for name, tensor in estimator.model_.state_dict().items() if "hash" not in name}


def assert_same_model(a, b):
    assert a.model_.hash == b.model_.hash
    assert same_bits(state(a), state(b))


def dense(indicator):
    return indicator.toarray() if sp.issparse(indicator) else indicator


# ------------------------------------------------------------------------------------ scikit-learn's checks

# None is expected to fail. scikit-learn itself skips the check of `predict_proba`, which the estimator does
# not have, and that of array API inputs unless the environment sets SCIPY_ARRAY_API.
ESTIMATORS = [MACHClassifier(), MACHClassifier(threshold=0.0, hidden_size=32), MACHClassifier(svm=True)]


@parametrize_with_checks(ESTIMATORS)
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


def test_threshold_zero_is_the_sign_of_the_decision_function():
    """scikit-learn has this check for estimators of several outputs, and skips it for labels."""
    check_classifier_multioutput("MACHClassifier", MACHClassifier(threshold=0.0, hidden_size=32))


# ----------------------------------------------------------------------------------------------- parameters


def test_parameters_are_those_of_train():
    ours = {*inspect.signature(MACHClassifier).parameters}
    theirs = {*inspect.signature(mach_ext.train).parameters} - {
        "dataset", "output", "resume", "overwrite", "svmlight_base", "propensity", "evaluate",
    }  # fmt: skip
    theirs |= {*SETTINGS, "random_state", "k", "threshold"}
    assert ours == theirs - {"hyperparameters", "seed"}


def test_clone_and_set_params():
    estimator = small(hidden_size=(8, 8), threshold=0.5)
    copied = clone(estimator)
    assert copied.get_params() == estimator.get_params()
    assert copied.set_params(k=3, C=2.0).get_params()["k"] == 3
    assert repr(MACHClassifier(k=3)) == "MACHClassifier(k=3)"
    with pytest.raises(TypeError):
        MACHClassifier(8)  # all arguments have names


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"device": "abacus"}, ValueError, "device must be cpu, cuda or cuda:N, got 'abacus'"),
        ({"optimizer": "sgd"}, ValueError, "fit: optimizer must be one of adam, adagrad, got 'sgd'"),
        ({"epochs": 1.5}, ValueError, "fit: epochs must be an int of at least 0, got 1.5"),
        ({"merge": "sum"}, ValueError, "MACH: merge must be one of mean_logit, .*, got 'sum'"),
        ({"C": 1.0}, ValueError, "C is an option of support vector machines, see svm"),
        ({"svm": True}, ValueError, "svm takes no epochs, batch_size"),
        ({"random_state": -1}, ValueError, "LabelHash: seed must be .*0.*, got -1"),
        ({"random_state": "now"}, ValueError, "'now' cannot be used to seed"),
        ({"k": 0}, ValueError, r"MACHClassifier: k must be in 1 ... L=8, got 0"),
        ({"k": 9}, ValueError, r"MACHClassifier: k must be in 1 ... L=8, got 9"),
        ({"k": 1.5}, TypeError, "MACHClassifier: k must be an int, got float"),
        ({"threshold": "high"}, ValueError, "MACHClassifier: threshold must be None or a number, got 'high'"),
        ({"threshold": np.nan}, ValueError, "MACHClassifier: threshold must be None or a number, got nan"),
        ({"threshold": True}, ValueError, "MACHClassifier: threshold must be None or a number, got True"),
    ],
    ids=str,
)
def test_bad_parameters_are_refused_by_fit(parameters, error, message):
    estimator = small(**parameters)
    with pytest.raises(error, match=message):
        estimator.fit(X, DENSE)
    assert not hasattr(estimator, "n_features_in_")


def test_random_state_is_the_seed():
    assert small(epochs=1, random_state=3).fit(X, DENSE).model_.seed == 3
    assert small(epochs=1, random_state=np.int64(3)).fit(X, DENSE).model_.seed == 3
    drawn = [small(epochs=1, random_state=np.random.RandomState(3)).fit(X, DENSE) for _ in range(2)]
    assert_same_model(*drawn)
    former = np.random.get_state()  # noqa: NPY002
    try:
        np.random.seed(3)  # noqa: NPY002 - None draws from this generator, as scikit-learn has it
        seeds = {small(epochs=1, random_state=None).fit(X, DENSE).model_.seed for _ in range(3)}
    finally:
        np.random.set_state(former)  # noqa: NPY002
    assert len(seeds) == 3
    assert drawn[0].model_.seed in seeds


# ------------------------------------------------------------------------------------- the same bits as train

TRAINED = {
    "default": {},
    "small": SMALL,
    "linear": {"hidden_size": 0, "epochs": 3, "repetitions_at_a_time": 4},
    "dropout": {**SMALL, "feature_dropout": 0.1, "hidden_dropout": 0.2, "tau": 0.3},
    "svm": {"svm": True, "C": 0.5},
    "patience": {**SMALL, "patience": 1, "metric": "nDCG@3"},
}


@pytest.mark.parametrize("holdout", [False, True])
@pytest.mark.parametrize("name", TRAINED)
def test_same_bits_as_train(name, holdout, tmp_path):
    X32, Y = data.check_csr(X), data.check_labels(sp.csr_matrix(DENSE))
    dataset = data.Dataset("small", tmp_path / "none", data.Split(X32, Y))
    if holdout:
        dataset = data.hold_out(dataset)
    settings = {"progress": False, **TRAINED[name]}
    run = mach_ext.train(dataset, output=tmp_path / "run", seed=5, evaluate=False, **settings)
    ours = MACHClassifier(random_state=5, holdout=holdout, **settings).fit(X, DENSE)
    assert run.model.configuration() == ours.model_.configuration()
    assert same_bits(dict(run.model.named_parameters()), dict(ours.model_.named_parameters()))
    assert ours.history_ == run.history


def test_same_bits_as_train_on_a_folder(tmp_path):
    """From a file that `train` reads, without holding out, as its argument says."""
    (tmp_path / "corpus").mkdir()
    data.write_xmc(tmp_path / "corpus" / "train.txt", data.check_csr(X), sp.csr_matrix(DENSE))
    run = mach_ext.train(
        tmp_path / "corpus", output=tmp_path / "run", holdout=False, progress=False, evaluate=False, **SMALL
    )
    read = run.dataset().train
    ours = small().fit(read.X, read.Y)
    assert same_bits(dict(run.model.named_parameters()), dict(ours.model_.named_parameters()))


def test_many_documents_a_label_get_support_vector_machines():
    """The rule of `train`, which looks at N, D and the documents of a label."""
    y = np.arange(10_000) % 10
    estimator = MACHClassifier().fit(sp.csr_matrix(np.eye(10)[y]), y)
    assert estimator.model_.is_linear
    assert estimator.model_.merge == "mean_logprob"
    assert estimator.history_ == [{"solver": "svm", "C": 1.0}]
    assert estimator.score(sp.eye(10, format="csr"), np.arange(10)) == 1.0


# ------------------------------------------------------------------------------------------------ forms of y

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
    "numbers": lambda: ROWS,
}


@pytest.mark.parametrize("form", [*INDICATORS, *LABEL_LISTS])
def test_forms_of_labels(form, fitted):
    y = {**INDICATORS, **LABEL_LISTS}[form]()
    estimator = small().fit(X, y)
    assert_same_model(estimator, fitted)
    names = NAMES.tolist() if form in LABEL_LISTS and form != "numbers" else list(range(L))
    assert estimator.classes_.tolist() == names
    predicted = estimator.predict(X)
    was_dense = form in INDICATORS and not sp.issparse(y)
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
    estimator = small().fit(X, y)
    classes = np.unique(np.asarray(y))
    assert (estimator.classes_ == classes).all()
    predicted = estimator.predict(X)
    assert predicted.shape == (N,)
    assert predicted.dtype == estimator.classes_.dtype
    assert estimator.score(X, y) == accuracy_score(np.asarray(y), predicted) > 0.8
    assert_same_model(estimator, small().fit(X, FIRST))


def test_two_classes():
    y = np.where(FIRST > 2, "yes", "no")
    estimator = small().fit(X, y)
    decision = estimator.decision_function(X)
    assert decision.shape == (N,)
    assert (np.array(["no", "yes"])[(decision > 0).astype(int)] == estimator.predict(X)).all()


def test_a_column_of_classes_is_taken_with_a_warning():
    with pytest.warns(DataConversionWarning, match="column-vector"):
        estimator = small(epochs=1).fit(X, FIRST[:, None])
    assert estimator.predict(X).shape == (N,)


def test_lists_of_one_number_are_lists():
    """Equally long lists of zeros and ones are an indicator only from two columns on."""
    estimator = small(epochs=1).fit(X, [[n % 2] for n in range(N)])
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
        ([[["cat"]], [["dog"]]] * 30, TypeError, "must be hashable and sortable, .*, got list"),
        (LISTS[:-1], ValueError, "inconsistent numbers of samples: "),
        (FIRST[:-1], ValueError, "inconsistent numbers of samples: "),
        (DENSE[:-1], ValueError, "inconsistent numbers of samples: "),
        (np.linspace(0, 1, N), ValueError, "Unknown label type: continuous"),
        ([np.nan, *FIRST[1:]], ValueError, "Input y contains NaN"),
        (np.zeros((N, 2, 2)), ValueError, "dim 3"),
        ("cats", TypeError, "got scalar|Singleton array"),
    ],
    ids=range(20),
)
def test_bad_labels_are_refused(y, error, message):
    with pytest.raises(error, match=message):
        small(epochs=1).fit(X, y)


def test_an_entry_that_is_stored_twice_is_one_label():
    rows, columns = DENSE.nonzero()
    Y = sp.coo_matrix((np.ones(2 * len(rows), int), (np.tile(rows, 2), np.tile(columns, 2))), shape=(N, L))
    assert_same_model(small(epochs=1).fit(X, Y), small(epochs=1).fit(X, DENSE))


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
def test_forms_of_documents(form, fitted):
    documents = DOCUMENTS[form]()
    estimator = small().fit(documents, DENSE)
    assert_same_model(estimator, fitted)
    assert (estimator.predict(documents) == fitted.predict(X).toarray()).all()
    assert hasattr(estimator, "feature_names_in_") == (form == "DataFrame")


def test_numbers_of_documents_may_be_integers():
    counts = (X.toarray() * 10).astype(int)
    assert_same_model(small(epochs=1).fit(counts, DENSE), small(epochs=1).fit(counts.astype(float), DENSE))


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
        small(epochs=1).fit(documents, DENSE[: np.shape(documents)[0]])
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


# --------------------------------------------------------------------------------------------------- predict


@pytest.mark.parametrize("k", [None, 1, 3, L])
def test_predict_gives_the_best_k(k, fitted):
    estimator = copy.copy(fitted).set_params(k=k)
    predicted = estimator.predict(X)
    scores, labels = estimator.predict_topk(X)
    assert labels.shape == scores.shape == (N, 5 if k is None else k)
    expected = np.zeros((N, L), int)
    np.put_along_axis(expected, labels, 1, axis=1)
    assert (predicted.toarray() == expected).all()
    assert (np.diff(scores, axis=1) <= 0).all()
    assert predicted.has_sorted_indices


@pytest.mark.parametrize("answers", [1 << 22, 8])
@pytest.mark.parametrize("first_k", [1, 16])
@pytest.mark.parametrize("merge", ["mean_logit", "mean_prob", "mean_logprob", "min_prob", "median_prob"])
def test_threshold_is_exact(merge, first_k, answers, monkeypatch):
    """Against all scores, whatever k the search starts with and however little it may hold."""
    monkeypatch.setattr(_decoding, "_FIRST_K", first_k)
    monkeypatch.setattr(_decoding, "_ANSWERS", answers)
    estimator = small(merge=merge).fit(X, sp.csr_matrix(DENSE))
    scores = estimator.decision_function(X)
    for threshold in [*np.quantile(scores, [0.0, 0.3, 0.8, 1.0]), scores.max() + 1, -np.inf, np.inf]:
        predicted = estimator.set_params(threshold=float(threshold)).predict(X)
        assert (predicted.toarray() == (scores >= threshold)).all()
        limited = clone(estimator).set_params(k=2)
        vars(limited).update({name: vars(estimator)[name] for name in vars(estimator) if name.endswith("_")})
        limited._form = estimator._form
        best = np.argsort(-scores, axis=1, kind="stable")[:, :2]
        expected = np.zeros((N, L), bool)
        np.put_along_axis(expected, best, True, axis=1)
        assert (limited.predict(X).toarray() == (expected & (scores >= threshold))).all()


def test_threshold_is_on_the_scale_of_the_merge():
    """Mean logit: 0 where buckets have probability 1/2. The adjustment shifts it, unless tau is 0."""
    documents = data.check_csr(X)
    tensors = [torch.from_numpy(a) for a in (documents.data, documents.indices, documents.indptr)]
    logit = small(tau=0.0).fit(X, sp.csr_matrix(DENSE))
    bucket_logits = logit.model_.label_logits(*tensors, torch.arange(L)).detach().numpy()  # [N, L, R]
    assert not logit.model_.logit_adjustment.any()
    np.testing.assert_allclose(logit.decision_function(X), bucket_logits.mean(2), rtol=1e-4, atol=1e-5)
    for merge, score in (
        ("mean_prob", (1 / (1 + np.exp(-bucket_logits))).mean(2)),
        ("mean_logprob", -np.log1p(np.exp(-bucket_logits)).mean(2)),
    ):
        other = small(merge=merge).fit(X, sp.csr_matrix(DENSE))  # training does not depend on the merge
        np.testing.assert_allclose(other.decision_function(X), score, rtol=1e-4, atol=1e-5)
    assert small().fit(X, DENSE).model_.logit_adjustment.any()


def test_batches_of_a_threshold_and_of_all_scores_are_those_of_predict(monkeypatch):
    """Several batches, the last of them shorter: the same bits as `MACH.predict` gives."""
    for module in (_decoding, mach_ext._prediction):
        monkeypatch.setattr(module, "predict_batch", lambda R, B: 7)
    estimator = small(threshold=-1.0).fit(X, sp.csr_matrix(DENSE))
    scores, labels = estimator.model_.predict(X, L)
    np.testing.assert_array_equal(np.take_along_axis(estimator.decision_function(X), labels, 1), scores)
    expected = np.zeros((N, L), bool)
    np.put_along_axis(expected, labels, scores >= -1.0, axis=1)
    assert (estimator.predict(X).toarray() == expected).all()


def test_classes_are_predicted_whatever_k_and_threshold():
    estimator = small(k=5, threshold=1e9).fit(X, FIRST % 3)
    assert (estimator.predict(X) == small().fit(X, FIRST % 3).predict(X)).all()


def test_predict_topk(fitted):
    named = small().fit(X, LISTS)
    scores, labels = named.predict_topk(X, k=3)
    expected_scores, ids = named.model_.predict(X, 3)
    np.testing.assert_array_equal(scores, expected_scores)
    assert (labels == NAMES[ids]).all()
    assert named.predict_topk(X)[1].shape == (N, 5)
    assert small(k=2).fit(X, FIRST).predict_topk(X)[1].shape == (N, 2)
    with pytest.raises(ValueError, match=r"MACHClassifier: k must be in 1 ... L=8, got 9"):
        fitted.predict_topk(X, k=9)


def test_label_lists(fitted):
    named = small(threshold=0.0).fit(X, LISTS)
    predicted = named.predict(X)
    lists = named.label_lists(predicted)
    assert lists == [NAMES[row.nonzero()[0]].tolist() for row in predicted.toarray()]
    assert named.label_lists(predicted.toarray()) == lists
    assert fitted.label_lists(sp.csr_matrix((2, L))) == [[], []]
    with pytest.raises(ValueError, match=r"indicator must have L=8 columns, got shape \(1, 3\)"):
        named.label_lists([[0, 1, 1]])
    with pytest.raises(ValueError, match="indicator must hold 0 and 1 alone, got 2"):
        named.label_lists(predicted * 2)


def test_dense_predictions_are_refused_where_memory_is_short(monkeypatch):
    Y = np.zeros((4, 2000), int)
    Y[:, ::500] = 1
    estimator = MACHClassifier(svm=True).fit(np.eye(4), Y)
    monkeypatch.setattr(available, "available_memory", lambda device="cpu", swap=False: 1 << 26)
    with pytest.raises(MemoryError, match=r"MACHClassifier.predict: .*fit on a sparse indicator"):
        estimator.predict(np.eye(4)[np.zeros(8000, int)])


# ------------------------------------------------------------------------------------------ decision_function


def test_all_scores_are_those_of_predict(fitted):
    scores = fitted.decision_function(X)
    assert scores.shape == (N, L)
    assert scores.dtype == np.float32
    best, labels = fitted.model_.predict(X, L)
    np.testing.assert_array_equal(np.take_along_axis(scores, labels, 1), best)


def test_too_many_scores_are_refused(fitted, monkeypatch):
    assert classifier._MAX_SCORES == 2**26
    monkeypatch.setattr(classifier, "_MAX_SCORES", N * L)
    fitted.decision_function(X)
    monkeypatch.setattr(classifier, "_MAX_SCORES", N * L - 1)
    message = (
        r"N \* L must be at most 479, because all scores are held at once, got 60 \* 8; use predict_topk"
    )
    with pytest.raises(ValueError, match=message):
        fitted.decision_function(X)


def test_weights_that_are_not_finite_are_reported(fitted):
    broken = copy.deepcopy(fitted).set_params(threshold=0.0)
    with torch.no_grad():
        broken.model_.bucket_bias[0] = torch.nan
    for ask in (broken.predict, broken.decision_function):
        with pytest.raises(ValueError, match="the model's bucket_bias must be finite"):
            ask(X)


# ----------------------------------------------------------------------------------------------------- score


def test_score_is_precision_at_1(fitted):
    expected = metrics.precision_at_k(DENSE, fitted.predict_topk(X, 1)[1], k=1)
    assert fitted.score(X, DENSE) == pytest.approx(expected)
    for y in (sp.csc_matrix(DENSE), ROWS, DENSE.tolist(), pd.DataFrame(DENSE)):
        assert fitted.score(X, y) == fitted.score(X, DENSE)


def test_score_takes_weights(fitted):
    weights = np.arange(N)
    hits = DENSE[np.arange(N), fitted.predict_topk(X, 1)[1][:, 0]]
    hits[7] = 0
    Y = DENSE.copy()
    Y[7] = 0  # a document without labels is a miss
    assert fitted.score(X, Y, sample_weight=weights) == pytest.approx(np.average(hits, weights=weights))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        fitted.score(X, Y, sample_weight=weights[:-1])


def test_unknown_labels_count_as_misses():
    named = small().fit(X, LISTS)
    whole = named.score(X, LISTS)
    assert named.score(X, [[*labels, "yak"] for labels in LISTS]) == whole > 0.9
    assert named.score(X, [["yak"], *LISTS[1:]]) == pytest.approx(whole - 1 / N)
    assert small().fit(X, NAMES[FIRST]).score(X, ["yak"] * N) == 0.0
    with pytest.raises(ValueError, match=r"y must have L=8 columns, got shape \(60, 9\)"):
        named.score(X, np.pad(DENSE, ((0, 0), (0, 1))))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        named.score(X, LISTS[:-1])


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


# ----------------------------------------------------------------------------------------- fit again, and not


@pytest.mark.parametrize("method", ["predict", "predict_topk", "decision_function", "label_lists"])
def test_unfitted_estimators_say_so(method):
    with pytest.raises(NotFittedError, match="MACHClassifier instance is not fitted yet"):
        getattr(MACHClassifier(), method)(X)
    with pytest.raises(NotFittedError):
        MACHClassifier().score(X, DENSE)


def test_fit_again_replaces_everything():
    estimator = small().fit(pd.DataFrame(X.toarray(), columns=list("abcdefghijkl")), LISTS)
    estimator.fit(X[:, :5], FIRST)
    assert estimator.n_features_in_ == 5
    assert not hasattr(estimator, "feature_names_in_")
    assert_same_model(estimator, small().fit(X[:, :5], FIRST))


class Interrupt(Exception):
    pass


@pytest.mark.parametrize("error", [signal.SIGINT, Interrupt], ids=["Ctrl-C", "error"])
def test_a_fit_that_does_not_end_changes_nothing(error, monkeypatch):
    estimator, fresh = small().fit(X, LISTS), small()
    kept, predicted = vars(estimator).copy(), estimator.predict(X)
    usual, handler = Progress.add_step, signal.getsignal(signal.SIGINT)

    def stop(progress, loss, documents):
        usual(progress, loss, documents)
        if progress.batch == 3:
            if error is Interrupt:
                raise Interrupt
            signal.raise_signal(error)

    monkeypatch.setattr(Progress, "add_step", stop)
    for one in (estimator, fresh):
        with pytest.raises((Interrupt, mach_ext.training.TrainingInterrupted)):
            one.fit(X[:, :5], FIRST)
    assert signal.getsignal(signal.SIGINT) is handler
    assert vars(estimator) == kept
    assert (estimator.predict(X) != predicted).nnz == 0
    with pytest.raises(NotFittedError):
        fresh.predict(X)
    monkeypatch.undo()
    assert_same_model(estimator.fit(X[:, :5], FIRST), fresh.fit(X[:, :5], FIRST))


def test_fit_leaves_threads_and_generators_alone():
    with num_threads(2):
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        small(hidden_dropout=0.2, epochs=1).fit(X, DENSE).predict(X)
        assert torch.rand(3).equal(expected)
        assert torch.get_num_threads() == 2


# -------------------------------------------------------------------------------------- scikit-learn at work


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "joblib"])
@pytest.mark.parametrize("y", [DENSE, LISTS, FIRST], ids=["dense", "lists", "classes"])
def test_copies_predict_the_same_bits(how, y, tmp_path):
    estimator = small(threshold=0.0).fit(X, y)
    estimator.predict(X)
    if how == "joblib":
        joblib.dump(estimator, tmp_path / "file")
        copied = joblib.load(tmp_path / "file")
    else:
        copied = copy.deepcopy(estimator) if how == "deepcopy" else pickle.loads(pickle.dumps(estimator))
    assert_same_model(copied, estimator)
    assert copied.get_params() == estimator.get_params()
    np.testing.assert_array_equal(copied.decision_function(X), estimator.decision_function(X))
    np.testing.assert_array_equal(dense(copied.predict(X)), dense(estimator.predict(X)))
    assert copied.score(X, y) == estimator.score(X, y)


def test_the_model_alone_is_saved_by_its_own_method(fitted, tmp_path):
    fitted.model_.save(tmp_path)
    scores, labels = mach_ext.load(tmp_path).predict(X, 3)
    np.testing.assert_array_equal(scores, fitted.predict_topk(X, 3)[0])
    np.testing.assert_array_equal(labels, fitted.predict_topk(X, 3)[1])


def test_pipeline_on_texts():
    pipeline = make_pipeline(TfidfVectorizer(), small(k=1)).fit(TEXTS, LISTS)
    assert pipeline.score(TEXTS, LISTS) > 0.9
    assert pipeline[-1].label_lists(pipeline.predict(["one cat", "two dogs and a dog"])) == [["cat"], ["dog"]]
    assert (
        pipeline.set_params(machclassifier__threshold=-np.inf, machclassifier__k=None).predict(TEXTS[:1]).nnz
        == L
    )


def test_set_output_changes_nothing():
    frame = pd.DataFrame(X.toarray(), columns=[f"word {d}" for d in range(D)])
    pipeline = make_pipeline(StandardScaler(), small()).set_output(transform="pandas").fit(frame, DENSE)
    assert list(pipeline[-1].feature_names_in_) == list(frame.columns)
    with sklearn.config_context(transform_output="pandas"):
        assert isinstance(pipeline.predict(frame), np.ndarray)


CROSS_VALIDATED = {
    "classes": (FIRST % 3, 3),
    "dense": (DENSE, 3),
    "lists": (LISTS, KFold(3)),  # scikit-learn looks at y where cv is a number, and refuses lists
    "objects": (np.array([*LISTS, []], dtype=object)[:-1], KFold(3)),
}


@pytest.mark.parametrize("form", CROSS_VALIDATED)
def test_cross_val_score(form):
    y, cv = CROSS_VALIDATED[form]
    scores = cross_val_score(small(), X, y, cv=cv)
    assert scores.min() > 0.5


def test_grid_search_and_other_scorers():
    search = GridSearchCV(small(), {"k": [1, 2, 3]}, scoring="f1_micro", cv=3).fit(X, sp.csr_matrix(DENSE))
    assert search.best_params_["k"] > 1
    assert search.predict(X).shape == (N, L)
    predicted = cross_val_predict(small(threshold=0.0), X, sp.csr_matrix(DENSE), cv=3)
    assert f1_score(DENSE, predicted, average="micro") > 0.6
    decisions = cross_val_predict(small(), X, DENSE, cv=3, method="decision_function")
    assert decisions.shape == (N, L)


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_grid_search_in_two_workers(backend):
    grid = {"machclassifier__hidden_size": [8, 16]}
    search = GridSearchCV(make_pipeline(TfidfVectorizer(), small(epochs=5)), grid, cv=KFold(2))
    alone = clone(search).fit(TEXTS, LISTS)
    threads = {"inner_max_num_threads": 1} if backend == "loky" else {}
    with joblib.parallel_config(backend=backend, **threads):
        together = clone(search).set_params(n_jobs=2).fit(TEXTS, LISTS)
    if backend == "loky":
        get_reusable_executor().shutdown(wait=True)
    np.testing.assert_array_equal(
        together.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"]
    )
    assert_same_model(together.best_estimator_[-1], alone.best_estimator_[-1])


def test_module_is_loaded_when_first_asked_for():
    assert mach_ext.sklearn is sys.modules["mach_ext.sklearn"]
    assert "sklearn" not in mach_ext.__all__  # `from mach_ext import *` must not hide scikit-learn


def test_no_warning_by_default():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MACHClassifier().fit(X, LISTS)
