"""MACHClassifier: fitted again, copied, in pipelines and in searches."""

import copy
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
from estimator_cases import (
    DENSE,
    FIRST,
    FORMS,
    LISTS,
    TEXTS,
    D,
    L,
    N,
    X,
    assert_same_model,
    brief,
    dense,
    shared_fit,
    small,
)
from helpers import num_threads
from joblib.externals.loky import get_reusable_executor
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import mach_ext
from mach_ext.sklearn import MACHClassifier
from mach_ext.training.progress import Progress

pytestmark = pytest.mark.usefixtures("one_thread")


# ---------------------------------------------------------------------------------------- fit again, and not


@pytest.mark.parametrize("method", ["predict", "predict_topk", "decision_function", "label_lists"])
def test_unfitted_estimators_say_so(method):
    with pytest.raises(NotFittedError, match="MACHClassifier instance is not fitted yet"):
        getattr(MACHClassifier(), method)(X)
    with pytest.raises(NotFittedError):
        MACHClassifier().score(X, DENSE)


def test_fit_again_replaces_everything():
    estimator = brief().fit(pd.DataFrame(X.toarray(), columns=list("abcdefghijkl")), LISTS)
    estimator.fit(X[:, :5], FIRST)
    assert estimator.n_features_in_ == 5
    assert not hasattr(estimator, "feature_names_in_")
    assert_same_model(estimator, brief().fit(X[:, :5], FIRST))


class Interrupt(Exception):
    pass


@pytest.mark.parametrize("error", [signal.SIGINT, Interrupt], ids=["Ctrl-C", "error"])
def test_a_fit_that_does_not_end_changes_nothing(error, monkeypatch):
    estimator, fresh = brief().fit(X, LISTS), brief()
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
        brief(hidden_dropout=0.2).fit(X, DENSE).predict(X)
        assert torch.rand(3).equal(expected)
        assert torch.get_num_threads() == 2


# -------------------------------------------------------------------------------------- scikit-learn at work


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "joblib"])
@pytest.mark.parametrize("form", ["dense", "lists", "classes"])
def test_copies_predict_the_same_bits(how, form, tmp_path):
    estimator, y = shared_fit(form, threshold=0.0), FORMS[form]
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
    pipeline = make_pipeline(StandardScaler(), brief()).set_output(transform="pandas").fit(frame, DENSE)
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
    search = GridSearchCV(small(), {"k": [1, 2]}, scoring="f1_micro", cv=2).fit(X, sp.csr_matrix(DENSE))
    assert search.best_params_["k"] > 1
    assert search.predict(X).shape == (N, L)
    predicted = cross_val_predict(small(threshold=0.0), X, sp.csr_matrix(DENSE), cv=2)
    assert f1_score(DENSE, predicted, average="micro") > 0.6
    decisions = cross_val_predict(brief(), X, DENSE, cv=2, method="decision_function")
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


def test_a_race_chooses_as_in_train(tmp_path):
    """The same contenders, the same winner and the same bits."""
    rng = np.random.default_rng(0)
    of = rng.integers(0, 12, 2400)
    documents = sp.hstack(
        [sp.csr_matrix(np.eye(12)[of]), sp.random(2400, 20, 0.2, random_state=rng)],
        format="csr", dtype=np.float32,
    )  # fmt: skip
    labels = sp.csr_matrix(np.eye(12)[of])
    given = {"num_repetitions": 8, "progress": False}
    dataset = mach_ext.data.Dataset("made", "made", mach_ext.data.Split(documents, labels))
    run = mach_ext.train(dataset, output=tmp_path / "run", evaluate=False, **given)
    classifier = MACHClassifier(**given).fit(documents, labels)
    assert classifier.race_ == run.info()["race"]
    assert len(classifier.race_["contenders"]) == 4
    for one, other in zip(run.model.parameters(), classifier.model_.parameters(), strict=True):
        assert one.equal(other)
    assert (
        MACHClassifier(**given, choice="rule", hidden_size=8, epochs=1).fit(documents, labels).race_ is None
    )
    with pytest.raises(ValueError, match="choice must be one of race, rule, got 'luck'"):
        MACHClassifier(choice="luck").fit(documents, labels)
