"""Lower bounds of margins: below every document of the threat set, and exact for linear MACH."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch
from certify_cases import DENSE, SPARSE, cases, sampled, scores_of, sizes_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_nn import ARCHITECTURES, MERGES, D, L, R, draw, model_of, tensors

import mach_ext
from mach_ext import certify
from mach_ext.attack import Delete, Dense, Insert, Support

pytestmark = pytest.mark.usefixtures("one_thread")


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
    solution = scipy.optimize.minimize(
        lambda d: g[own] @ d, start.clip(low[own]), jac=lambda d: g[own], method="SLSQP",
        bounds=np.stack((low[own], high[own]), 1), options={"ftol": 1e-14, "maxiter": 1000},
        constraints={"type": "ineq", "fun": lambda d: epsilon**2 - d @ d, "jac": lambda d: -2 * d},
    )  # fmt: skip
    return g @ x + solution.fun


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


def test_bad_pairs():
    for pairs, message in ([[0, 1]], r"\[N, 2\] = \[7, 2\], got shape \(1, 2\)"), ([[0, 90]] * 7, "got 90"):
        with pytest.raises(ValueError, match=message):
            certify.margin_bounds(model_of(), draw(), pairs, 0.1)
