"""Attacks: every perturbation keeps its threat model, losses only rise, no N x D changes the numbers."""

import numpy as np
import pytest
import scipy.sparse
import torch
from attack_cases import THREATS, labels_of, true_losses
from helpers import bitwise_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from test_nn import ARCHITECTURES, draw, model_of

import mach_ext
from mach_ext import attack, explain
from mach_ext.attack import FGSM, L1, L2, PGD, Delete, Dense, Greedy, Insert, Random, Support

pytestmark = pytest.mark.usefixtures("one_thread")
GRID = [0.0, 0.01, 0.3]


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
    found = attack.evaluate(model, X, Y, method="insert", threat_model="insert(3)", epsilons=[0.5])
    assert found["adversarial"][0]["size"]["random_l2"] == pytest.approx(0.5 * 3**0.5)
    found = attack.evaluate(model, X, Y, method="fgsm", threat_model="insert(3)", epsilons=[0.5])
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
    """The greatest gain has little room, and the next gain ends early.

    z = relu(1 - 5 x0 + x2 / 2) - 2 relu(0.6 - x1) rises most along -x0, which has 0.1 of room. Then it rises
    along x1, which counts only up to 0.6. FGSM spends 0.3 on x1. The best point spends 0.1 on it and the rest
    on x2.
    """
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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_epsilons_share_one_offset(name):
    """A tensor [N, C, M] of a linear model is as large as its bucket logits."""
    found = FGSM(model_of(name), "dense").perturb(draw(), labels_of(), [0.1, 0.2, 0.3])
    assert len({one._batches[0].offset.data_ptr() for one in found}) == 1


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
