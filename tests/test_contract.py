"""The public API as the architecture promises it: names, argument order, shapes, one call each."""

import numpy as np
import scipy.sparse
import torch

import mach_ext
from mach_ext import functional as F

N, D, L, R, B, H, m, k = 5, 40, 70, 3, 30, 8, 4, 6


def documents():
    X = scipy.sparse.random(N, D, density=0.2, format="csr", dtype=np.float32, random_state=0)
    return X, [torch.from_numpy(a) for a in (X.data, X.indices, X.indptr)]


def labels_csr():
    Y = scipy.sparse.random(N, L, density=0.05, format="csr", dtype=np.float32, random_state=1)
    return Y, [torch.from_numpy(a) for a in (Y.indices, Y.indptr)]


def test_label_hash():
    hash = mach_ext.LabelHash(L, B, R, 0)
    assert hash.buckets.shape == (R, L)
    assert hash.buckets.dtype == torch.int32
    assert mach_ext.LabelHash.from_buckets(hash.buckets, B).buckets.equal(hash.buckets)
    assert hash.diagnostics().colliding_pairs == 0


def test_functional():
    _, X = documents()
    _, Y = labels_csr()
    hash = mach_ext.LabelHash(num_labels=L, num_buckets=B, num_repetitions=R, seed=0)
    encoder, encoder_bias = torch.randn(D, H), torch.randn(H)
    weight, bias = torch.randn(R, H, B), torch.randn(R, B)
    hidden = F.sparse_linear(*X, encoder, bias=encoder_bias, activation="relu", sparse_grad=False)
    assert hidden.shape == (N, H)
    assert F.bucket_logits(hidden, weight, bias).shape == (N, R, B)
    assert F.bucket_logits(torch.randn(N, R, H), weight, bias).shape == (N, R, B)
    logits = F.bucket_forward(*X, encoder, encoder_bias, weight, bias)
    assert logits.shape == (N, R, B)
    assert F.bucket_forward(*X, None, None, torch.randn(R, D, B), bias).shape == (N, R, B)
    assert F.label_logits(hidden, weight, bias, hash, torch.arange(m)).shape == (N, m, R)
    assert F.label_logits(hidden, weight, bias, hash, torch.arange(m).expand(N, m)).shape == (N, m, R)
    assert F.bucket_bce(hidden, weight, bias, *Y, hash).shape == ()
    assert F.linear_bucket_bce(*X, torch.randn(R, D, B), bias, *Y, hash, sparse_grad=False).shape == ()
    for merge in ("mean", "min", "median"):
        assert F.merge_scores(logits, hash, torch.arange(m), merge=merge).shape == (N, m)
        values, labels = F.merge_topk(logits, hash, k, merge=merge)
        assert values.shape == labels.shape == (N, k)
        assert values.dtype == torch.float32
        assert labels.dtype == torch.int64


def test_model(tmp_path):
    X, X_csr = documents()
    for encoder in ("shared", "independent"):
        model = mach_ext.MACH(
            D, L, num_repetitions=R, num_buckets=B, hidden_size=H, encoder=encoder, merge="mean_logit", seed=1
        )
        assert model(*X_csr).shape == (N, R, B)
        for score in ("logit", "model"):
            assert model.label_scores(*X_csr, torch.arange(m), score=score).shape == (N, m)
    scores, labels = model.predict(X, k)
    assert scores.shape == labels.shape == (N, k)
    model.save(tmp_path)
    assert (mach_ext.load(tmp_path).predict(X, k)[1] == labels).all()


def test_explain():
    X, _ = documents()
    model = mach_ext.MACH(D, L, num_repetitions=R, num_buckets=B, hidden_size=H)
    forward, inputs, args = mach_ext.explain.captum_inputs(model, X, labels=list(range(m)))
    assert inputs.shape == args[0].shape == (N, np.diff(X.indptr).max())
    assert forward(inputs, *args).shape == args[1].shape == (N, m)
    result = mach_ext.explain.integrated_gradients(
        model, X[0], list(range(m)), method="exact", n_steps=None, score="logit"
    )
    assert result.attributions.shape == (m, X[0].nnz)


def test_metrics():
    Y, _ = labels_csr()
    predictions = np.argsort(np.random.default_rng(0).random((N, L)), axis=1)[:, :10]
    result = mach_ext.metrics.evaluate(
        Y, predictions, inverse_propensity=mach_ext.metrics.inverse_propensity(Y)
    )
    assert {"P@1", "nDCG@3", "PSP@5", "PSnDCG@5", "R@10"} <= set(result)
