"""MACHClassifier: exact predictions, scores of all labels, and P@1."""

import copy

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from estimator_cases import DENSE, FIRST, LISTS, NAMES, ROWS, L, N, X, brief, shared_fit

import mach_ext
from mach_ext import data, metrics
from mach_ext._memory import available
from mach_ext.sklearn import MACHClassifier, _decoding, classifier

pytestmark = pytest.mark.usefixtures("one_thread")


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
@pytest.mark.parametrize(("first_k", "last_k"), [(1, 256), (1, 1), (16, 256)])
@pytest.mark.parametrize("merge", ["mean_logit", "mean_prob", "mean_logprob", "min_prob", "median_prob"])
def test_threshold_is_exact(merge, first_k, last_k, answers, monkeypatch):
    """Against all scores, whatever k the search starts and ends with and however little it may hold."""
    monkeypatch.setattr(_decoding, "_LAST_K", last_k)
    monkeypatch.setattr(_decoding, "_FIRST_K", first_k)
    monkeypatch.setattr(_decoding, "_ANSWERS", answers)
    estimator = copy.copy(shared_fit(merge=merge))
    scores = estimator.decision_function(X)
    for threshold in [*np.quantile(scores, [0.0, 0.3, 0.8, 1.0]), scores.max() + 1, -np.inf, np.inf]:
        predicted = estimator.set_params(threshold=float(threshold)).predict(X)
        assert (predicted.toarray() == (scores >= threshold)).all()
        limited = copy.copy(estimator).set_params(k=2)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :2]
        expected = np.zeros((N, L), bool)
        np.put_along_axis(expected, best, True, axis=1)
        assert (limited.predict(X).toarray() == (expected & (scores >= threshold))).all()


@pytest.mark.parametrize("threshold", [10**400, "0.5", np.array([0.5]), np.bool_(True)], ids=type)
def test_bad_thresholds_are_refused(threshold, fitted):
    with pytest.raises(ValueError, match="MACHClassifier: threshold must be None or a number, got"):
        copy.copy(fitted).set_params(threshold=threshold).predict(X)


def test_many_labels_that_reach_a_threshold_are_refused_where_memory_is_short(fitted, monkeypatch):
    everything = copy.copy(fitted).set_params(threshold=-np.inf)
    monkeypatch.setattr(_decoding, "_PAIR_BYTES", 1 << 20)  # as if there were many more
    monkeypatch.setattr(available, "available_memory", lambda device="cpu", swap=False: 1 << 20)
    monkeypatch.setattr(available, "free_in_heap", lambda: 0)
    with pytest.raises(MemoryError, match=r"MACHClassifier.predict: .*labels that reach .*raise threshold"):
        everything.predict(X)


def test_threshold_is_on_the_scale_of_the_merge():
    """Mean logit: 0 where buckets have probability 1/2. The adjustment shifts it, unless tau is 0."""
    documents = data.check_csr(X)
    tensors = [torch.from_numpy(a) for a in (documents.data, documents.indices, documents.indptr)]
    logit = shared_fit(make=brief, tau=0.0)
    bucket_logits = logit.model_.label_logits(*tensors, torch.arange(L)).detach().numpy()  # [N, L, R]
    assert not logit.model_.logit_adjustment.any()
    np.testing.assert_allclose(logit.decision_function(X), bucket_logits.mean(2), rtol=1e-4, atol=1e-5)
    for merge, score in (
        ("mean_prob", (1 / (1 + np.exp(-bucket_logits))).mean(2)),
        ("mean_logprob", -np.log1p(np.exp(-bucket_logits)).mean(2)),
    ):
        other = shared_fit(make=brief, merge=merge)  # training does not depend on the merge
        np.testing.assert_allclose(other.decision_function(X), score, rtol=1e-4, atol=1e-5)
    assert shared_fit(make=brief).model_.logit_adjustment.any()


def test_batches_of_a_threshold_and_of_all_scores_are_those_of_predict(monkeypatch):
    """Several batches, the last of them shorter: the same bits as `MACH.predict` gives."""
    for module in (_decoding, mach_ext._prediction):
        monkeypatch.setattr(module, "predict_batch", lambda R, B, is_int8=False: 7)
    estimator = copy.copy(shared_fit()).set_params(threshold=-1.0)
    scores, labels = estimator.model_.predict(X, L)
    np.testing.assert_array_equal(np.take_along_axis(estimator.decision_function(X), labels, 1), scores)
    expected = np.zeros((N, L), bool)
    np.put_along_axis(expected, labels, scores >= -1.0, axis=1)
    assert (estimator.predict(X).toarray() == expected).all()


def test_classes_are_predicted_whatever_k_and_threshold():
    estimator = brief(k=5, threshold=1e9).fit(X, FIRST % 3)
    assert (estimator.predict(X) == brief().fit(X, FIRST % 3).predict(X)).all()


def test_predict_topk(fitted):
    named = shared_fit("lists")
    scores, labels = named.predict_topk(X, k=3)
    expected_scores, ids = named.model_.predict(X, 3)
    np.testing.assert_array_equal(scores, expected_scores)
    assert (labels == NAMES[ids]).all()
    assert named.predict_topk(X)[1].shape == (N, 5)
    assert brief(k=2).fit(X, FIRST).predict_topk(X)[1].shape == (N, 2)
    with pytest.raises(ValueError, match=r"MACHClassifier: k must be in 1 ... L=8, got 9"):
        fitted.predict_topk(X, k=9)


def test_label_lists(fitted):
    named = copy.copy(shared_fit("lists")).set_params(threshold=0.0)
    predicted = named.predict(X)
    lists = named.label_lists(predicted)
    assert lists == [NAMES[row.nonzero()[0]].tolist() for row in predicted.toarray()]
    assert named.label_lists(predicted.toarray()) == lists
    assert fitted.label_lists(sp.csr_matrix((2, L))) == [[], []]
    with pytest.raises(ValueError, match=r"indicator must have L=8 columns, got shape \(1, 3\)"):
        named.label_lists([[0, 1, 1]])
    with pytest.raises(ValueError, match="indicator must hold 0 and 1 alone, got 2"):
        named.label_lists(predicted * 2)
    for lists, dtype in ((LISTS, "object"), (NAMES, "<U3"), (None, "object")):
        message = rf"indicator must be an indicator \[N, L\] of 0 and 1, got dtype {dtype} and shape"
        with pytest.raises(ValueError, match=message):
            named.label_lists(lists)


def test_dense_predictions_are_refused_where_memory_is_short(monkeypatch):
    Y = np.zeros((4, 2000), int)
    Y[:, ::500] = 1
    estimator = MACHClassifier(svm=True).fit(np.eye(4), Y)
    monkeypatch.setattr(available, "available_memory", lambda device="cpu", swap=False: 1 << 26)
    monkeypatch.setattr(available, "free_in_heap", lambda: 0)
    with pytest.raises(MemoryError, match=r"MACHClassifier.predict: .*fit on a sparse indicator"):
        estimator.predict(np.eye(4)[np.zeros(8000, int)])


# ----------------------------------------------------------------------------------------- decision_function


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
    rule = "MACHClassifier: sample_weight must hold N=60 finite numbers"
    for wrong, message in [
        (np.zeros(N), "whose sum is not 0, got a sum of 0.0"),
        (np.full(N, np.nan), "whose sum is not 0, got a sum of nan"),
        (np.ones((N, 1)), r", got dtype float64 and shape \(60, 1\)"),
        (NAMES[FIRST], r", got dtype <U3 and shape \(60,\)"),
    ]:
        with pytest.raises(ValueError, match=f"{rule}.*{message}"):
            fitted.score(X, Y, sample_weight=wrong)


def test_unknown_labels_count_as_misses():
    named = shared_fit("lists")
    whole = named.score(X, LISTS)
    assert named.score(X, [[*labels, "yak"] for labels in LISTS]) == whole > 0.9
    assert named.score(X, [["yak"], *LISTS[1:]]) == pytest.approx(whole - 1 / N)
    assert shared_fit("classes").score(X, ["yak"] * N) == 0.0
    with pytest.raises(ValueError, match=r"y must have L=8 columns, got shape \(60, 9\)"):
        named.score(X, np.pad(DENSE, ((0, 0), (0, 1))))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        named.score(X, LISTS[:-1])
