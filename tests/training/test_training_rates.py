"""Rates and eps follow the documents' length: the scale of the documents does not matter."""

import json

import numpy as np
import pytest
import scipy.sparse
import torch
from training_cases import ARCHITECTURES, X, Y, build, options, same_bits, weights

import mach_ext
from mach_ext import training


@pytest.mark.parametrize(("eps", "as_far"), [(1e-8, True), (1.0, False)])
def test_a_large_eps_keeps_rare_features_from_moving_as_far_as_frequent_ones(eps, as_far):
    """Feature 0 is in one document of 50, feature 1 in all, beside it and as large."""
    Y = scipy.sparse.csr_matrix(np.eye(2)[np.zeros(50, int)])
    X = scipy.sparse.csr_matrix(np.c_[np.arange(50) == 0, np.ones(50)], dtype=np.float32)
    model = mach_ext.MACH(2, 2, num_repetitions=2, num_buckets=4, hidden_size=8)
    before = model.encoder_weight.detach().clone()
    mach_ext.fit(model, X, Y, epochs=1, batch_size=50, encoder_eps=eps, progress=False)
    rare, frequent = (model.encoder_weight.detach() - before).abs().amax(1)
    assert (rare > 0.9 * frequent) if as_far else (0 < rare < 0.1 * frequent)


@pytest.mark.parametrize("name", ["shared", "independent"])
@pytest.mark.parametrize(("eps", "as_far"), [(1e-8, True), (1.0, False)])
def test_a_large_eps_keeps_buckets_from_falling_as_far_as_they_rise(name, eps, as_far):
    """Of 16 buckets, one is positive in all documents and the others in none."""
    Y = scipy.sparse.csr_matrix(np.eye(2)[np.zeros(50, int)])
    X = scipy.sparse.csr_matrix(np.ones((50, 1)), dtype=np.float32)
    model = mach_ext.MACH(1, 2, num_repetitions=2, num_buckets=16, **ARCHITECTURES[name])
    before = model.bucket_bias.detach().clone()
    mach_ext.fit(model, X, Y, epochs=1, batch_size=50, eps=eps, tau=0.0, progress=False)
    moved = model.bucket_bias.detach() - before
    for repetition, bucket in enumerate(model.hash.buckets[:, 0].tolist()):
        up, down = moved[repetition, bucket], -moved[repetition, bucket - 1]
        assert (down > 0.9 * up) if as_far else (0 < down < 0.1 * up)


def test_an_eps_means_the_same_for_any_number_of_repetitions():
    """If eps is all that steps are divided by, a bucket's first step is its gradient, whatever R is."""
    Y = scipy.sparse.csr_matrix(np.eye(2)[np.zeros(50, int)])
    X = scipy.sparse.csr_matrix(np.ones((50, 1)), dtype=np.float32)
    moved = []
    for R in (2, 16):
        model = mach_ext.MACH(1, 2, num_repetitions=R, num_buckets=16, hidden_size=8)
        before = model.bucket_bias.detach().clone()
        mach_ext.fit(model, X, Y, epochs=1, batch_size=50, eps=100.0, tau=0.0, progress=False)
        rise = (model.bucket_bias.detach() - before)[torch.arange(R), model.hash.buckets[:, 0].long()]
        moved.append(rise.mean().item())
    assert moved[0] == pytest.approx(moved[1], rel=0.2)


@pytest.mark.parametrize("name", ["encoder_eps", "eps"])
def test_an_eps_that_vanishes_in_float32_is_refused(name):
    for value in (0, 1e-60, -1e-8, float("nan")):
        with pytest.raises(ValueError, match=f"fit: {name} must be finite and at least 1e-20, got"):
            training.Hyperparameters(**{name: value})


@pytest.mark.parametrize("name", ["shared", "independent"])
def test_the_scale_of_the_documents_does_not_matter(name):
    """8 X with the first weight / 8 is the same model, and takes the same steps, to the bit."""
    models = [mach_ext.MACH(60, 60, num_repetitions=4, num_buckets=16, **ARCHITECTURES[name]) for _ in "ab"]
    with torch.no_grad():
        models[1].encoder_weight /= 8
    for model, scale in zip(models, (1, 8), strict=True):
        mach_ext.fit(model, X * np.float32(scale), Y, epochs=2, batch_size=50, progress=False)
    a, b = map(weights, models)
    b["encoder_weight"] *= 8
    assert same_bits(a, b)


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
@pytest.mark.parametrize("scale", [2**-20, 8, 2**20])
def test_the_scale_of_the_documents_does_not_matter_to_linear_models(optimizer, scale):
    """They start at 0, so as they come."""
    a, b = (mach_ext.MACH(60, 60, num_repetitions=4, num_buckets=16, hidden_size=0) for _ in "ab")
    given = {"epochs": 2, "batch_size": 50, "optimizer": optimizer, "progress": False}
    mach_ext.fit(a, X, Y, **given)
    mach_ext.fit(b, X * np.float32(scale), Y, **given)
    torch.testing.assert_close(b.bucket_weight * scale, a.bucket_weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("documents", ["one long", "some empty", "rounded"])
def test_rates_are_for_most_documents(documents):
    """One long document, rows of stored zeros, lengths up to rounding: rates as for length 1."""
    unit = scipy.sparse.csr_matrix(np.eye(60, dtype=np.float32))
    if documents == "one long":
        unit[0, 0] = 1e6
    elif documents == "some empty":
        unit.data[:40] = 0
    else:
        unit.data *= np.float32(1 - 1e-7)
    assert training.typical_length(unit) == 1.0
    assert training.typical_length(unit[:0]) == 1.0


def test_a_checkpoint_of_rates_for_another_length_is_refused(tmp_path):
    """Runs of before rates followed the documents' length go on where that is 1, only."""
    mach_ext.fit(build(), X, Y, output=tmp_path, **options)
    record = json.loads((tmp_path / "checkpoint.json").read_text())
    for key in ("length", "format", "sha256", "tensors_sha256", "weights_sha256"):
        del record[key]
    (tmp_path / "checkpoint.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"different: length was 1\.0, now 1\.7"):
        mach_ext.fit(build(), X, Y, output=tmp_path, resume=True, **options)
