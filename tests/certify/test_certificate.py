"""`certify`: no change within a threat model does what it excludes; corner cases and refusals."""

import numpy as np
import pytest
import scipy.sparse
import torch
from certify_cases import DENSE, SPARSE, right, sampled, sizes_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_nn import ARCHITECTURES, MERGES, D, L, draw, model_of

import mach_ext
from mach_ext import certify
from mach_ext.attack import FGSM, PGD, Delete, Dense, Greedy, Insert, Random

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_package_keeps_its_name_beside_the_function():
    """`mach_ext.certify` is the package, also after its function of the same name was imported."""
    from mach_ext.certify import certify as function

    assert mach_ext.certify is certify
    assert certify.certify is function
    assert all(hasattr(certify, name) for name in certify.__all__)


@pytest.mark.parametrize("threat", SPARSE + DENSE, ids=str)
def test_certified_is_never_above_attacked(threat):
    """No attack, no sample takes a certified label out of the top k."""

    @settings(max_examples=5)
    @given(seed=st.integers(0, 10**6), which=st.integers(0, 4), merge=st.sampled_from(MERGES))
    def check(seed, which, merge):
        name = "linear" if isinstance(threat, Dense) else list(ARCHITECTURES)[which]
        model, X = model_of(name, merge=merge, seed=seed % 5), draw(n=6, seed=seed, density=0.2)
        Y, grid, rng = right(model, X, seed=seed), sizes_of(threat), np.random.default_rng(seed)
        certificate = certify.certify(model, X, Y, grid, threat_model=threat, zero=False)
        documents = [[] for _ in grid]
        if not isinstance(threat, Delete):
            restarts = 0 if isinstance(threat, Dense) else 2
            attacks = [
                FGSM(model, threat),
                PGD(model, threat, "own", steps=4),
                PGD(model, threat, "positive", steps=6, restarts=restarts),
                Random(model, threat, seed=seed),
            ]
        else:
            attacks = [Greedy(model, threat), Greedy(model, threat, "positive"), Random(model, threat)]
        attacks += [Greedy(model, threat)] if isinstance(threat, Insert) else []
        for method in attacks:
            for many, changed in zip(documents, method.perturb(X, Y, grid), strict=True):
                many.append((np.arange(6), changed.to_csr()))
        for e, epsilon in enumerate(grid):
            for n in range(6):
                documents[e].append((np.full(20, n), sampled(threat, X[n], epsilon, rng, 20)))
            for of, changed in documents[e]:
                ranked = model.predict(changed, 5)[1]
                for k in (1, 3, 5):
                    for n, labels in zip(of, ranked, strict=True):
                        stays = certificate.labels[n][certificate.certified(k)[e, n]]
                        assert set(stays) <= set(labels[:k])
            assert not (certificate.certified(1) & certificate.broken(1)).any()
            precision = certificate.precision(5)[e]
            attacked = min(
                mach_ext.metrics.evaluate(Y, model.predict(c, 5)[1])["P@5"] for _, c in documents[e][:3]
            )
            assert precision <= attacked + 1e-12

    check()


@pytest.mark.parametrize("labels", [1, 2, 4])
def test_few_labels(labels):
    model = mach_ext.MACH(D, labels, num_repetitions=4, num_buckets=8, hidden_size=0)
    X = draw()
    Y = scipy.sparse.csr_matrix(np.ones((X.shape[0], labels)))
    certificate = certify.certify(model, X, Y, [0, 0.1], zero=False)
    assert certificate.labels.shape == (X.shape[0], labels)
    assert certificate.certified(labels).all()  # nothing can leave a top k of all labels


def test_documents_without_features_and_no_documents():
    model = model_of()
    X = scipy.sparse.csr_matrix((2, D), dtype=np.float32)
    certificate = certify.certify(model, X, right(model, X), [0.1, 1e6])
    assert certificate.certified(5)[1, certificate.correct].all()  # there is nothing to change
    assert certificate.zero[5] == (-1, 0)
    constant = model_of("linear")
    with torch.no_grad():
        constant.bucket_weight.zero_()
    certificate = certify.certify(constant, draw(), right(constant, draw()), [0.1])
    assert certificate.zero[5][1] == np.inf
    assert certificate.as_dict()["zero"]["P@5"][1] is None
    none = certify.certify(model, X[:0], right(model, X)[:0], [0, 0.1])
    assert none.precision(1).tolist() == [0, 0]
    for name in ARCHITECTURES:
        certify.margin_bounds(model_of(name), X, [[0, 1], [2, 3]], 0.1, threat_model="insert(2)")


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("merge", MERGES)
def test_nothing_is_shown_where_float32_overflows(name, merge):
    """Infinite and undefined logits have no order that a bound in float64 could speak of."""
    model, X = model_of(name, merge=merge), draw()
    Y, pairs = right(model, X), model.predict(X, 2)[1]
    certificate = certify.certify(model, X, Y, [1e39], zero=False)  # beyond float32 itself
    assert not certificate.certified(5)[:, np.diff(X.indptr) > 0].any()
    for value in (1e38, float("nan")):
        with torch.no_grad():
            model.bucket_bias.fill_(value)
        if value == 1e38:
            assert not certify.certify(model, X, Y, [1e-3], zero=False).certified(5).any()
        else:
            with pytest.raises(ValueError, match=r"MACH\.predict: the model's bucket_bias must be finite"):
                certify.certify(model, X, Y, [1e-3], zero=False)
        assert (certify.margin_bounds(model, X, pairs, 1e-3) == -np.inf).all()


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (ValueError, r"certify: epsilon must be a number >= 0, got -0.1", {"epsilons": [0.1, -0.1]}),
        (ValueError, r"certify: epsilons must be at least one number", {"epsilons": []}),
        (ValueError, r"certify: k must be in 1 \.\.\. L=90, got 91", {"k": 91}),
        (ValueError, r"certify: candidates must be at least 1, got 0", {"candidates": 0}),
        (ValueError, r"dense is certified for linear MACH .* D=60 .* vacuous", {"threat_model": "dense"}),
        (ValueError, r"threat model must be one of dense, support", {"threat_model": "linf"}),
        (ValueError, r"number of words, got 0.5", {"threat_model": "delete", "epsilons": [0.5]}),
        (ValueError, r"support keeps values >= 0, but X has -", {"X": -draw()}),
        (ValueError, r"X must have D=60 columns, got shape \(7, 50\)", {"X": draw(columns=50)}),
        (ValueError, r"Y must be \[N, L\] = \[7, 90\], got shape \(7, 60\)", {"Y": draw()}),
        (
            TypeError,
            r"certify: model must be a mach_ext.MACH or a mach_ext.MACHHead, got NoneType",
            {"model": None},
        ),
        (
            TypeError,
            r"float32 or float64, which model.float\(\) makes them, got torch.bfloat16",
            {"model": model_of().bfloat16()},
        ),
    ],
)
def test_bad_input(error, message, changes):
    call = {"model": model_of(), "X": draw(), "Y": draw(columns=L), "epsilons": [0.1], **changes}
    with pytest.raises(error, match=message):
        certify.certify(**call)
