"""bucket_svm and fit_svm: linear MACH solved to the optimum."""

import warnings

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from helpers import FLOATS, assert_deterministic
from sklearn.svm import LinearSVC

import mach_ext
from mach_ext import _ops, _reference, svm
from mach_ext._memory import available, checks

N, D, L, B = 120, 40, 30, 37


@pytest.fixture
def problem():
    """Noisy: no bucket is separable. Document 7 has neither words nor labels."""
    rng = np.random.default_rng(0)
    X = scipy.sparse.random(N, D, 0.2, "csr", np.float32, random_state=0)
    Y = scipy.sparse.csr_matrix(rng.random((N, L)) < 0.08, dtype=np.float32)
    keep = scipy.sparse.diags((np.arange(N) != 7).astype(np.float32))
    return (keep @ X).tocsr(), (keep @ Y).tocsr()


def canonical(M):
    M = M.copy()
    M.eliminate_zeros()
    M.sort_indices()
    return M


SOLVERS = pytest.mark.parametrize("newton", [False, True], ids=["dual", "newton"])


def arguments(X, Y, buckets, dtype=torch.float32, newton=False, **changes):
    """Arguments of `bucket_svm`, whose last two receive the result."""
    options = {"first": 0, "M": B, "C": 1.0, "tolerance": 0.1, "max_passes": 1000} | changes
    X, Y, M, C = canonical(X), canonical(Y), options.pop("M"), options["C"]
    documents = torch.tensor(X.data, dtype=dtype), torch.tensor(X.indices), torch.tensor(X.indptr).long()
    labels = torch.tensor(Y.indices).long(), torch.tensor(Y.indptr).long()
    out = torch.full((X.shape[1], M), torch.nan, dtype=dtype), torch.full((M,), torch.nan, dtype=dtype)
    factor = _ops.svm_factor(*documents, X.shape[1], C) if newton else None
    return [*documents, buckets, *labels, *options.values(), factor, *out]


@pytest.fixture
def buckets():
    return torch.randint(B - 1, (L,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)


@SOLVERS
@pytest.mark.parametrize("C", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_is_the_optimum(problem, buckets, dtype, C, newton):
    X, Y = problem
    given = arguments(X, Y, buckets, dtype, newton, C=C, tolerance=1e-4)
    passes, violations = _ops.bucket_svm(*given)
    weight, bias = given[-2:]
    assert ((passes > 1) & (passes <= 1000)).all()
    assert (violations <= 1e-4).all()
    used = set(buckets.tolist())
    for b in range(B):
        wanted = np.asarray(Y[:, buckets.numpy() == b].sum(1)).ravel() > 0
        if b not in used:
            assert not weight[:, b].any()
            assert bias[b] == -1
            continue
        other = LinearSVC(C=C, tol=1e-9, max_iter=100_000, dual=True).fit(X, wanted)
        np.testing.assert_allclose(weight[:, b], other.coef_[0], atol=2e-3)
        np.testing.assert_allclose(bias[b], other.intercept_[0], atol=2e-3)


@SOLVERS
@pytest.mark.parametrize("C", [0.1, 1.0])
def test_matches_reference(problem, buckets, C, newton):
    X, Y = problem
    twin = arguments(X, Y, buckets, torch.float64, C=C, tolerance=1e-4)
    _reference.bucket_svm(*twin)
    for dtype in FLOATS:
        given = arguments(X, Y, buckets, dtype, newton, C=C, tolerance=1e-4)
        _ops.bucket_svm(*given)
        for actual, expected in zip(given[-2:], twin[-2:], strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-3, rtol=0, check_dtype=False)


@SOLVERS
def test_the_gradient_of_the_primal_vanishes(problem, buckets, newton):
    X, Y = problem
    given = arguments(X, Y, buckets, torch.float64, newton, C=2.0, tolerance=1e-10, max_passes=100_000)
    _ops.bucket_svm(*given)
    weight, bias = (t.requires_grad_() for t in given[-2:])
    y = torch.full((N, B), -1.0, dtype=torch.float64)
    rows, columns = Y.nonzero()
    y[torch.tensor(rows), buckets[torch.tensor(columns)].long()] = 1
    hinge = (1 - y * (torch.tensor(X.toarray()).double() @ weight + bias)).clamp(min=0)
    loss = (weight.square().sum() + bias.square().sum()) / 2 + 2.0 * hinge.square().sum()
    loss.backward()
    used = (y > 0).any(0)
    assert weight.grad[:, used].abs().max() < 1e-8
    assert bias.grad[used].abs().max() < 1e-8


@SOLVERS
def test_some_buckets_are_those_of_all(problem, buckets, newton):
    """To the bit, as far as the first is a multiple of 16."""
    X, Y = problem
    whole = arguments(X, Y, buckets, newton=newton)
    _ops.bucket_svm(*whole)
    for first, M in ((0, 16), (16, 16), (32, 5), (16, 21)):
        some = arguments(X, Y, buckets, newton=newton, first=first, M=M)
        _ops.bucket_svm(*some)
        assert some[-2].equal(whole[-2][:, first : first + M])
        assert some[-1].equal(whole[-1][first : first + M])


def test_writes_into_views(problem, buckets):
    X, Y = problem
    whole = arguments(X, Y, buckets)
    _ops.bucket_svm(*whole)
    wide, wide_bias = torch.zeros(D, 2 * B), torch.zeros(2 * B)
    _ops.bucket_svm(*whole[:-2], wide[:, ::2], wide_bias[1::2])
    assert wide[:, ::2].equal(whole[-2])
    assert wide_bias[1::2].equal(whole[-1])
    assert not wide[:, 1::2].any()
    assert not wide_bias[::2].any()


@SOLVERS
def test_passes_run_out(problem, buckets, newton):
    X, Y = problem
    given = arguments(X, Y, buckets, newton=newton, tolerance=1e-6, max_passes=2)
    passes, violations = _ops.bucket_svm(*given)
    assert ((passes >= 2) & (passes <= 4)).all()
    assert (violations > 1e-6).all()


def test_the_warning_is_for_violations_that_matter(problem):
    X, Y = problem
    model = mach_ext.MACH(D, L, 4, B, hidden_size=0)
    with pytest.warns(svm.ConvergenceWarning, match=r"of 148 buckets have violations above 0\.5 after max"):
        mach_ext.fit_svm(model, X, Y, tolerance=1e-6, max_passes=1, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", svm.ConvergenceWarning)
        mach_ext.fit_svm(model, X, Y, tolerance=1e-6, max_passes=50, progress=False)


def dense_problem(kind):
    """Few features, where coordinate descent stalls."""
    rng = np.random.default_rng(1)
    X = np.exp(rng.normal(size=(600, 12))).astype(np.float32)
    if kind == "long rows":
        X *= np.exp(rng.normal(size=(600, 1))).astype(np.float32)
    elif kind == "badly scaled columns":
        X *= np.exp(3 * rng.normal(size=(1, 12))).astype(np.float32)
    elif kind == "twice":
        X[:, 6:] = X[:, :6]  # features that are the same
        X[300:] = X[:300]
    elif kind == "constant":
        X[:, :6] = 3
        X[::7] = 0
    Y = (X @ rng.normal(size=(12, L)) + np.exp(rng.normal(size=(600, L)))) > 4
    Y[:, 3], Y[:, 4] = True, False
    return scipy.sparse.csr_matrix(X), scipy.sparse.csr_matrix(Y, dtype=np.float32)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["", "long rows", "badly scaled columns", "twice", "constant"])
def test_few_dense_features_converge(kind, dtype):
    X, Y = dense_problem(kind)
    each = torch.arange(L, dtype=torch.int32)
    given = arguments(X, Y, each, dtype, newton=True, M=L, C=10.0, tolerance=0.3, max_passes=100)
    _, violations = _ops.bucket_svm(*given)
    assert (violations <= 0.3).all()
    y = np.where(Y.toarray() > 0, 1.0, -1.0)

    def objective(weight, bias, y):
        hinge = np.maximum(0, 1 - y * (X @ weight + bias))
        return (np.square(weight).sum(0) + np.square(bias)) / 2 + 10 * np.square(hinge).sum(0)

    reached = objective(given[-2].double().numpy(), given[-1].double().numpy(), y)
    for b in range(L):
        if 0 < (y[:, b] > 0).sum() < len(y):
            other = LinearSVC(C=10.0, tol=1e-8, max_iter=10_000, dual=False).fit(
                X.astype(np.float64), y[:, b]
            )
            best = objective(other.coef_.T, other.intercept_, y[:, b : b + 1])[0]
            assert reached[b] <= best * (1 + 1e-5) + 1e-6
    assert given[-1][4] == -1


def test_the_solver_follows_from_the_shape(monkeypatch):
    """Newton's method where D x D numbers are at most the non-zeros, coordinate descent elsewhere."""
    factors = []
    original = _ops.svm_factor
    monkeypatch.setattr(_ops, "svm_factor", lambda *given: factors.append(given) or original(*given))
    X, Y = dense_problem("")
    mach_ext.fit_svm(mach_ext.MACH(12, L, 2, B, hidden_size=0), X, Y, progress=False)
    assert len(factors) == 1
    mach_ext.fit_svm(mach_ext.MACH(12, L, 2, B, hidden_size=0), X[:11], Y[:11], progress=False)
    assert len(factors) == 1


@SOLVERS
@pytest.mark.parametrize("rows", [1, 2])
def test_hardly_any_documents(rows, newton):
    X = scipy.sparse.csr_matrix(np.array([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]], np.float32)[:rows])
    Y = scipy.sparse.csr_matrix(np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)[:rows])
    given = arguments(X, Y, torch.arange(2, dtype=torch.int32), newton=newton, M=2, tolerance=1e-5)
    _ops.bucket_svm(*given)
    for b in range(rows):
        z = X @ given[-2][:, b].numpy() + given[-1][b].numpy()
        assert (np.argmax(z) == b) or rows == 1
    if rows == 1:
        assert given[-1][1] == -1


@SOLVERS
def test_numbers_that_overflow_leave_a_finite_model(newton):
    X, Y = dense_problem("")
    X.data[:12] *= np.float32(1e25)
    given = arguments(X, Y, torch.arange(L, dtype=torch.int32), newton=newton, M=L, max_passes=20)
    _ops.bucket_svm(*given)
    assert all(t.isfinite().all() for t in given[-2:])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_factor_matches_reference(problem, dtype):
    X = arguments(*problem, torch.zeros(L, dtype=torch.int32), dtype)[:3]
    for C in (0.1, 10.0):
        actual, expected = (module.svm_factor(*X, D, C) for module in (_ops, _reference))
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        torch.library.opcheck(torch.ops.mach_ext.svm_factor, (*X, D, C))


@SOLVERS
def test_threads_do_not_change_the_solution(problem, buckets, newton):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            given = arguments(*problem, buckets, newton=newton)
            _ops.bucket_svm(*given)
            results.append(given[-2:])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(a.equal(b) for a, b in zip(results[0], other, strict=True))


@SOLVERS
def test_a_bucket_that_all_want(newton):
    X = scipy.sparse.csr_matrix(np.eye(4, dtype=np.float32))
    Y = scipy.sparse.csr_matrix(np.ones((4, 1), np.float32))
    given = arguments(X, Y, torch.tensor([2], dtype=torch.int32), newton=newton, M=3, tolerance=1e-5)
    _ops.bucket_svm(*given)
    assert (given[-1][:2] == -1).all()
    # By symmetry all weights are v; v = 2 h and bias = 8 h for a hinge h = 1 - v - bias: h = 1 / 11.
    torch.testing.assert_close(given[-2][:, 2], torch.full((4,), 2 / 11), atol=1e-4, rtol=0)
    torch.testing.assert_close(given[-1][2], torch.tensor(8 / 11), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@SOLVERS
def test_opcheck(problem, buckets, dtype, newton):
    given = arguments(*problem, buckets, dtype, newton)
    given[-2:] = torch.zeros(D, B, dtype=dtype), torch.zeros(B, dtype=dtype)
    torch.library.opcheck(torch.ops.mach_ext.bucket_svm, given)


@SOLVERS
def test_deterministic(problem, buckets, newton):
    given = arguments(*problem, buckets, newton=newton)

    def run():
        weight, bias = torch.zeros(D, B), torch.zeros(B)
        return *_ops.bucket_svm(*given[:-2], weight, bias), weight, bias

    assert_deterministic(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: lambda t: t.long()}, "indices must be"),
        ({1: lambda t: t + D}, r"an index is outside \[0, D\)"),
        ({4: lambda t: t + L}, r"a label is outside \[0, L\)"),
        ({5: lambda t: t[:-1]}, r"label_indptr"),
        ({7: lambda t: 0.0}, "C must be within 1e-6 and 1e6, tolerance above 0"),
        ({9: lambda t: 0}, "max_passes must be within"),
        ({10: lambda t: torch.zeros(D, D)}, "factor must have shape"),
        ({10: lambda t: torch.zeros(D + 1, D + 1).double()}, "factor must be"),
        ({11: lambda t: t.double()}, "weight must be"),
        ({12: lambda t: t[1:]}, "bias must have shape"),
    ],
)
def test_what_does_not_fit_is_refused(problem, buckets, change, message):
    given = arguments(*problem, buckets)
    for at, replace in change.items():
        given[at] = replace(given[at])
    with pytest.raises(RuntimeError, match=f"bucket_svm: .*{message}"):
        _ops.bucket_svm(*given)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_fit_svm_solves_every_bucket(problem, dtype):
    X, Y = problem
    model = mach_ext.MACH(D, L, 3, B, hidden_size=0, merge="mean_logprob", seed=5).to(dtype)
    X = X / np.float32(np.median(scipy.sparse.linalg.norm(X[X.getnnz(1) > 0], axis=1)))
    mach_ext.fit_svm(model, X, Y, C=0.5, tolerance=0.1, progress=False)
    for r in range(3):
        given = arguments(X, Y, model.hash.buckets[r], dtype, C=0.5)
        _ops.bucket_svm(*given)
        torch.testing.assert_close(model.bucket_weight[r].detach(), svm.SLOPE * given[-2], atol=1e-5, rtol=0)
        torch.testing.assert_close(model.bucket_bias[r].detach(), svm.SLOPE * given[-1], atol=1e-5, rtol=0)
    assert not model.training
    longer = mach_ext.MACH(D, L, 3, B, hidden_size=0, merge="mean_logprob", seed=5).to(dtype)
    mach_ext.fit_svm(longer, 8 * X, Y, C=0.5, tolerance=0.1, progress=False)
    torch.testing.assert_close(8 * longer.bucket_weight, model.bucket_weight, atol=1e-5, rtol=0)
    again = mach_ext.MACH(D, L, 3, B, hidden_size=0, seed=5).to(dtype)
    with torch.no_grad():  # what was there before does not matter
        again.bucket_weight.fill_(3)
        again.adjust_logits(np.arange(L), 0.5)
    mach_ext.fit_svm(again, X, Y, C=0.5, tolerance=0.1, progress=False)
    assert all(a.equal(b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not again.logit_adjustment.any()


def test_an_interrupt_leaves_whole_buckets(problem, monkeypatch):
    X, Y = problem
    whole, stopped = (mach_ext.MACH(D, L, 3, B, hidden_size=0) for _ in range(2))
    mach_ext.fit_svm(whole, X, Y, progress=False)
    stopped.adjust_logits(np.arange(L), 0.5)
    calls, original = [], _ops.bucket_svm

    def interrupted(*given, **named):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*given, **named)

    monkeypatch.setattr(_ops, "bucket_svm", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mach_ext.fit_svm(stopped, X, Y, progress=False)
    assert stopped.bucket_weight[:2].equal(whole.bucket_weight[:2])
    assert stopped.bucket_bias[:2].equal(whole.bucket_bias[:2])
    untouched = mach_ext.MACH(D, L, 3, B, hidden_size=0).bucket_bias[2]
    torch.testing.assert_close(stopped.bucket_bias[2], untouched)


def test_a_model_of_svms_is_a_model(problem, tmp_path):
    X, Y = problem
    model = mach_ext.MACH(D, L, 3, B, hidden_size=0, merge="mean_logprob")
    mach_ext.fit_svm(model, X, Y, progress=False)
    before = mach_ext.MACH(D, L, 3, B, hidden_size=0, merge="mean_logprob")

    def precision(model):
        return mach_ext.metrics.evaluate(Y, model.predict(X, 3)[1])["P@1"]

    assert precision(model) > precision(before) + 0.3
    model.save(tmp_path, quantization_step=0.05)
    assert (mach_ext.load(tmp_path).predict(X, 1)[1] == model.predict(X, 1)[1]).mean() > 0.9
    explanation = mach_ext.explain.integrated_gradients(model, X[0], [1, 2])
    assert explanation.attributions.shape == (2, X[0].nnz)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ({"hidden_size": 8}, {}, r"is for linear MACH .* got hidden_size=\(8,\)"),
        ({}, {"C": 0}, "C must be within 1e-06 and 1000000.0, got 0.0"),
        ({}, {"tolerance": float("nan")}, "tolerance must be within .*, got nan"),
        ({}, {"max_passes": 0}, "max_passes must be within 1 and 2147483647, got 0"),
        ({}, {"rows": 3}, "X and Y must have as many rows"),
        ({}, {"rows": 0}, "needs at least one document"),
    ],
)
def test_fit_svm_refuses(problem, model, changes, message):
    X, Y = problem
    changes = dict(changes)
    if "rows" in changes:
        rows = changes.pop("rows")
        X, Y = X[:rows], (Y if rows else Y[:0])
    model = mach_ext.MACH(D, L, 4, B, **{"hidden_size": 0, **model})
    with pytest.raises(ValueError, match=f"fit_svm: {message}"):
        mach_ext.fit_svm(model, X, Y, progress=False, **changes)


def test_a_shortage_of_memory_is_said_where_the_user_calls(problem, monkeypatch):
    model = mach_ext.MACH(D, L, num_repetitions=2, num_buckets=B, hidden_size=0)
    monkeypatch.setattr(checks, "WORTH_A_LOOK", 0)
    monkeypatch.setattr(available, "available_memory", lambda device="cpu", swap=False: int(swap) << 50)
    with pytest.warns(ResourceWarning, match="fit_svm: memory is short") as caught:
        mach_ext.fit_svm(model, *problem)
    assert [said.filename for said in caught] == [__file__]


def primal(model, X, Y):
    """The sum of the primal objectives of the first repetition's buckets."""
    length = mach_ext.training.typical_length(X)
    weight = model.bucket_weight[0].detach().numpy() * length / 4
    bias = model.bucket_bias[0].detach().numpy() / 4
    buckets = model.hash.buckets[0].numpy()
    y = np.stack([Y[:, buckets == b].sum(1).A1 > 0 for b in range(model.num_buckets)], 1) * 2.0 - 1
    margins = y * (X @ weight / length + bias)
    return float(((weight**2).sum() + (bias**2).sum()) / 2 + (np.maximum(0, 1 - margins) ** 2).sum())


@pytest.mark.parametrize("factor", [1.0, 100.0, 1e4])
def test_a_long_document_is_solved_or_said_not_to_be(factor):
    """Documents of few features of many, which coordinate descent solves."""
    rng = np.random.default_rng(0)
    X = scipy.sparse.random(300, 400, 0.02, format="csr", random_state=rng)
    X = (scipy.sparse.diags(np.r_[factor, np.ones(299)]) @ X).tocsr()
    Y = scipy.sparse.csr_matrix(np.eye(2)[rng.integers(0, 2, 300)])
    values, said = [], []
    for tolerance in (0.3, 1e-4):
        model = mach_ext.MACH(400, 2, 4, 2, hidden_size=0, merge="mean_logprob").double()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            mach_ext.fit_svm(model, X, Y, tolerance=tolerance, max_passes=5000, progress=False)
        values.append(primal(model, X, Y))
        said.append(any(isinstance(each.message, mach_ext.svm.ConvergenceWarning) for each in caught))
    assert said[0] or values[0] < 1.1 * values[1]
