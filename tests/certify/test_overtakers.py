"""Overtakers: the sweep over all labels leaves out none that its own bound does not exclude."""

import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from certify_cases import cases, right, sampled, sizes_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_nn import ARCHITECTURES, MERGES, D, L, R, draw, model_of

import mach_ext
from mach_ext import certify
from mach_ext.attack import Insert
from mach_ext.certify import _bounds, _overtakers

pytestmark = pytest.mark.usefixtures("one_thread")


def test_many_labels_go_through_the_decode(monkeypatch):
    """With L far above R * B candidates come from an exact decode of a table of bounds: the same answers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mach_ext.CollisionWarning)
        model = mach_ext.MACH(D, 3000, R, 12, hidden_size=8)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    X = draw(n=12)
    Y, grid = right(model, X), [1e-5, 1e-3, 0.01, 0.1]
    many = certify.certify(model, X, Y, grid, zero=False)
    monkeypatch.setattr(_overtakers.Overtakers, "many_labels", False)
    swept = certify.certify(model, X, Y, grid, zero=False)
    np.testing.assert_array_equal(many.overtakers, swept.overtakers)
    assert 0 < many.precision(5)[1] < swept.precision(5)[0] + 1e-12


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_overtakers_are_all_labels_whose_bound_is_not_above_zero(name):
    """The sweep over all labels leaves out none that its own bound, pair by pair, does not exclude."""

    @settings(max_examples=3)
    @given(seed=st.integers(0, 10**6), which=st.integers(0, 10), step=st.integers(0, 3))
    def check(seed, which, step):
        threat, merge = cases(name)[which % len(cases(name))], MERGES[seed % 6 if seed % 6 < 5 else 0]
        model, X = model_of(name, merge=merge, seed=seed % 7), draw(n=1, seed=seed)
        epsilon = sizes_of(threat)[step % len(sizes_of(threat))]
        certificate = certify.certify(model, X, right(model, X), [epsilon], threat_model=threat, zero=False)
        for n, labels in enumerate(certificate.labels):
            for rank in np.flatnonzero(certificate.correct[n]):
                pairs = np.stack((np.full(L, labels[rank]), np.arange(L)), 1)
                everywhere = scipy.sparse.vstack([X[n]] * L, format="csr")
                bounds = certify.margin_bounds(model, everywhere, pairs, epsilon, threat_model=threat)
                count = (np.delete(bounds, labels[rank]) <= 0).sum()
                assert certificate.overtakers[0, n, rank] == min(count, 5)

    check()


def test_twins_keep_their_order():
    """Labels that share all buckets tie always: the lower number stays first, the other one behind it."""
    with pytest.warns(mach_ext.CollisionWarning):
        hash = mach_ext.LabelHash.from_buckets([[0, 1, 0], [0, 1, 0]], 2)
    model = mach_ext.MACH(D, 3, 2, 2, hidden_size=0, hash=hash)
    with torch.no_grad():
        model.bucket_bias.copy_(torch.tensor([[5.0, -5.0], [5.0, -5.0]]))
    X = draw(n=2)
    Y = scipy.sparse.csr_matrix(np.array([[1, 0, 1], [1, 0, 1]]))
    for merge in MERGES:
        model.merge = merge
        certificate = certify.certify(model, X, Y, [0.1], k=3, zero=False)
        assert certificate.labels.tolist() == [[0, 2, 1]] * 2
        assert certificate.overtakers[0].tolist() == [[0, 1, 3]] * 2


def test_fewer_candidates_only_show_less():
    model, X = model_of(), draw(n=10)
    Y = right(model, X)
    few, many = (certify.certify(model, X, Y, [0.01, 0.05, 0.2], candidates=c, zero=False) for c in (1, L))
    assert (few.overtakers >= many.overtakers).all()


@pytest.mark.parametrize(("encoder", "buckets"), [(1e-23, 1e25), (1e12, 1e-25)])
def test_what_vanishes_in_float32_is_covered(encoder, buckets):
    """Products of hidden units that are 0 in float32, squares of weights that are."""
    model, X = model_of("shared"), draw()
    with torch.no_grad():
        model.encoder_bias.zero_()
        model.bucket_bias.zero_()
        model.encoder_weight.mul_(encoder)
        model.bucket_weight.mul_(buckets)
    X = X * np.float32(1e-22) if encoder < 1 else X
    size = 0.03 * float(X.data.max())
    certificate = certify.certify(model, X, right(model, X), [size], threat_model=Insert(m=2), zero=False)
    rng = np.random.default_rng(0)
    for n in range(X.shape[0]):
        ranked = model.predict(sampled(Insert(m=2), X[n], size, rng), 5)[1]
        for label in certificate.labels[n][certificate.certified(5)[0, n]]:
            assert (ranked == label).any(1).all()
    bounds = _bounds.Bounds(model, Insert(m=2))
    for form in bounds.propagation.forms(X, range(X.shape[0]), size):
        top = int(certificate.labels[form.n, 0])
        (kept,) = bounds.candidates.sweep(form, [top])
        others = torch.from_numpy(np.setdiff1d(np.arange(L), [*kept.tolist(), top]))
        lower = bounds.margins.lower(form, top, others)[0]
        assert (lower > 0).all()  # what is left out stays behind
