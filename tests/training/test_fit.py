"""fit: every architecture learns, in either precision; a seed decides the bits; bad arguments are refused."""

import copy

import numpy as np
import pytest
import scipy.sparse
import torch
from training_cases import ARCHITECTURES, X, Y, build, options, same_bits, weights

import mach_ext


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_learns(name, optimizer):
    model = mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, **ARCHITECTURES[name])
    rate = {"adam": 0.02, "adagrad": 0.8 if name == "linear" else 0.08}[optimizer]
    record = mach_ext.fit(
        model, X, Y, epochs=40, batch_size=32, optimizer=optimizer, learning_rate=rate, progress=False,
        encoder_learning_rate=rate,
    )  # fmt: skip
    assert not model.training
    assert record.history[-1]["loss"] < record.history[0]["loss"] * 0.7
    assert mach_ext.metrics.precision_at_k(Y, model.predict(X, 1)[1], 1) > 0.9


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_learns_in_bfloat16_with_float32_weights(name):
    model = mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, **ARCHITECTURES[name])
    rate = 0.5 if name == "linear" else 0.02
    exact = copy.deepcopy(model)
    settings = {**options, "learning_rate": rate, "encoder_learning_rate": rate, "schedule": "constant"}
    record = mach_ext.fit(model, X, Y, precision="bfloat16", **{**settings, "epochs": 15})
    other = mach_ext.fit(exact, X, Y, **{**settings, "epochs": 1})
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert record.history[0]["loss"] == pytest.approx(other.history[0]["loss"], rel=0.02)
    assert record.history[0]["loss"] != other.history[0]["loss"]
    assert mach_ext.metrics.precision_at_k(Y, model.predict(X, 1)[1], 1) > 0.8


def test_bfloat16_is_for_float32_models():
    with pytest.raises(ValueError, match="fit: precision is for float32 models"):
        mach_ext.fit(build().double(), X, Y, precision="bfloat16", **options)
    with pytest.raises(ValueError, match="fit: precision must be one of float32, tf32, bfloat16, got 'half'"):
        mach_ext.fit(build(), X, Y, precision="half", **options)
    message = "fit: precision tf32 needs a CUDA device, this model is on cpu; float32 and bfloat16 work"
    with pytest.raises(ValueError, match=message):
        mach_ext.fit(build(), X, Y, precision="tf32", **options)
    linear = mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, hidden_size=0)
    with pytest.raises(ValueError, match="fit: precision tf32 is for the dense products of a hidden layer"):
        mach_ext.fit(linear, X, Y, precision="tf32", **options)


def test_same_seed_same_bits_and_another_seed_others():
    first, second, other = build(), build(), build()
    before = torch.random.get_rng_state()
    mach_ext.fit(first, X, Y, **options)
    assert torch.equal(torch.random.get_rng_state(), before)  # the caller's generator is left alone
    torch.manual_seed(99)
    mach_ext.fit(second, X, Y, **options)
    mach_ext.fit(other, X, Y, **options, seed=1)
    assert same_bits(weights(first), weights(second))
    assert not same_bits(weights(first), weights(other))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"X": X.toarray().tolist()}, TypeError, "fit: X: must be a SciPy sparse matrix"),
        ({"X": X[:, :59]}, ValueError, r"fit: X must have D=60 columns, got shape \(300, 59\)"),
        ({"Y": Y[:, :59]}, ValueError, r"fit: Y must have the model's 60 columns, got shape \(300, 59\)"),
        ({"Y": Y[:299]}, ValueError, "as many rows, got 300 and 299"),
        ({"X_dev": X}, ValueError, "X_dev and Y_dev must be given together"),
        ({"X": X[:0], "Y": Y[:0]}, ValueError, "needs at least one document, got N=0"),
        ({"X_dev": X[:0], "Y_dev": Y[:0]}, ValueError, "X_dev needs at least one document, got N=0"),
        ({"Y": -Y}, ValueError, "labels must not be negative"),
        ({"resume": True}, ValueError, "resume needs the output folder"),
        ({"epochs": -1}, ValueError, "epochs must be an int of at least 0, got -1"),
        ({"batch_size": 0}, ValueError, "batch_size must be an int of at least 1, got 0"),
        ({"optimizer": "sgd"}, ValueError, "optimizer must be one of adam, adagrad, got 'sgd'"),
        ({"schedule": "cosine"}, ValueError, "schedule must be one of linear, constant"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate must be finite"),
        ({"gradient_threshold": 1.0}, ValueError, r"gradient_threshold must be in \[0, 1\), got 1.0"),
        ({"patience": 0}, ValueError, "patience must be None or at least 1, got 0"),
        ({"X_dev": X, "Y_dev": Y, "metric": "F1"}, ValueError, "metric must be one of P@1, .* got 'F1'"),
        ({"momentum": 0.9}, TypeError, "unknown hyper-parameter 'momentum'"),
    ],
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        mach_ext.fit(build(), **{"X": X, "Y": Y, **options, **change})


def test_documents_without_features_or_labels_are_fine():
    X_holes, Y_holes = X.tolil(), Y.tolil()
    X_holes[0], Y_holes[1] = 0, 0
    record = mach_ext.fit(
        build(), scipy.sparse.csr_matrix(X_holes), scipy.sparse.csr_matrix(Y_holes), **options
    )
    assert np.isfinite(record.history[-1]["loss"])


@pytest.mark.parametrize("train", [mach_ext.fit, mach_ext.fit_svm])
def test_a_head_is_trained_as_linear_mach(train):
    head = mach_ext.MACHHead(60, 60, num_repetitions=8, num_buckets=16)
    message = rf"^{train.__name__}: model must be a mach_ext.MACH, got MACHHead; pass .*linear_model\(head\)$"
    with pytest.raises(TypeError, match=message):
        train(head, X, Y, progress=False)
    with pytest.raises(TypeError, match=r"model must be a mach_ext.MACH, got Linear$"):
        train(torch.nn.Linear(2, 3), X, Y, progress=False)
    before = head.bucket_weight.clone()
    train(mach_ext.nn.linear_model(head), X, Y, progress=False)
    assert not torch.equal(head.bucket_weight, before)
