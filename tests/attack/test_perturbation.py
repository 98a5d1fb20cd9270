"""Perturbations: what is written out, and what the model makes of it without."""

import numpy as np
import pytest
import scipy.sparse
from attack_cases import THREATS, labels_of, true_losses
from test_nn import ARCHITECTURES, D, L, draw, model_of

import mach_ext
from mach_ext.attack import FGSM, PGD, Dense, Random, Support, _dense

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_lazy_is_what_is_written_out(name, threat):
    """Predictions, losses and norms of a perturbation are those of its documents."""
    model, X, Y = model_of(name), draw(), labels_of()
    for kind in (FGSM, PGD, Random):
        found = kind(model, threat).perturb(X, Y, 0.1)
        written = found.to_csr()
        assert written.has_canonical_format
        scores = found.predict(5)[0]
        expected = model.predict(written, 5)
        np.testing.assert_allclose(scores, expected[0], rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(found.loss, true_losses(model, written, Y), rtol=1e-4)
        np.testing.assert_allclose(found.clean_loss, true_losses(model, X, Y), rtol=1e-4)
        change = (written - X).toarray().astype(np.float64)
        sizes = found.norms
        np.testing.assert_allclose(sizes["linf"], np.abs(change).max(1), rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(sizes["l2"], np.linalg.norm(change, axis=1), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(sizes["l1"], np.abs(change).sum(1), rtol=1e-4, atol=1e-6)
        new = (written.toarray() != 0) & (X.toarray() == 0)
        np.testing.assert_array_equal(sizes["added"], new.sum(1))
        if not model.is_linear:
            assert found.hidden().shape[0] == X.shape[0]


def test_epsilon_0_is_the_input_in_its_own_dtype():
    X = scipy.sparse.csr_matrix(draw(), dtype=np.float64)
    X.data += 1e-12  # not a float32
    for model in (model_of(), model_of().double()):
        for threat in ("support", "dense"):
            written = FGSM(model, threat).perturb(X, labels_of(), 0.0).to_csr()
            assert written.dtype == X.dtype
            for name in ("data", "indices", "indptr"):
                assert getattr(written, name).tobytes() == getattr(X, name).tobytes()


def test_a_dense_perturbation_is_checked_by_tiles(monkeypatch):
    model = mach_ext.MACH(500, L, num_repetitions=4, num_buckets=20, hidden_size=8, seed=2)
    monkeypatch.setattr(_dense, "_TILE", 1)  # 64 features at a time
    X = scipy.sparse.random(7, 500, density=0.1, format="csr", dtype=np.float32, random_state=0)
    for threat in (Dense(), Dense(nonnegative=True)):
        found = PGD(model, threat, steps=2, keep_best=False).perturb(X, labels_of(), 0.1)
        assert found.holds()
        project = type(threat).project
        with monkeypatch.context() as patch:  # one feature of the last tile is written wrong
            seen = []

            def spoilt(self, x, y, rows, N, epsilon, seen=seen, project=project):
                seen.append(x.shape[1])
                right = project(self, x, y, rows, N, epsilon)
                if sum(seen) == 500:
                    right[:, -1] += 0.2
                return right

            patch.setattr(Dense, "project", spoilt)
            assert not found.holds()
            assert len(seen) == 8
        batch = found._batches[0]
        batch.directions = [(2 * weight, direction) for weight, direction in batch.directions]
        assert not found.holds()


def test_duplicates_in_a_small_dtype_are_summed_wide():
    """128 + 128 is 0 in a byte; what is written out for epsilon 0, and what holds, is about 256."""
    at = ([0, 0], [3, 3])
    X = scipy.sparse.coo_matrix((np.array([128, 128], np.uint8), at), (1, 5))
    assert Support().holds(X, scipy.sparse.csr_matrix(([256.5], ([0], [3])), (1, 5)), 0.5)
    assert not Support().holds(X, scipy.sparse.csr_matrix((1, 5)), 0.5)
    model = mach_ext.MACH(5, L, num_repetitions=4, num_buckets=20, hidden_size=4)
    found = FGSM(model).perturb(X, scipy.sparse.csr_matrix((1, L)), 0.0)
    assert (found.to_csr() != found.X).nnz == 0


def test_transfer_is_the_written_documents(device):
    model, other, X, Y = model_of().to(device), model_of("linear", seed=3).to(device), draw(), labels_of()
    for threat in ("dense", "insert(2)"):
        found = PGD(model, threat, steps=2).perturb(X, Y, 0.1)
        scores = found.predict(5, other)[0]
        np.testing.assert_allclose(scores, other.predict(found.to_csr(), 5)[0], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("encoder", ["shared", "independent"])
def test_a_perturbation_of_no_documents(encoder):
    model = model_of(encoder)
    found = FGSM(model).perturb(draw()[:0], labels_of()[:0], 0.1)
    assert found.hidden().shape == FGSM(model).perturb(draw(), labels_of(), 0.1).hidden()[:0].shape
    assert found.predict(3)[1].shape == (0, 3)
    with pytest.raises(ValueError, match=r"changes: n must be in \[0, N=0\), got 0"):
        found.changes(0)


def test_size_guard_and_documents_without_features():
    model = model_of()
    found = FGSM(model, "dense").perturb(draw(), labels_of(), 0.1)
    with pytest.raises(ValueError, match=r"N x D = 7 x 60 numbers take 3,360 bytes, more than max_bytes=100"):
        found.to_csr(max_bytes=100)
    assert found.holds()
    empty = scipy.sparse.csr_matrix((2, D), dtype=np.float32)
    for threat in THREATS:
        assert FGSM(model, threat).perturb(empty, labels_of(2), 0.1).holds()
    none = FGSM(model).perturb(empty[:0], labels_of(2)[:0], 0.1)
    assert none.holds()
    assert none.to_csr().shape == (0, D)
    assert none.predict(3)[1].shape == (0, 3)
    with pytest.raises(ValueError, match="linear MACH"):
        FGSM(model_of("linear")).perturb(draw(), labels_of(), 0.1).hidden()
    own = FGSM(model, goal="own").perturb(draw(), None, 0.1)
    assert (own.loss >= own.clean_loss).all()
