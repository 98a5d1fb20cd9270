"""Attacks: every perturbation keeps its threat model, losses only rise, no N x D changes the numbers."""

import numpy as np
import pytest
import scipy.sparse
import torch
from helpers import FLOATS, bitwise_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from test_nn import ARCHITECTURES, D, L, dense_forward, draw, model_of

import mach_ext
from mach_ext import _ops, _reference, attack, explain, metrics
from mach_ext.attack import FGSM, L1, L2, PGD, Delete, Dense, Greedy, Insert, Random, Support, _dense

pytestmark = pytest.mark.usefixtures("one_thread")
THREATS = [Support(), Insert(m=3), L2(), L1(), Dense(), Dense(nonnegative=True), Support(nonnegative=False)]
GRID = [0.0, 0.01, 0.3]


def labels_of(n=7, seed=1):
    Y = scipy.sparse.random(n, L, density=0.05, format="csr", random_state=seed)
    Y.data[:] = 1
    return Y


def true_losses(model, X, Y):
    """Sum over buckets of the cross-entropy, by the definition, on a dense matrix."""
    targets = torch.zeros(X.shape[0], model.num_repetitions, model.num_buckets, dtype=torch.float64)
    for n, label in zip(*Y.nonzero(), strict=True):
        targets[n, torch.arange(model.num_repetitions), model.hash.buckets[:, label].long()] = 1
    double = mach_ext.MACH(**model.configuration()).double()
    double.load_parameters({k: v.double() for k, v in model.named_parameters()})
    double.requires_grad_(False)
    x = X if isinstance(X, torch.Tensor) else torch.from_numpy(X.toarray())
    logits = dense_forward(double, x.double())
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum((1, 2))


# ------------------------------------------------------------------------------------------- the operator


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_signs_match_reference(device, dtype, nonnegative):
    @given(N=st.integers(0, 5), T=st.sampled_from([0, 1, 15, 64, 700]), seed=st.integers(0, 2**32))
    def check(N, T, seed):
        generator = torch.Generator().manual_seed(seed)
        special = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-40, -2.0])
        larger = special[torch.randint(7, (N, T + 3), generator=generator)].to(dtype).to(device)
        ours, theirs = larger[:, :T], larger[:, :T].cpu().clone()
        rest = larger[:, T:].clone()
        counts = _ops.signs(ours, nonnegative)
        assert torch.equal(counts.cpu(), _reference.signs(theirs, nonnegative))
        assert bitwise_equal(ours, theirs)
        assert bitwise_equal(larger[:, T:], rest)

    check()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_opcheck_signs(device, generator, dtype):
    tile = torch.randn(3, 20, generator=generator, dtype=dtype).to(device)
    torch.library.opcheck(torch.ops.mach_ext.signs, (tile, False))
    with pytest.raises(RuntimeError, match="contiguous rows"):
        _ops.signs(tile.T, False)


# ----------------------------------------------------------------------------------------- every attack


@pytest.mark.parametrize("goal", attack.GOALS)
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_perturbations_keep_their_model_and_losses_rise(threat, goal):
    """loss(PGD) >= loss(FGSM) >= loss(clean), document by document; eps = 0 is the clean input to the bit."""

    @settings(max_examples=3)
    @given(name=st.sampled_from(list(ARCHITECTURES)), seed=st.integers(0, 99))
    def check(name, seed):
        model, X, Y = model_of(name), draw(seed=seed), labels_of(seed=seed)
        X = scipy.sparse.csr_matrix(X.multiply(np.arange(7)[:, None] != 2), dtype=np.float32)
        X.eliminate_zeros()
        if not threat.nonnegative:
            X.data *= np.random.default_rng(seed).choice([-1, 1], X.nnz)
        one, many = (
            kind(model, threat, goal, k=3, batch_size=4, **options).perturb(X, Y, GRID)
            for kind, options in ((FGSM, {}), (PGD, {"steps": 3}))
        )
        for epsilon, a, b in zip(GRID, one, many, strict=True):
            assert (a.loss >= a.clean_loss).all()
            assert (b.loss >= a.loss).all()
            for found in (a, b):
                assert found.holds()
                assert threat.holds(X, found.to_csr(), epsilon)
                assert (found.norms["linf"] <= epsilon + 2e-7).all()
            if epsilon == 0:
                for before, after in zip(
                    (X.data, X.indices, X.indptr), ((m := a.to_csr()).data, m.indices, m.indptr), strict=True
                ):
                    assert before.tobytes() == after.tobytes()
                assert (a.loss == a.clean_loss).all()

    check()


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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_dense_fgsm_is_the_materialised_one(name):
    model, X, Y = model_of(name), draw(), labels_of()
    found = FGSM(model, "dense", keep_best=False).perturb(X, Y, [0.01, 0.2])
    x = torch.from_numpy(X.toarray()).double().requires_grad_()
    (gradient,) = torch.autograd.grad(true_losses(model, x, Y).sum(), x)
    sure = gradient.abs() > 1e-5 * gradient.abs().max()
    for epsilon, one in zip((0.01, 0.2), found, strict=True):
        step = (x + epsilon * gradient.sign()).detach()
        written = torch.from_numpy(one.to_csr().toarray()).double()
        torch.testing.assert_close(written[sure], step[sure], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one.loss, true_losses(model, step, Y), rtol=1e-4)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(list(ARCHITECTURES)))
def test_a_small_untargeted_step_does_not_lower_the_loss(seed, name):
    """Of the plain step, kept whatever it does: to rounding of losses of some hundreds in float32."""
    model, X, Y = model_of(name).double(), draw(seed=seed), labels_of(seed=seed)
    for threat in (Support(nonnegative=False), Dense(), L2(nonnegative=False), L1(nonnegative=False)):
        found = FGSM(model, threat, keep_best=False).perturb(X, Y, 1e-7)
        assert (found.loss >= found.clean_loss - 1e-9 * found.clean_loss).all()


def test_greedy_deletion_and_insertion():
    model, X, Y = model_of(), draw(density=0.3), labels_of()
    found = Greedy(model).perturb(X, Y, [0, 1, 2, 5])
    losses = np.stack([f.loss for f in found])
    assert (np.diff(losses, axis=0) >= 0).all()
    assert (losses[-1] > losses[0]).any()
    for count, one in zip((0, 1, 2, 5), found, strict=True):
        assert one.holds()
        assert (one.norms["removed"] <= count).all()
        np.testing.assert_allclose(one.loss, true_losses(model, one.to_csr(), Y), rtol=1e-4)
    # The first word is the one of the largest gradient x input among all.
    x = torch.from_numpy(X.toarray()).double().requires_grad_()
    (gradient,) = torch.autograd.grad(true_losses(model, x, Y).sum(), x)
    best = (-gradient * x).argmax(1).numpy()
    written = found[1].to_csr().toarray()
    for n in np.flatnonzero(losses[1] > losses[0]):
        assert written[n, best[n]] == 0
    added = Greedy(model, Insert(m=3)).perturb(X, Y, [0.0, 0.4])
    assert (added[1].loss >= added[1].clean_loss).all()
    assert (added[1].norms["added"] <= 3).all()
    assert added[1].norms["added"].max() > 0
    assert added[1].holds()
    np.testing.assert_allclose(added[1].loss, true_losses(model, added[1].to_csr(), Y), rtol=1e-4)


def test_greedy_gives_the_same_for_any_grid():
    model, X, Y = model_of(), draw(density=0.2), labels_of()
    whole = Greedy(model).perturb(X, Y, [0, 1, 2, 3, 50])
    for count, one in zip((50, 3, 0, 3), Greedy(model).perturb(X, Y, [50, 3, 0, 3]), strict=True):
        same = whole[min(count, 4)]
        assert (one.to_csr() != same.to_csr()).nnz == 0
        assert (one.loss == same.loss).all()


def test_noise_of_word_insertion_leaves_own_words_alone():
    """The control of Greedy: the same m new features, nothing else; that of FGSM moves own ones, too."""
    model, X, Y = model_of(), draw(), labels_of()
    for nonnegative in (True, False):
        noise = Random(model, Insert(m=3, nonnegative=nonnegative), words=True).perturb(X, Y, 0.5)
        change = (noise.to_csr() - X).toarray()
        assert (change[X.toarray() != 0] == 0).all()
        assert ((change != 0).sum(1) == 3).all()
        assert set(np.unique(change)) == {0, 0.5}
    found = attack.evaluate(model, X, Y, attack="insert", threat_model="insert(3)", epsilons=[0.5])
    assert found["adversarial"][0]["size"]["random_l2"] == pytest.approx(0.5 * 3**0.5)
    found = attack.evaluate(model, X, Y, attack="fgsm", threat_model="insert(3)", epsilons=[0.5])
    assert found["adversarial"][0]["size"]["random_l2"] > 0.9


@pytest.mark.parametrize("threat", [*THREATS, Delete()], ids=str)
def test_noise_is_the_same_in_every_call(threat):
    model, X, Y = model_of(), draw(n=9), labels_of(9)
    grid = [1, 2] if threat == Delete() else [0.1, 0.3]
    control, other = (Random(model, threat, batch_size=4, seed=seed) for seed in (0, 9))
    three = (one.perturb(X, Y, grid) for one in (control, control, other))
    for a, b, c in zip(*three, strict=True):
        assert bitwise_equal(torch.from_numpy(a.to_csr().toarray()), torch.from_numpy(b.to_csr().toarray()))
        assert (a.loss == b.loss).all()
        assert (a.to_csr() != c.to_csr()).nnz
    if isinstance(threat, Dense):
        change = (control.perturb(X, Y, 0.1).to_csr() - X).toarray()
        assert not (np.sign(change[0]) == np.sign(change[4])).all()  # the next batch's noise is its own


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_pgd_goes_beyond_fgsm_on_l1(name):
    """Values at a bound do not stop it: it is better somewhere, never worse, and stays in the ball."""
    better = 0
    for seed in range(4):
        model, X, Y = model_of(name), draw(density=0.3, seed=seed), labels_of(seed=seed)
        for epsilon in (0.5, 2.0):
            one = FGSM(model, "l1").perturb(X, Y, epsilon)
            many = PGD(model, "l1", steps=10).perturb(X, Y, epsilon)
            assert (many.loss >= one.loss).all()
            assert many.holds()
            better += int((many.loss > one.loss + 1e-3).sum())
    assert better


def test_pgd_on_l1_leaves_a_feature_that_is_used_up():
    """z = relu(1 - 5 x0 + x2 / 2) - 2 relu(0.6 - x1) rises most along -x0, which has 0.1 of room, then along
    x1, which counts up to 0.6 only; FGSM spends 0.3 on it, the best point 0.1 and the rest on x2."""
    with pytest.warns(mach_ext.CollisionWarning):
        model = mach_ext.MACH(3, 8, num_repetitions=2, num_buckets=4, hidden_size=2)
    with torch.no_grad():
        model.encoder_weight.copy_(torch.tensor([[-5.0, 0.0], [0.0, -1.0], [0.5, 0.0]]))
        model.encoder_bias.copy_(torch.tensor([1.0, 0.6]))
        model.bucket_weight[:, 0], model.bucket_weight[:, 1] = 1.0, -2.0
        model.bucket_bias.zero_()
    X = scipy.sparse.csr_matrix(np.array([[0.1, 0.5, 0.5]], np.float32))
    none = scipy.sparse.csr_matrix((1, 8))  # no label is true: the loss rises with every logit
    one = FGSM(model, "l1").perturb(X, none, 0.4)
    np.testing.assert_allclose(one.to_csr().toarray(), [[0, 0.8, 0.5]], atol=1e-6)
    many = PGD(model, "l1", steps=10).perturb(X, none, 0.4)
    np.testing.assert_allclose(many.to_csr().toarray(), [[0, 0.6, 0.7]], atol=0.02)
    assert many.loss > one.loss


def test_epsilon_0_is_the_input_in_its_own_dtype():
    X = scipy.sparse.csr_matrix(draw(), dtype=np.float64)
    X.data += 1e-12  # not a float32
    for model in (model_of(), model_of().double()):
        for threat in ("support", "dense"):
            written = FGSM(model, threat).perturb(X, labels_of(), 0.0).to_csr()
            assert written.dtype == X.dtype
            for name in ("data", "indices", "indptr"):
                assert getattr(written, name).tobytes() == getattr(X, name).tobytes()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_epsilons_share_one_offset(name):
    """A tensor [N, C, M] of a linear model is as large as its bucket logits."""
    found = FGSM(model_of(name), "dense").perturb(draw(), labels_of(), [0.1, 0.2, 0.3])
    assert len({one._batches[0].offset.data_ptr() for one in found}) == 1


def test_targeted_goals():
    model, X = model_of(), draw()
    ranked = model.predict(X, L)[1]
    Y = scipy.sparse.csr_matrix((np.ones(7), (np.arange(7), ranked[:, 1])), (7, L))
    out = PGD(model, "dense", "positive", k=3).perturb(X, Y, 0.5)
    assert (out.targets == ranked[:, 1]).all()
    assert not (out.predict(3)[1] == out.targets[:, None]).any(1).all()
    into = PGD(model, "dense", "negative", k=3).perturb(X, Y, 0.5)
    assert (into.targets == ranked[:, 3]).all()
    assert (into.predict(3)[1] == into.targets[:, None]).any(1).any()
    chosen = FGSM(model, "support", "negative", k=3).perturb(X, Y, 0.1, targets=ranked[:, 50])
    assert (chosen.targets == ranked[:, 50]).all()
    nothing = FGSM(model, "support", "positive", k=1).perturb(X, Y, 0.1)  # no true label is first
    assert (nothing.targets == -1).all()
    assert (nothing.loss == 0).all()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_captum_fgsm_and_pgd_agree(name):
    """The same forward function, the same loss: a difference of two labels' scores."""
    robust = pytest.importorskip("captum.robust", reason="Captum is not installed: nothing to compare with")
    model, X, Y = model_of(name), draw(), labels_of()
    options = {"threat_model": Support(nonnegative=False), "goal": "negative", "k": 3, "keep_best": False}
    ours = FGSM(model, **options).perturb(X, Y, 0.1)
    rival = model.predict(X, 3)[1][:, 2]
    pairs = np.stack((ours.targets, rival), 1)
    forward, inputs, args = explain.captum_inputs(model, X, pairs)
    real = args[0] >= 0

    def loss(scores, target):
        return scores[:, 0] - scores[:, 1]

    values = inputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(forward(values, *args), None).sum(), values)
    sure = real & (gradient.abs() > 1e-5)  # Captum takes gradients below 1e-6 as 0
    theirs = robust.FGSM(forward, loss).perturb(
        inputs.requires_grad_(), 0.1, target=0, additional_forward_args=args
    )
    at = torch.from_numpy(ours.to_csr().toarray()).gather(1, args[0].clamp(min=0))
    torch.testing.assert_close(at[sure], theirs[sure], rtol=1e-5, atol=1e-6)

    ours = PGD(model, steps=4, step_size=0.3, **options).perturb(X, Y, 0.1)
    theirs = robust.PGD(forward, loss).perturb(
        inputs, 0.1, 0.03, 4, target=0, additional_forward_args=args, norm="Linf"
    )
    at = torch.from_numpy(ours.to_csr().toarray()).gather(1, args[0].clamp(min=0))
    close = (at - theirs).abs() < 1e-5
    assert close[sure].double().mean() > 0.98  # a unit at its kink may send one the other way


# ----------------------------------------------------------------------------------------- threat models


def test_holds_tells_what_does_not():
    X = scipy.sparse.csr_matrix([[0.5, 0.0, 0.2, 0.0, 0.0]])

    def holds(threat, epsilon, *row):
        return threat.holds(X, scipy.sparse.csr_matrix([row]), epsilon)

    assert holds(Support(), 0.1, 0.6, 0, 0.1, 0, 0)
    assert not holds(Support(), 0.1, 0.61, 0, 0.2, 0, 0)
    assert not holds(Support(), 0.3, 0.5, 0, -0.1, 0, 0)
    assert holds(Support(nonnegative=False), 0.3, 0.5, 0, -0.1, 0, 0)
    assert not holds(Support(), 0.3, 0.5, 0.1, 0.2, 0, 0)
    assert holds(Insert(m=1), 0.3, 0.5, 0.1, 0.2, 0, 0)
    assert not holds(Insert(m=1), 0.3, 0.5, 0.1, 0.2, 0.1, 0)
    assert holds(Dense(), 0.1, 0.5, -0.1, 0.2, 0.1, 0)
    assert not holds(Dense(nonnegative=True), 0.1, 0.5, -0.1, 0.2, 0.1, 0)
    assert holds(L2(), 0.5, 0.8, 0, 0.6, 0, 0)
    assert not holds(L2(), 0.5, 0.9, 0, 0.6, 0, 0)
    assert not holds(L1(), 0.5, 0.8, 0, 0.6, 0, 0)
    assert holds(Delete(), 1, 0.5, 0, 0, 0, 0)
    assert not holds(Delete(), 1, 0, 0, 0, 0, 0)
    assert not holds(Delete(), 1, 0.5, 0, 0.1, 0, 0)


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


def test_l1_vertex_is_the_best_point_of_its_set():
    """Against a linear program solved by hand: fill by falling gradient."""
    x = torch.tensor([0.1, 0.5, 0.2], dtype=torch.float64)
    g = torch.tensor([-5.0, 3.0, -1.0], dtype=torch.float64)
    rows = torch.zeros(3, dtype=torch.int64)
    found = L1().vertex(x, g, rows, 1, 0.4)
    torch.testing.assert_close(found, x + torch.tensor([-0.1, 0.3, 0.0]).double(), rtol=0, atol=1e-5)


# ----------------------------------------------------------------------------------------------- evaluate


@pytest.mark.parametrize(("kind", "threat"), [("fgsm", "dense"), ("pgd", "support"), ("delete", "delete")])
def test_evaluate(kind, threat):
    model, X, Y = model_of(), draw(n=40), labels_of(n=40)
    q = metrics.inverse_propensity(Y)
    bands = metrics.label_frequency_bands(Y, 1, 3)
    other = model_of(seed=5)
    grid = (0, 1, 2) if kind == "delete" else (0.0, 0.05, 0.5)
    result = attack.evaluate(
        model, X, Y, attack=kind, threat_model=threat, epsilons=grid, targeted=True, inverse_propensity=q,
        bands=bands, transfer=other, steps=2, resamples=100,
    )  # fmt: skip
    expected = metrics.evaluate(Y, model.predict(X, 5)[1], inverse_propensity=q)
    for entry in (result["clean"], result["adversarial"][0]["metrics"], result["adversarial"][0]["random"]):
        for name in ("P@1", "P@5", "nDCG@3", "PSP@1", "PSP@5"):
            assert entry[name] == pytest.approx(expected[name])
            low, high = entry[f"{name} interval"]
            assert low <= entry[name] <= high
    first, *_, last = result["adversarial"]
    assert first["size"]["l2"] == 0
    assert last["loss"] > last["clean_loss"] == pytest.approx(first["loss"])
    transferred = metrics.evaluate(Y, other.predict(X, 5)[1])
    assert first["transfer"]["P@1"] == pytest.approx(transferred["P@1"])
    assert result["transfer_clean"] == first["transfer"]
    assert result["steps"] == (2 if kind == "pgd" else None)
    assert "transfer_clean" not in attack.evaluate(model, X, Y, epsilons=[0.1], resamples=0)
    for rates in last["targeted"].values():
        assert set(rates) == {"all", "head", "torso", "tail"}
    rates = last["targeted"]["positive"]
    assert sum(rates[b]["documents"] for b in ("head", "torso", "tail")) == rates["all"]["documents"]


@pytest.mark.parametrize("labels", [1, 2, 3, 5])
def test_fewer_labels_than_the_usual_k(labels):
    """By default as many as there are; targeted goals need one outside the top k."""
    model = mach_ext.MACH(D, labels, num_repetitions=4, num_buckets=8, hidden_size=4)
    X, Y = draw(), scipy.sparse.csr_matrix(np.eye(labels)[np.arange(7) % labels])
    assert FGSM(model).perturb(X, Y, 0.1).predict()[1].shape == (7, labels)
    assert FGSM(model, goal="own").k == labels
    ks = [k for k in (1, 3, 5, labels) if k <= labels]
    result = attack.evaluate(model, X, Y, epsilons=[0.1], resamples=10)
    assert result["k"] == labels
    assert [name for name in result["clean"] if name[:2] == "P@" and "interval" not in name] == [
        f"P@{k}" for k in dict.fromkeys(ks)
    ]
    if labels == 1:
        with pytest.raises(ValueError, match="goal 'positive' needs a label outside the top k, got L=1"):
            attack.evaluate(model, X, Y, targeted=True)
        return
    for goal in ("positive", "negative"):
        assert FGSM(model, goal=goal).k == labels - 1
    result = attack.evaluate(model, X, Y, epsilons=[0.1], resamples=10, targeted=True)
    assert result["k"] == labels - 1
    assert result["adversarial"][0]["targeted"]["positive"]["all"]["documents"] > 0
    with pytest.raises(ValueError, match=rf"needs k < L={labels}, got {labels}"):
        attack.evaluate(model, X, Y, targeted=True, k=labels)
    with pytest.raises(ValueError, match=rf"k must be in 1 \.\.\. L={labels}, got 6"):
        attack.evaluate(model, X, Y, k=6)


def test_metrics_of_an_evaluation_are_those_up_to_k():
    model, X, Y = model_of(), draw(), labels_of()
    for k, expected in ((None, [1, 3, 5]), (2, [1, 2]), (3, [1, 3]), (7, [1, 3, 5, 7])):
        clean = attack.evaluate(model, X, Y, epsilons=[0.0], resamples=0, k=k)["clean"]
        assert list(clean) == [f"{name}@{k}" for name in ("P", "nDCG") for k in expected]


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


# --------------------------------------------------------------------------------------------- bad input


def perturb(**changes):
    options = {"model": model_of(), "threat_model": "support", "goal": "untargeted", "k": 5, "kind": FGSM}
    call = {"X": draw(), "Y": labels_of(), "epsilon": 0.1}
    options.update({k: v for k, v in changes.items() if k in options})
    call.update({k: v for k, v in changes.items() if k in call or k == "targets"})
    kind = options.pop("kind")
    return kind(**options).perturb(**call)


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (ValueError, r"epsilon must be a number >= 0, got -0.1", {"epsilon": -0.1}),
        (ValueError, r"epsilon must be a number >= 0, got nan", {"epsilon": [0.1, float("nan")]}),
        (ValueError, r"goal 'untargeted' needs the true labels Y", {"Y": None}),
        (ValueError, r"Y must be \[N, L\] = \[7, 90\], got shape \(3, 90\)", {"Y": labels_of(3)}),
        (TypeError, r"Y: must be a SciPy sparse matrix", {"Y": [1, 2]}),
        (ValueError, r"X must have D=60 columns, got shape \(7, 50\)", {"X": draw(columns=50)}),
        (ValueError, r"k must be in 1 \.\.\. L=90, got 91", {"k": 91}),
        (ValueError, r"needs k < L=90", {"k": 90, "goal": "positive"}),
        (ValueError, r"goal must be one of", {"goal": "all"}),
        (TypeError, r"model must be a mach_ext.MACH", {"model": None}),
        (ValueError, r"threat model support keeps values >= 0, but X has -", {"X": -draw()}),
        (ValueError, r"m must be in 0 \.\.\. \d+, .* got 60", {"threat_model": "insert(60)"}),
        (ValueError, r"threat model must be one of dense, support", {"threat_model": "linf"}),
        (ValueError, r"or as insert\(10\), got 'insert\(3'", {"threat_model": "insert(3"}),
        (ValueError, r"or as insert\(10\), got 'insert\(3\)\)'", {"threat_model": "insert(3))"}),
        (ValueError, r"threat model delete is discrete", {"threat_model": "delete"}),
        (
            ValueError,
            r"number of words, got 0.5",
            {"kind": Greedy, "threat_model": "delete", "epsilon": 0.5},
        ),
        (ValueError, r"must be delete or insert\(m\), got support", {"kind": Greedy}),
        (ValueError, r"targets \[N\] are for goal", {"targets": np.zeros(7, int)}),
        (ValueError, r"in \[0, L=90\)", {"goal": "negative", "targets": np.full(7, 90)}),
    ],
)
def test_bad_input(error, message, changes):
    with pytest.raises(error, match=message):
        perturb(**changes)


def test_evaluate_refuses_no_documents():
    with pytest.raises(ValueError, match="evaluate: X must have at least one document, got N=0"):
        attack.evaluate(model_of(), draw()[:0], labels_of()[:0])


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
