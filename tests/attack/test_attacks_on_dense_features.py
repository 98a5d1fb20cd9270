"""Attacks on models with dense features: words change or the embedding does, never both."""

import math

import numpy as np
import pytest
import scipy.sparse
import torch
from attack_cases import labels_of, true_losses
from test_nn import ARCHITECTURES, D, L, draw, model_of

import mach_ext
from mach_ext import attack
from mach_ext.attack import FGSM, L1, L2, PGD, Delete, Embedding, Greedy, Insert, Random, Support
from mach_ext.data import HybridMatrix

pytestmark = pytest.mark.usefixtures("one_thread")
E = 6
WORDS = [Support(), Insert(m=3), L2(), L1()]
EMBEDDINGS = [Embedding(), Embedding(norm=2)]


def hybrid(n=7, seed=0, dtype=np.float32):
    """Documents of words and unit vectors. Document 2 has no words, and a row lacks nothing dense."""
    dense = np.random.default_rng(seed).normal(0.3, 1, (n, E))
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    dense[0, 1] = 0
    words = scipy.sparse.csr_matrix(draw(n, seed).multiply(np.arange(n)[:, None] != 2), dtype=np.float32)
    words.eliminate_zeros()
    return HybridMatrix(words, dense.astype(dtype))


def hybrid_model(name="shared", X=None, length=1.5, **changes):
    model = model_of(name, num_dense=E, **changes)
    model.scale_dense((hybrid() if X is None else X).dense, length)
    return model


def change_of(perturbation, X):
    """The changes of words and of raw dense features, in float64."""
    after = perturbation.to_hybrid()
    return (after.sparse - X.sparse).toarray().astype(np.float64), after.dense.astype(np.float64) - X.dense


@pytest.mark.parametrize("name", ["linear", "shared", "independent two layers"])
@pytest.mark.parametrize("threat", WORDS, ids=str)
def test_word_threats_leave_the_embedding_as_it_is(threat, name):
    X, Y = hybrid(), labels_of()
    model = hybrid_model(name)
    assert (model.join(X)[:, D:].toarray() < 0).any()  # nonnegative checks do not see these
    kinds = [FGSM(model, threat), PGD(model, threat, steps=3, restarts=1), Random(model, threat)]
    kinds += [Greedy(model, threat)] if isinstance(threat, Insert) else []
    for method in kinds:
        for epsilon, found in zip((0.0, 0.3), method.perturb(X, Y, [0.0, 0.3]), strict=True):
            after = found.to_hybrid()
            assert after.dense is X.dense
            assert found.holds()
            assert threat.holds(X, after, epsilon)
            np.testing.assert_allclose(found.loss, true_losses(model, found.to_csr(), Y), rtol=1e-4)
            change, _ = change_of(found, X)
            np.testing.assert_allclose(found.norms["l2"], np.linalg.norm(change, axis=1), rtol=1e-5)
            new = (after.sparse.toarray() != 0) & (X.sparse.toarray() == 0)
            np.testing.assert_array_equal(found.norms["added"], new.sum(1))
            assert new.sum(1).max() == (3 * (epsilon > 0) if isinstance(threat, Insert) else 0)
            if not isinstance(method, Random):
                assert (found.loss >= found.clean_loss).all()


def test_deletion_takes_words_only():
    X, Y, model = hybrid(), labels_of(), hybrid_model()
    words = np.diff(X.sparse.indptr)
    for method in (Greedy(model), Random(model, "delete")):
        for count, found in zip((1, 2, 50), method.perturb(X, Y, [1, 2, 50]), strict=True):
            after = found.to_hybrid()
            assert after.dense is X.dense
            assert found.holds()
            assert (found.norms["removed"] <= np.minimum(words, count)).all()
            if isinstance(method, Random):
                np.testing.assert_array_equal(np.diff(after.sparse.indptr), np.maximum(words - count, 0))
    # The first word is the one of the largest gradient x input, by autograd.
    x = torch.from_numpy(model.join(X).toarray()).double().requires_grad_()
    (gradient,) = torch.autograd.grad(true_losses(model, x, Y).sum(), x)
    best = (-gradient * x)[:, :D].argmax(1).numpy()
    found = Greedy(model).perturb(X, Y, 1)
    for n in np.flatnonzero(found.loss > found.clean_loss):
        assert found.to_csr()[n, best[n]] == 0


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("threat", EMBEDDINGS, ids=str)
def test_fgsm_on_the_embedding_is_the_gradient_step(threat, name):
    """In raw units, by autograd through the centre and the scale, in float64."""
    X, Y, model, epsilon = hybrid(), labels_of(), hybrid_model(name), 0.05
    found = FGSM(model, threat, keep_best=False).perturb(X, Y, epsilon)
    raw = torch.from_numpy(X.dense.astype(np.float64)).requires_grad_()
    scaled = (raw - model.dense_center.double()) * model.dense_scale.double()
    words = torch.from_numpy(X.sparse.toarray()).double()
    (gradient,) = torch.autograd.grad(true_losses(model, torch.cat((words, scaled), 1), Y).sum(), raw)
    step = gradient.sign() if threat.norm == math.inf else gradient / gradient.norm(dim=1, keepdim=True)
    expected = (raw + epsilon * step).detach().numpy()
    written = found.to_hybrid()
    np.testing.assert_allclose(written.dense, expected, atol=2e-6)
    assert bool((written.sparse != X.sparse).nnz == 0)
    np.testing.assert_allclose(found.loss, true_losses(model, model.join(written), Y), rtol=1e-4)
    np.testing.assert_allclose(found.predict(5)[0], model.predict(written, 5)[0], rtol=2e-4, atol=2e-4)
    change = written.dense.astype(np.float64) - X.dense
    np.testing.assert_allclose(found.norms["l2"], np.linalg.norm(change, axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.norms["linf"], np.abs(change).max(1), rtol=1e-5)
    assert found.norms["added"].sum() == found.norms["removed"].sum() == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("threat", EMBEDDINGS, ids=str)
def test_the_ball_is_never_left(threat, dtype):
    """Rounding included: the float64 size of the change of raw and of joined numbers is at most epsilon."""
    X, Y, model = hybrid(dtype=dtype), labels_of(), hybrid_model(length=0.37)
    scale = float(model.dense_scale)
    order = threat.norm if threat.norm == 2 else np.inf
    grid = [1e-3, 0.1, 1 / 3]
    methods = [
        FGSM(model, threat, keep_best=False),
        Random(model, threat),
        PGD(model, threat, steps=3, restarts=1),
    ]
    for method in methods:
        for epsilon, found in zip(grid, method.perturb(X, Y, grid), strict=True):
            raw = np.linalg.norm(change_of(found, X)[1], order, axis=1)
            joined = (found.to_csr()[:, D:] - model.join(X)[:, D:].astype(np.float64)).toarray() / scale
            assert raw.max() <= epsilon
            assert np.linalg.norm(joined, order, axis=1).max() <= epsilon
            assert found.to_hybrid().dense.dtype == (np.float64 if dtype == np.float64 else np.float32)
            assert found.holds()
            assert not threat.holds(X, found.to_hybrid(), 0.9 * raw.max())
    one, many = FGSM(model, threat).perturb(X, Y, 0.1), PGD(model, threat, steps=5).perturb(X, Y, 0.1)
    assert (many.loss >= one.loss).all()
    assert (one.loss >= one.clean_loss).all()
    assert (many.loss > one.clean_loss).any()


@pytest.mark.parametrize("goal", attack.GOALS)
def test_goals_and_size_0(goal):
    X, Y, model = hybrid(), labels_of(), hybrid_model()
    for threat in EMBEDDINGS:
        none, some = FGSM(model, threat, goal, k=3).perturb(X, Y, [0.0, 0.2])
        assert none.to_hybrid() is X
        assert (none.to_csr() != model.join(X)).nnz == 0
        np.testing.assert_array_equal(none.predict(5)[1], model.predict(X, 5)[1])
        assert (some.loss >= some.clean_loss).all()
        assert (some.loss > some.clean_loss).any()


def test_joined_documents_are_taken_as_well():
    """Dense features of 0 that a matrix does not store may change, too."""
    X, Y, model = hybrid(), labels_of(), hybrid_model()
    model.dense_center.zero_()  # document 0 has a dense feature of 0
    joined = model.join(X)
    sparse = joined.copy()
    sparse.eliminate_zeros()
    assert sparse.nnz < joined.nnz
    for threat in ("embedding", "support"):
        of_hybrid = FGSM(model, threat, keep_best=False).perturb(X, Y, 0.1)
        for matrix in (joined, sparse):
            found = FGSM(model, threat, keep_best=False).perturb(matrix, Y, 0.1)
            assert (found.to_csr() != of_hybrid.to_csr()).nnz == 0
            assert found.holds()
            np.testing.assert_allclose(found.to_hybrid().dense, of_hybrid.to_hybrid().dense, atol=1e-6)
    assert of_hybrid.to_csr()[:, D:].nnz == len(X) * E


def test_changes_are_in_raw_units():
    X, Y, model = hybrid(), labels_of(), hybrid_model()
    found = FGSM(model, "embedding", keep_best=False).perturb(X, Y, 0.1)
    after = found.to_hybrid().dense
    changes = found.changes(3)
    assert [feature for feature, _, _ in changes] == list(range(D, D + E))
    np.testing.assert_array_equal([old for _, old, _ in changes], X.dense[3])
    np.testing.assert_array_equal([new for _, _, new in changes], after[3])


def test_transfer_to_a_model_of_another_scaling():
    X, Y, model = hybrid(), labels_of(), hybrid_model()
    other = hybrid_model("linear", seed=5)
    other.scale_dense(X.dense[:3], length=4.0)
    for threat in ("embedding", "support"):
        found = FGSM(model, threat).perturb(X, Y, 0.2)
        scores = other.predict(found.to_hybrid(), 5)[0]
        np.testing.assert_allclose(found.predict(5, other)[0], scores, rtol=1e-4, atol=1e-4)
    result = attack.evaluate(
        model, X, Y, epsilons=[0.2], transfer=other, threat_model="embedding", resamples=0
    )
    clean = mach_ext.metrics.evaluate(Y, other.predict(X, 5)[1])
    assert result["transfer_clean"]["P@5"] == pytest.approx(clean["P@5"])
    with pytest.raises(ValueError, match="X must be a HybridMatrix if transfer is given"):
        attack.evaluate(model, model.join(X), Y, epsilons=[0.2], transfer=other, resamples=0)
    with pytest.raises(ValueError, match="transfer must have the model's"):
        attack.evaluate(model, X, Y, epsilons=[0.2], transfer=model_of(), resamples=0)
    with pytest.raises(ValueError, match="model must have D=60 features and E=6 dense ones, got 60 and 0"):
        found.predict(5, model_of())


def test_evaluate_names_what_stays():
    X, Y, model = hybrid(40), labels_of(40), hybrid_model()
    result = attack.evaluate(
        model,
        X,
        Y,
        method="pgd",
        threat_model="embedding(l2)",
        epsilons=[0, 0.3],
        targeted=True,
        steps=3,
        resamples=0,
    )
    assert result["threat_model"] == "embedding(l2)"
    assert result["unchanged"] == "sparse features"
    assert result["adversarial"][1]["size"]["l2"] == pytest.approx(0.3, rel=0.05)
    assert result["adversarial"][1]["loss"] > result["adversarial"][0]["loss"]
    assert result["adversarial"][0]["metrics"] == result["clean"]
    for method, threat in (("fgsm", "support"), ("delete", "delete"), ("insert", "insert(2)")):
        words = attack.evaluate(model, X, Y, method=method, threat_model=threat, epsilons=[1], resamples=0)
        assert words["unchanged"] == "dense features"
    assert "unchanged" not in attack.evaluate(model_of(), X.sparse, Y, epsilons=[1], resamples=0)


def test_refusals():
    X, Y, model = hybrid(), labels_of(), hybrid_model()
    for kind in (FGSM, PGD, Random):
        with pytest.raises(
            ValueError, match=r"dense changes every feature by the same size, but .* use embedding"
        ):
            kind(model, "dense")
        with pytest.raises(
            ValueError, match=r"embedding\(l2\) changes dense features, but the model takes none"
        ):
            kind(model_of(), Embedding(norm=2))
    head = mach_ext.MACHHead(8, L, 4, 16)
    with pytest.raises(ValueError, match="embedding changes dense features, but the model takes none"):
        FGSM(head, "embedding")
    with pytest.raises(ValueError, match="because all its inputs are embeddings, got embedding"):
        FGSM(head, "embedding", encoder=torch.nn.Linear(3, 8))
    with pytest.raises(ValueError, match="threat model must be delete or insert"):
        Greedy(model, "embedding")
    with pytest.raises(ValueError, match=r"norm must be 2 or math\.inf, got 1"):
        Embedding(norm=1)
    with pytest.raises(ValueError, match="nonnegative must be False"):
        Embedding(nonnegative=True)
    with pytest.raises(ValueError, match=r"embedding\(l2\), or as insert\(10\), got 'embedding\(l1\)'"):
        attack.threat_model("embedding(l1)")
    with pytest.raises(ValueError, match="lacks only"):
        FGSM(model, Insert(m=D)).perturb(X, Y, 0.1)
    words = X.sparse.copy()
    words.data[words.indptr[1]] = -1
    with pytest.raises(ValueError, match="keeps values >= 0, but X has -1 in row 1"):
        FGSM(model, "support").perturb(HybridMatrix(words, X.dense), Y, 0.1)
    with pytest.raises(ValueError, match="takes no dense features; use to_csr"):
        FGSM(model_of()).perturb(X.sparse, Y, 0.1).to_hybrid()
    with pytest.raises(TypeError, match="documents must be a HybridMatrix"):
        Embedding().holds(model.join(X), model.join(X), 0.1)
    assert not Support().holds(X, HybridMatrix(X.sparse, X.dense + 1e-6), 0.1)
    assert not Embedding().holds(X, HybridMatrix(2 * X.sparse, X.dense), 0.1)
    assert Delete().holds(X, HybridMatrix(X.sparse.multiply(0), X.dense), 60)
