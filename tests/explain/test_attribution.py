"""Attributions: against dense Integrated Gradients, scores against the model's, blocks and baselines."""

import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from explain_cases import LABELS
from test_nn import ARCHITECTURES, B, D, L, R, build, dense_forward, draw, model_of, randomise, tensors

import mach_ext
from mach_ext import explain
from mach_ext.explain import _path

pytestmark = pytest.mark.usefixtures("one_thread")


def dense_integrated_gradients(model, x, baseline, label, steps):
    """The definition, all D features, by the midpoint rule."""
    at = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    x, baseline = (torch.from_numpy(v.toarray()[0]).double() for v in (x, baseline))
    points = (baseline + at[:, None] * (x - baseline)).requires_grad_()
    double = mach_ext.MACH(**model.configuration()).double()
    double.load_parameters({k: v.double() for k, v in model.named_parameters()})
    buckets = double.hash.buckets[:, label].long()
    score = dense_forward(double, points)[:, torch.arange(R), buckets].mean(1)
    (gradient,) = torch.autograd.grad(score.sum(), points)
    return ((x - baseline) * gradient.mean(0)).numpy()


@pytest.mark.parametrize("other_baseline", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_exact_is_what_dense_integrated_gradients_converge_to(name, other_baseline):
    model, X = model_of(name), draw(n=2)
    empty = scipy.sparse.csr_matrix((1, D), dtype=np.float32)
    baseline = X[1] if other_baseline else empty
    result = explain.integrated_gradients(model, X[0], LABELS, baseline=baseline if other_baseline else None)
    assert result.method == "exact"
    assert (np.abs(result.delta) <= 1e-5 * (np.abs(result.scores) + np.abs(result.baseline_scores))).all()
    ours = np.zeros((3, D))
    ours[:, result.features] = result.attributions
    errors = []
    for steps in (30, 300, 3000):
        dense = np.stack([dense_integrated_gradients(model, X[0], baseline, i, steps) for i in LABELS])
        errors.append(np.abs(dense - ours).max() / np.abs(ours).max())
    assert errors[2] < 1e-3
    assert errors[2] < max(errors[0], 1e-6)
    outside = np.setdiff1d(np.arange(D), result.features)
    assert (dense[:, outside] == 0).all()  # sums over the union of the supports are the whole


@pytest.mark.parametrize("merge", ["mean_prob", "median_prob"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_steps_double_until_the_tolerance_is_met(name, merge):
    model, X = model_of(name, merge=merge), draw(n=2)
    for baseline in (None, X[1]):
        result = explain.integrated_gradients(
            model, X[0], LABELS, score="model", baseline=baseline, max_steps=8192, tolerance=1e-3
        )
        bound = np.abs(result.scores) + np.abs(result.baseline_scores)
        assert (np.abs(result.delta) <= 1e-3 * bound).all()
        assert result.n_steps >= 64
    with pytest.warns(explain.StepsWarning, match="max_steps 32 do not meet tolerance 1e-09"):
        explain.integrated_gradients(model, X[0], LABELS, score="model", max_steps=32, tolerance=1e-9)


def test_scores_are_the_models():
    for name in ARCHITECTURES:
        model, X = model_of(name, merge="mean_prob", hidden_dropout=0.0).train(), draw(n=2)
        for score in ("logit", "model"):
            result = explain.integrated_gradients(
                model, X[0], LABELS, score=score, baseline=X[1], method="gausslegendre", n_steps=3
            )
            expected = model.label_scores(*tensors(X), torch.tensor(LABELS), score).detach().double().numpy()
            np.testing.assert_allclose(result.scores, expected[0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(result.baseline_scores, expected[1], rtol=1e-4, atol=1e-5)
        assert model.training


def test_blocks_of_labels_and_features_change_nothing(monkeypatch):
    for name in ARCHITECTURES:
        model, X = model_of(name, merge="mean_prob"), draw(n=1, density=0.5)
        for options in ({}, {"score": "model", "n_steps": 7}):
            whole = explain.integrated_gradients(model, X, np.arange(0, L, 8), **options)
            with monkeypatch.context() as patch:
                patch.setattr(_path, "BLOCK_BYTES", 2048)
                parts = explain.integrated_gradients(model, X, np.arange(0, L, 8), **options)
            np.testing.assert_allclose(whole.attributions, parts.attributions, rtol=1e-9, atol=1e-12)


def test_mean_document_as_the_baseline():
    model, X = model_of(), draw(n=5)
    result = explain.integrated_gradients(model, X[0], LABELS, baseline=X.mean(0))
    assert np.abs(result.delta).max() < 1e-5
    assert set(result.features) == set(X.indices)
    np.testing.assert_allclose(result.baselines, np.asarray(X.mean(0))[0, result.features], rtol=1e-6)
    same = explain.integrated_gradients(model, X[0], LABELS, baseline=X[0])
    assert (same.attributions == 0).all()


def test_top_k_of_many_documents():
    model, X = model_of(), draw(n=4)
    _, labels = model.predict(X, 3)
    found = list(explain.explain_topk(model, X, 3, texts=list("abcd")))
    assert [result.text for result in found] == list("abcd")
    for n, result in enumerate(found):
        assert (result.labels == labels[n]).all()
        assert (result.features == X[n].indices).all()
        assert np.abs(result.delta).max() < 1e-5


def test_bfloat16_and_float64_weights():
    X = draw(n=1)
    wide = explain.integrated_gradients(model_of().double(), X, LABELS)
    assert np.abs(wide.delta).max() < 1e-12
    np.testing.assert_allclose(
        wide.attributions, explain.integrated_gradients(model_of(), X, LABELS).attributions, rtol=1e-4
    )
    narrow = explain.integrated_gradients(model_of().bfloat16(), X, LABELS)
    assert np.abs(narrow.delta).max() < 1e-4


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_contrast(name):
    model, X = model_of(name), draw(n=1)
    pair = explain.integrated_gradients(model, X, [3, 8])
    found = explain.contrast(model, X, 3, 8)
    np.testing.assert_allclose(found.attributions[0], pair.attributions[0] - pair.attributions[1])
    assert found.scores[0] == pair.scores[0] - pair.scores[1]
    assert abs(found.delta[0]) < 1e-5
    assert (found.labels.tolist(), found.rival) == ([3], 8)
    table = model.hash.buckets.clone()
    table[:, 8] = table[:, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mach_ext.CollisionWarning)
        twins = mach_ext.LabelHash.from_buckets(table, B)
    model = randomise(build(name, hash=twins))
    assert np.abs(explain.contrast(model, X, 3, 8).attributions).max() < 1e-12
