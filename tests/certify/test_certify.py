"""Certificates: no change within a threat model does what they exclude; exact for linear MACH."""

import itertools
import warnings

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_nn import ARCHITECTURES, MERGES, D, L, R, draw, model_of, tensors

import mach_ext
from mach_ext import certify
from mach_ext.attack import FGSM, L1, L2, PGD, Delete, Dense, Greedy, Insert, Random, Support

pytestmark = pytest.mark.usefixtures("one_thread")
SPARSE = [Support(), Support(nonnegative=False), Insert(m=3), Insert(nonnegative=False, m=2), L1(), L2(),
          L1(nonnegative=False), L2(nonnegative=False), Delete()]  # fmt: skip
DENSE = [Dense(), Dense(nonnegative=True)]


def cases(name):
    return SPARSE + DENSE if ARCHITECTURES[name]["hidden_size"] == 0 else SPARSE


def sampled(threat, x, epsilon, rng, count=60):
    """Documents of the threat set around the row x: corners and points inside, float32."""
    x = x.toarray()[0].astype(np.float64)
    own, other = np.flatnonzero(x), np.flatnonzero(x == 0)
    rows = np.tile(x, (count, 1))
    for i, row in enumerate(rows):
        part = 1.0 if i % 2 else rng.random()
        if isinstance(threat, Delete):
            row[rng.permutation(own)[: int(epsilon)]] = 0
            continue
        at = own
        if isinstance(threat, Dense):
            at = np.arange(len(x))
        elif isinstance(threat, Insert):
            at = np.concatenate((own, rng.permutation(other)[: threat.m]))
        step = rng.choice([-1.0, 1.0], len(at))
        if threat.norm == 1:
            step *= rng.dirichlet(np.full(len(at), 0.2)) if len(at) else 1.0
        elif threat.norm == 2 and len(at):
            step *= np.abs(rng.normal(size=len(at)))
            step /= np.linalg.norm(step)
        row[at] += (1 - 1e-6) * epsilon * part * step
        if threat.nonnegative:
            row[:] = row.clip(min=0)
    near = rows.astype(np.float32)
    beyond = np.abs(near - x) > np.abs(rows - x)
    found = scipy.sparse.csr_matrix(np.where(beyond, np.nextafter(near, x.astype(np.float32)), near))
    assert threat.holds(scipy.sparse.csr_matrix(np.tile(x, (count, 1))), found, epsilon)
    return found


def right(model, X, k=5, seed=0):
    """True labels of which most are in the clean top k."""
    rng = np.random.default_rng(seed)
    labels = model.predict(X, k)[1]
    Y = np.zeros((X.shape[0], model.num_labels))
    for n, row in enumerate(labels):
        Y[n, row[rng.random(k) < 0.7]] = 1
        Y[n, rng.integers(model.num_labels)] = 1
    return scipy.sparse.csr_matrix(Y)


def sizes_of(threat):
    return [1, 2, 5] if isinstance(threat, Delete) else [1e-4, 0.003, 0.03, 0.3]


def scores_of(model, X, labels):
    with torch.no_grad():
        values, indices, indptr = tensors(X)
        values = values.to(model.bucket_bias.dtype)
        return model.label_scores(values, indices, indptr, torch.as_tensor(labels), "model").double().numpy()


# --------------------------------------------------------------------------------------------- never wrong


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("merge", MERGES)
def test_no_document_of_the_set_is_below_the_bound(name, merge):
    """Every sampled margin, as the model computes it in float32, is at or above its lower bound."""

    @settings(max_examples=4)
    @given(seed=st.integers(0, 10**6), which=st.integers(0, 10), step=st.integers(0, 4))
    def check(seed, which, step):
        threat = cases(name)[which % len(cases(name))]
        epsilon = [1e-9, *sizes_of(threat)][step % (1 + len(sizes_of(threat)))]
        epsilon = max(1, int(epsilon)) if isinstance(threat, Delete) else epsilon
        model, X = model_of(name, merge=merge, seed=seed % 7), draw(n=4, seed=seed)
        if not threat.nonnegative:
            X.data *= np.random.default_rng(seed).choice([-1, 1], X.nnz).astype(np.float32)
        rng = np.random.default_rng(seed)
        pairs = rng.integers(0, L, (4, 2))
        bounds = certify.margin_bounds(model, X, pairs, epsilon, threat_model=threat)
        for n, bound in enumerate(bounds):
            scores = scores_of(model, sampled(threat, X[n], epsilon, rng), pairs[n])
            assert (scores[:, 0] - scores[:, 1] >= bound).all()

    check()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bounds_hold_for_what_is_computed_in_float32(name):
    """At a size far below rounding the margins' errors are the forward's; the exact margin is no bound."""
    model, X = model_of(name), draw(n=50)
    exact = mach_ext.MACH(**model.configuration()).double()
    exact.load_parameters({k: v.double() for k, v in model.named_parameters()})
    pairs = np.random.default_rng(0).integers(0, L, (50, 2))
    bounds = certify.margin_bounds(model, X, pairs, 1e-12)
    computed, true = (np.diff(scores_of(m, X, pairs))[:, 0] for m in (model, exact))
    assert (-computed >= bounds).all()
    assert (-computed < -true).any()
    np.testing.assert_allclose(bounds, -true, atol=2e-3)


@pytest.mark.parametrize("name", ["shared", "independent", "shared two layers"])
def test_rounding_of_hidden_units_is_covered(name):
    """Large products that cancel: a unit of about 1 is off by far more than the layers behind it add."""
    computed, true, bounds = [], [], []
    for seed in range(12):
        model, X = model_of(name, seed=seed), draw(n=1, seed=seed, density=0.4)
        with torch.no_grad():
            model.encoder_weight *= 1e4
            x = torch.from_numpy(X.toarray())
            model.encoder_bias.copy_(1 - (x.double() @ model.encoder_weight.double())[0])
        exact = mach_ext.MACH(**model.configuration()).double()
        exact.load_parameters({k: v.double() for k, v in model.named_parameters()})
        pair = [[1, 2]]
        bounds.append(certify.margin_bounds(model, X, pair, 1e-12)[0])
        computed.append(-np.diff(scores_of(model, X, pair))[0, 0])
        true.append(-np.diff(scores_of(exact, X, pair))[0, 0])
    assert (np.array(bounds) <= computed).all()
    assert np.abs(np.subtract(computed, true)).max() > 1e-4


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_descent_on_the_margin_ends_above_the_bound_and_near_it(name):
    """Signed steps on the margin itself, from many starts, in float64: bounds hold, and are of use."""
    model, X = model_of(name).double(), draw(n=30, density=0.1)
    pairs = torch.from_numpy(np.random.default_rng(0).integers(0, L, (30, 2)))
    generator = torch.Generator().manual_seed(0)
    values, indices, indptr = tensors(X)
    values = values.double()
    for epsilon in (0.003, 0.03, 0.3):
        low, high = (values - epsilon).clamp(min=0), values + epsilon
        bounds = torch.from_numpy(certify.margin_bounds(model, X, pairs.numpy(), epsilon))
        lowest = torch.full((30,), float("inf"), dtype=torch.float64)
        for start in range(8):
            x = values + (start > 0) * epsilon * (2 * torch.rand(values.shape, generator=generator) - 1)
            for step in range(25):
                x = x.clamp(low, high).detach().requires_grad_()
                scores = model.label_scores(x, indices, indptr, pairs)
                lead = scores[:, 0] - scores[:, 1]
                lowest = torch.minimum(lowest, lead.detach())
                (gradient,) = torch.autograd.grad(lead.sum(), x)
                x = x - epsilon * 2 / (1 + step) * gradient.sign()
        assert (lowest >= bounds).all()
        if epsilon < 0.01:
            torch.testing.assert_close(lowest, bounds, rtol=0, atol=0.15)


@pytest.mark.parametrize("threat", SPARSE + DENSE, ids=str)
def test_certified_is_never_above_attacked(threat):
    """No attack, no sample takes a certified label out of the top k."""

    @settings(max_examples=5)
    @given(seed=st.integers(0, 10**6), which=st.integers(0, 4), merge=st.sampled_from(MERGES))
    def check(seed, which, merge):
        name = "linear" if isinstance(threat, Dense) else list(ARCHITECTURES)[which]
        model, X = model_of(name, merge=merge, seed=seed % 5), draw(n=6, seed=seed, density=0.2)
        Y, grid, rng = right(model, X, seed=seed), sizes_of(threat), np.random.default_rng(seed)
        found = certify.certify(model, X, Y, grid, threat_model=threat, zero=False)
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
        for one in attacks:
            for many, changed in zip(documents, one.perturb(X, Y, grid), strict=True):
                many.append((np.arange(6), changed.to_csr()))
        for e, epsilon in enumerate(grid):
            for n in range(6):
                documents[e].append((np.full(20, n), sampled(threat, X[n], epsilon, rng, 20)))
            for of, changed in documents[e]:
                ranked = model.predict(changed, 5)[1]
                for k in (1, 3, 5):
                    for n, labels in zip(of, ranked, strict=True):
                        stays = found.labels[n][found.certified(k)[e, n]]
                        assert set(stays) <= set(labels[:k])
            assert not (found.certified(1) & found.broken(1)).any()
            precision = found.precision(5)[e]
            attacked = min(
                mach_ext.metrics.evaluate(Y, model.predict(c, 5)[1])["P@5"] for _, c in documents[e][:3]
            )
            assert precision <= attacked + 1e-12

    check()


# ----------------------------------------------------------------------------------------------- exactness


def least(threat, x, g, epsilon):
    """min of g . x' over the threat set by general solvers or by trying all."""
    own, other = np.flatnonzero(x), np.flatnonzero(x == 0)
    low, high = np.full(len(x), -epsilon), np.full(len(x), float(epsilon))
    if threat.nonnegative:
        low = np.maximum(low, -x)
    if isinstance(threat, Delete):
        return min(
            g @ x - g[list(out)] @ x[list(out)] for m in range(int(epsilon) + 1)
            for out in itertools.combinations(own, m)
        )  # fmt: skip
    if isinstance(threat, Insert):
        base = g @ x + np.minimum(g * low, g * high)[own].sum()
        best = np.minimum(g * low, g * high)
        return min(base + best[list(new)].sum() for new in itertools.combinations(other, threat.m))
    low, high = (a if isinstance(threat, Dense) else np.where(x != 0, a, 0) for a in (low, high))
    if threat.norm == np.inf:
        return g @ x + scipy.optimize.linprog(g, bounds=np.stack((low, high), 1)).fun
    if threat.norm == 1:  # d = up - down
        both = np.concatenate((g, -g))
        box = [(0, h) for h in high] + [(0, -b) for b in low]
        return g @ x + scipy.optimize.linprog(both, np.ones((1, 2 * len(x))), [epsilon], bounds=box).fun
    start = -g[own] / np.linalg.norm(g[own]) * epsilon
    found = scipy.optimize.minimize(
        lambda d: g[own] @ d, start.clip(low[own]), jac=lambda d: g[own], method="SLSQP",
        bounds=np.stack((low[own], high[own]), 1), options={"ftol": 1e-14, "maxiter": 1000},
        constraints={"type": "ineq", "fun": lambda d: epsilon**2 - d @ d, "jac": lambda d: -2 * d},
    )  # fmt: skip
    return g @ x + found.fun


@pytest.mark.parametrize("threat", SPARSE + DENSE, ids=str)
def test_linear_bounds_are_exact(threat):
    """Equal to the minimum that a solver finds, in float64; a document attains it."""
    model, X = model_of("linear").double(), draw(n=4, density=0.1)
    if not threat.nonnegative:
        X.data *= np.random.default_rng(0).choice([-1, 1], X.nnz).astype(np.float32)
    rng = np.random.default_rng(1)
    for epsilon in [1, 2] if isinstance(threat, Delete) else [0.01, 0.4, 1.5]:
        pairs = rng.integers(0, L, (4, 2))
        bounds = certify.margin_bounds(model, X, pairs, epsilon, threat_model=threat)
        for n, (t, other) in enumerate(pairs):
            at = model.hash.buckets[:, [t, other]].long()
            weight = model.bucket_weight.detach()[torch.arange(R)[:, None], :, at].numpy()  # [R, 2, D]
            bias = model.bucket_bias.detach().gather(1, at).numpy()
            g, constant = (weight[:, 0] - weight[:, 1]).mean(0), (bias[:, 0] - bias[:, 1]).mean()
            x = X[n].toarray()[0].astype(np.float64)
            assert bounds[n] == pytest.approx(constant + least(threat, x, g, epsilon), abs=1e-6)


@pytest.mark.parametrize("threat", SPARSE + DENSE, ids=str)
def test_linear_top_1_is_certified_or_broken(threat):
    """Nothing is left undecided, and what breaks it is within the threat model."""
    model, X = model_of("linear"), draw(n=40)
    Y = right(model, X)
    grid = [0, 1, 2, 4] if isinstance(threat, Delete) else [0, 0.003, 0.01, 0.03, 0.1, 0.3, 1]
    tried = []
    original = certify._try

    def spy(model, labels, points, attained):
        tried.extend((n, *point) for n, _, point in points)
        original(model, labels, points, attained)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certify, "_try", spy)
        found = certify.certify(model, X, Y, grid, threat_model=threat, zero=False)
    top = found.correct[:, 0]
    assert (found.certified(1)[:, top, 0] ^ found.broken(1)[:, top, 0]).all()
    assert found.certified(1)[1:, top, 0].any()
    assert found.broken(1)[:, top, 0].any()
    np.testing.assert_array_equal(*found.robust().T)
    for n, features, values in tried:
        changed = scipy.sparse.csr_matrix((values, (np.zeros(len(features), int), features)), (1, D))
        assert threat.holds(X[n], changed, max(grid))


# ------------------------------------------------------------------------------------------ how tight


def test_shared_buckets_cancel():
    """Two labels that differ in one repetition of four: the others' weights, however large, do not count."""
    model = mach_ext.MACH(
        D, 2, R, 2, hidden_size=8, hash=mach_ext.LabelHash.from_buckets([[0, 0], [1, 1], [0, 0], [0, 1]], 2)
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        model.bucket_weight[:3] *= 100
        model.bucket_weight[3] *= 0.1
        model.bucket_bias[3] = torch.tensor([2.0, -2.0])
    X = draw(n=1)
    lead = certify.margin_bounds(model, X, [[0, 1]], 0.05)[0]
    assert lead > 0.5
    scores = scores_of(model, sampled(Support(), X, 0.05, np.random.default_rng(0)), [0, 1])
    assert np.ptp(scores[:, 0]) > 20  # each label by itself moves by far more than the lead


def test_the_linear_relaxation_beats_intervals_and_is_never_worse():
    model, X = model_of().double(), draw(n=8)
    pairs = np.random.default_rng(0).integers(0, L, (8, 2))
    weight, bias = model.encoder_weight.detach().numpy(), model.encoder_bias.detach().numpy()
    gains = []
    for epsilon in (0.01, 0.1, 0.5):
        bounds = certify.margin_bounds(model, X, pairs, epsilon)
        for n, (t, other) in enumerate(pairs):
            x = X[n].toarray()[0].astype(np.float64)
            low, high = np.maximum(x - epsilon, 0) * (x != 0), (x + epsilon) * (x != 0)
            lowest = low @ weight.clip(min=0) + high @ weight.clip(max=0) + bias
            highest = high @ weight.clip(min=0) + low @ weight.clip(max=0) + bias
            at = model.hash.buckets[:, [t, other]].long()
            rows = model.bucket_weight.detach()[torch.arange(R)[:, None], :, at]
            u = (rows[:, 0] - rows[:, 1]).mean(0).numpy()
            constant = (
                (model.bucket_bias.detach().gather(1, at) @ torch.tensor([1.0, -1]).double()).mean().item()
            )
            interval = np.minimum(u * lowest.clip(min=0), u * highest.clip(min=0)).sum() + constant
            gains.append(bounds[n] - interval)
    assert min(gains) > -1e-9
    assert np.mean(gains) > 0.1


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
    monkeypatch.setattr(certify._Model, "_many_labels", False)
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
        found = certify.certify(model, X, right(model, X), [epsilon], threat_model=threat, zero=False)
        for n, labels in enumerate(found.labels):
            for rank in np.flatnonzero(found.correct[n]):
                pairs = np.stack((np.full(L, labels[rank]), np.arange(L)), 1)
                everywhere = scipy.sparse.vstack([X[n]] * L, format="csr")
                bounds = certify.margin_bounds(model, everywhere, pairs, epsilon, threat_model=threat)
                count = (np.delete(bounds, labels[rank]) <= 0).sum()
                assert found.overtakers[0, n, rank] == min(count, 5)

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
        found = certify.certify(model, X, Y, [0.1], k=3, zero=False)
        assert found.labels.tolist() == [[0, 2, 1]] * 2
        assert found.overtakers[0].tolist() == [[0, 1, 3]] * 2


def test_fewer_candidates_only_show_less():
    model, X = model_of(), draw(n=10)
    Y = right(model, X)
    few, many = (certify.certify(model, X, Y, [0.01, 0.05, 0.2], candidates=c, zero=False) for c in (1, L))
    assert (few.overtakers >= many.overtakers).all()


# ------------------------------------------------------------------------------------------ the result


@pytest.mark.parametrize("threat", [Support(), Delete()], ids=str)
def test_zero_clean_and_curve(threat):
    model, X = model_of(), draw(n=15)
    Y = right(model, X)
    grid = [0, 1] if isinstance(threat, Delete) else [0, 0.02]
    found = certify.certify(model, X, Y, grid, threat_model=threat)
    clean = mach_ext.metrics.evaluate(Y, found.labels)
    for k in (1, 3, 5):
        assert found.precision(k)[0] == pytest.approx(clean[f"P@{k}"])
        assert (np.diff(found.precision(k)) <= 0).all()
        low, high = found.zero[k]
        if np.isinf(high):
            continue
        again = certify.certify(model, X, Y, [low, high], threat_model=threat, zero=False)
        assert again.precision(k)[0] > 0
        assert again.precision(k)[1] == 0
    assert set(found.zero) == {1, 3, 5}
    record = found.as_dict()
    assert record["sizes"][1]["P@5"] == found.precision(5)[1]
    assert record["sizes"][1]["robust P@1"][0] == found.precision(1)[1]
    assert (found.robust()[:, 0] <= found.robust()[:, 1]).all()
    wrong = certify.certify(model, X, scipy.sparse.csr_matrix((15, L)), grid, threat_model=threat)
    assert wrong.zero[1] == (-1, 0)
    assert not wrong.correct.any()


def test_ranks_beyond_the_labels_looked_at_are_not_certified():
    """An overtaker count of k means k or more, so nothing is known of a larger k."""
    model, X = model_of(), draw()
    found = certify.certify(model, X, right(model, X), [0.1], k=2, zero=False)
    for question in (found.certified, found.broken, found.precision):
        for k in (0, 3):
            with pytest.raises(ValueError, match=rf"Certificate: k must be in 1 \.\.\. 2, .* got {k}"):
                question(k)
    assert set(found.as_dict()["sizes"][0]) == {"epsilon", "P@1", "robust P@1"}


@pytest.mark.parametrize("labels", [1, 2, 4])
def test_few_labels(labels):
    model = mach_ext.MACH(D, labels, num_repetitions=4, num_buckets=8, hidden_size=0)
    X = draw()
    Y = scipy.sparse.csr_matrix(np.ones((X.shape[0], labels)))
    found = certify.certify(model, X, Y, [0, 0.1], zero=False)
    assert found.labels.shape == (X.shape[0], labels)
    assert found.certified(labels).all()  # nothing can leave a top k of all labels


def test_documents_without_features_and_no_documents():
    model = model_of()
    X = scipy.sparse.csr_matrix((2, D), dtype=np.float32)
    found = certify.certify(model, X, right(model, X), [0.1, 1e6])
    assert found.certified(5)[1, found.correct].all()  # there is nothing to change
    assert found.zero[5] == (-1, 0)
    constant = model_of("linear")
    with torch.no_grad():
        constant.bucket_weight.zero_()
    found = certify.certify(constant, draw(), right(constant, draw()), [0.1])
    assert found.zero[5][1] == np.inf
    assert found.as_dict()["zero"]["P@5"][1] is None
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
    found = certify.certify(model, X, Y, [1e39], zero=False)  # beyond float32 itself
    assert not found.certified(5)[:, np.diff(X.indptr) > 0].any()
    for value in (1e38, float("nan")):
        with torch.no_grad():
            model.bucket_bias.fill_(value)
        if value == 1e38:
            assert not certify.certify(model, X, Y, [1e-3], zero=False).certified(5).any()
        else:
            with pytest.raises(ValueError, match=r"MACH\.predict: the model's bucket_bias must be finite"):
                certify.certify(model, X, Y, [1e-3], zero=False)
        assert (certify.margin_bounds(model, X, pairs, 1e-3) == -np.inf).all()


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
    found = certify.certify(model, X, right(model, X), [size], threat_model=Insert(m=2), zero=False)
    rng = np.random.default_rng(0)
    for n in range(X.shape[0]):
        ranked = model.predict(sampled(Insert(m=2), X[n], size, rng), 5)[1]
        for label in found.labels[n][found.certified(5)[0, n]]:
            assert (ranked == label).any(1).all()
    by_sweep = certify._Model(model, Insert(m=2))
    for local in by_sweep.forms(X, range(X.shape[0]), size):
        (kept,) = by_sweep.candidates(local, [int(found.labels[local.n, 0])])
        others = torch.from_numpy(np.setdiff1d(np.arange(L), [*kept.tolist(), found.labels[local.n, 0]]))
        lower = by_sweep.margins(local, int(found.labels[local.n, 0]), others)[0]
        assert (lower > 0).all()  # what is left out stays behind


# ------------------------------------------------------------------------------------------- bad input


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
        (TypeError, r"certify: model must be a mach_ext.MACH, got NoneType", {"model": None}),
        (
            TypeError,
            r"float32 or float64, model.float\(\) .* torch.bfloat16",
            {"model": model_of().bfloat16()},
        ),
    ],
)
def test_bad_input(error, message, changes):
    call = {"model": model_of(), "X": draw(), "Y": draw(columns=L), "epsilons": [0.1], **changes}
    with pytest.raises(error, match=message):
        certify.certify(**call)


def test_bad_pairs():
    for pairs, message in ([[0, 1]], r"\[N, 2\] = \[7, 2\], got shape \(1, 2\)"), ([[0, 90]] * 7, "got 90"):
        with pytest.raises(ValueError, match=message):
            certify.margin_bounds(model_of(), draw(), pairs, 0.1)
