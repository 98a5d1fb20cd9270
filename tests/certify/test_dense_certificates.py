"""Certificates of models with dense features: of the words alone, and of the dense features alone."""

import itertools

import numpy as np
import pytest
import scipy.sparse
import torch
from certify_cases import right, sampled, scores_of
from test_nn import ARCHITECTURES, MERGES, D, L, draw, model_of

from mach_ext import certify
from mach_ext.attack import (
    FGSM,
    L1,
    L2,
    PGD,
    Delete,
    Embedding,
    Greedy,
    Insert,
    Random,
    Support,
    threat_model,
)
from mach_ext.data import HybridMatrix

pytestmark = pytest.mark.usefixtures("one_thread")
E = 6
EMBEDDINGS = [Embedding(), Embedding(norm=2)]
WORDS = [Support(), Insert(m=3), L1(nonnegative=False), L2(), Delete()]


def hybrid(n=4, seed=0, density=0.15):
    dense = np.random.default_rng(seed).normal(0.3, 1, (n, E))
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    return HybridMatrix(draw(n, seed, density=density), dense.astype(np.float32))


def hybrid_model(name="shared", length=1.5, **changes):
    model = model_of(name, num_dense=E, **changes)
    model.scale_dense(hybrid(30).dense, length)
    return model


def sampled_hybrid(threat, X, epsilon, rng, count=60):
    """Documents of the threat set around the only row of X."""
    if not isinstance(threat, Embedding):
        words = sampled(threat, X.sparse, epsilon, rng, count)
        return HybridMatrix(words, np.repeat(X.dense, count, 0))
    step = rng.choice([-1.0, 1.0], (count, E)) if threat.norm != 2 else rng.normal(size=(count, E))
    if threat.norm == 2:
        step /= np.linalg.norm(step, axis=1, keepdims=True)
    step *= np.where(np.arange(count) % 2, 1.0, rng.random(count))[:, None]
    x = torch.from_numpy(np.repeat(X.dense, count, 0)).flatten()
    rows = torch.arange(count).repeat_interleave(E)
    moved = threat.project(x, x + torch.from_numpy(epsilon * step).flatten(), rows, count, epsilon)
    words = scipy.sparse.vstack([X.sparse] * count, format="csr")
    documents = HybridMatrix(words, moved.view(count, E).float().numpy())
    assert threat.holds(HybridMatrix(words, np.repeat(X.dense, count, 0)), documents, epsilon)
    return documents


@pytest.mark.parametrize(
    ("threat", "name"),
    [*itertools.product(EMBEDDINGS, ARCHITECTURES), *itertools.product(WORDS, ("linear", "shared"))],
    ids=str,
)
def test_no_document_of_the_set_is_below_the_bound(threat, name):
    """The model joins the documents itself, so the rounding of center and scale counts, too."""
    for seed, merge in enumerate(("mean_logit", "median_prob")):
        model, X = hybrid_model(name, merge=merge, seed=seed), hybrid(3, seed)
        rng = np.random.default_rng(seed)
        pairs = rng.integers(0, L, (3, 2))
        for epsilon in [1, 2] if isinstance(threat, Delete) else [1e-9, 0.003, 0.1]:
            bounds = certify.margin_bounds(model, X, pairs, epsilon, threat_model=threat)
            for n, bound in enumerate(bounds):
                documents = sampled_hybrid(threat, X[n : n + 1], epsilon, rng, 20)
                scores = scores_of(model, model.join(documents), pairs[n])
                assert (scores[:, 0] - scores[:, 1] >= bound).all()


def margins(model, X, pairs):
    """Weights [n, D + E] and clean values [n] of linear margins, in float64."""
    buckets, weight = model.hash.buckets.long().numpy(), model.bucket_weight.detach().double().numpy()
    bias, R = model.bucket_bias.detach().double().numpy(), len(buckets)
    first, second = (buckets[:, [pair[i] for pair in pairs]] for i in (0, 1))
    w = sum(weight[r][:, first[r]] - weight[r][:, second[r]] for r in range(R)).T / R
    b = sum(bias[r, first[r]] - bias[r, second[r]] for r in range(R)) / R
    x = model.join(X).toarray().astype(np.float64)
    return w, (w * x).sum(1) + b, x


def test_linear_bounds_are_the_closed_forms():
    model, X, epsilon = hybrid_model("linear"), hybrid(20), 0.2
    pairs = np.random.default_rng(0).integers(0, L, (20, 2))
    w, clean, x = margins(model, X, pairs)
    of_words, of_dense = w[:, :D], w[:, D:] * float(model.dense_scale)
    lost = {
        "embedding": epsilon * np.abs(of_dense).sum(1),
        "embedding(l2)": epsilon * np.linalg.norm(of_dense, axis=1),
        "support": epsilon * np.abs(of_words * (x[:, :D] != 0)).sum(1),
    }
    new = np.sort(np.where(x[:, :D] == 0, np.abs(of_words), 0), axis=1)[:, ::-1]
    lost["insert(3)"] = lost["support"] + epsilon * new[:, :3].sum(1)
    for name, loss in lost.items():
        threat = threat_model(name) if "embedding" in name else threat_model(name, nonnegative=False)
        bounds = certify.margin_bounds(model, X, pairs, epsilon, threat_model=threat)
        np.testing.assert_allclose(bounds, clean - loss, atol=1e-4)
        assert (bounds <= clean - loss + 1e-9).all()
        assert loss.max() > 0.1


def test_deletion_is_the_best_of_all_subsets_of_words():
    model, X = hybrid_model("linear"), hybrid(6, density=0.1)
    pairs = np.random.default_rng(1).integers(0, L, (6, 2))
    w, clean, x = margins(model, X, pairs)
    for count in (1, 2):
        bounds = certify.margin_bounds(model, X, pairs, count, threat_model="delete")
        for n, bound in enumerate(bounds):
            words = np.flatnonzero(x[n, :D])
            subsets = [s for c in range(count + 1) for s in itertools.combinations(words, c)]
            worst = min(clean[n] - (w[n, list(s)] * x[n, list(s)]).sum() for s in subsets)
            assert bound == pytest.approx(worst, abs=1e-4)


@pytest.mark.parametrize("name", ["linear", "shared", "independent two layers"])
@pytest.mark.parametrize("threat", [*EMBEDDINGS, Insert(m=2), Delete()], ids=str)
def test_no_attack_beats_a_certificate(threat, name):
    proven = 0
    for seed in range(2):
        model, X = hybrid_model(name, merge=MERGES[seed], seed=seed), hybrid(6, seed)
        Y = right(model, model.join(X), seed=seed)
        grid = [1, 2] if isinstance(threat, Delete) else [1e-4, 0.01, 0.1]
        certificate = certify.certify(model, X, Y, grid, threat_model=threat, zero=False)
        proven += certificate.certified(5).sum()
        words = isinstance(threat, (Delete, Insert))
        attacks = [Greedy(model, threat, goal, k=1) for goal in ("untargeted", "positive")] if words else []
        if not isinstance(threat, Delete):
            attacks += [FGSM(model, threat), PGD(model, threat, "positive", k=1, steps=8, restarts=1)]
        for method in [*attacks, Random(model, threat, seed=seed)]:
            for e, found in enumerate(method.perturb(X, Y, grid)):
                for ranked in (found.predict(5)[1], model.predict(found.to_hybrid(), 5)[1]):
                    for k, (n, labels) in itertools.product((1, 5), enumerate(ranked)):
                        stays = certificate.labels[n][certificate.certified(k)[e, n]]
                        assert set(stays) <= set(labels[:k])
        assert not (certificate.certified(1) & certificate.broken(1)).any()
    assert proven > 0 or (name, str(threat)) == ("independent two layers", "delete")


@pytest.mark.parametrize("threat", EMBEDDINGS, ids=str)
def test_the_first_label_of_linear_models_is_certified_or_broken(threat):
    model, X = hybrid_model("linear"), hybrid(40)
    Y = scipy.sparse.csr_matrix((np.ones(40), (np.arange(40), model.predict(X, 1)[1][:, 0])), (40, L))
    certificate = certify.certify(model, X, Y, [0.005, 0.02, 0.1], threat_model=threat, k=1)
    sure = certificate.certified(1)[:, :, 0]
    assert (sure | certificate.broken(1)[:, :, 0]).all()
    assert 0 < sure.sum() < sure.size
    low, high = certificate.zero[1]
    assert 0.005 < low < high <= 1.02 * low


def test_results_name_what_must_stay():
    model, X = hybrid_model(), hybrid()
    Y = right(model, model.join(X))
    for threat, unchanged in (("support", "dense features"), ("embedding", "sparse features")):
        certificate = certify.certify(model, X, Y, [0.1], threat_model=threat, zero=False)
        assert certificate.unchanged == certificate.as_dict()["unchanged"] == unchanged
    plain = certify.certify(model_of(), X.sparse, right(model_of(), X.sparse), [0.1], zero=False)
    assert plain.unchanged is None
    assert "unchanged" not in plain.as_dict()
    # No change of words breaks a document without words, and the search for the size leaves it out.
    X = HybridMatrix(scipy.sparse.csr_matrix((2, D)), X.dense[:2])
    certificate = certify.certify(model, X, right(model, model.join(X)), [0.1, 1e6])
    assert certificate.certified(5)[1, certificate.correct].all()
    assert certificate.zero[5] == (-1, 0)


def test_refusals():
    X, pairs = hybrid(), [[0, 1]] * 4
    for name in ("linear", "shared"):
        model = hybrid_model(name)
        with pytest.raises(ValueError, match="changes every feature by the same size"):
            certify.check(model, "dense")
        with pytest.raises(ValueError, match="changes dense features, but the model takes none"):
            certify.check(model_of(name), "embedding")
        with pytest.raises(ValueError, match="changes every feature by the same size"):
            certify.margin_bounds(model, X, pairs, 0.1, threat_model="dense")
