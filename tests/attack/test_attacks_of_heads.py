"""Attacks on a MACHHead: on its own hidden units, and through any encoder."""

import functools
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import scipy.sparse
import torch
from attack_head_cases import (
    ENCODERS,
    GRID,
    NAMES,
    THREATS,
    E,
    H,
    N,
    R,
    T,
    build,
    head_of,
    labels_of,
    losses,
    slope,
    state_of,
)  # fmt: skip
from helpers import bitwise_equal
from torch import nn

import mach_ext
from mach_ext import attack, report
from mach_ext.attack import FGSM, L1, L2, PGD, Dense, Greedy, InputPerturbation, Random, Support

pytestmark = pytest.mark.usefixtures("one_thread")


# -------------------------------------------------------------------------------- the head's own hidden units


@pytest.mark.parametrize("threat", NAMES)
@pytest.mark.parametrize("kind", [FGSM, PGD, Random])
def test_a_head_is_linear_mach_on_its_hidden_units(kind, threat):
    head, Y = head_of(), labels_of()
    X = torch.randn(N, H, generator=torch.Generator().manual_seed(0))
    model = mach_ext.nn.linear_model(head)
    signed = attack.threat_model(threat, nonnegative=False)
    for given in (X, X.numpy(), scipy.sparse.csr_matrix(X.numpy())):
        ours = kind(head, threat).perturb(given, Y, 0.2)
        theirs = kind(model, signed).perturb(X, Y, 0.2)
        assert ours.holds()
        assert (ours.to_csr() != theirs.to_csr()).nnz == 0
        np.testing.assert_array_equal(ours.loss, theirs.loss)
        assert ours.threat_model == signed
    if kind is FGSM:
        np.testing.assert_allclose(ours.clean_loss, losses(head, X, Y).detach(), rtol=1e-5)
        assert (ours.loss > ours.clean_loss).all()


@pytest.mark.parametrize("threat", NAMES)
def test_a_head_is_one_behind_the_identity(threat):
    head, Y = head_of(), labels_of()
    X = torch.randn(N, H, generator=torch.Generator().manual_seed(0))
    for kind in (FGSM, PGD) if threat != "dense" else (FGSM,):  # PGD on dense takes other steps
        ours = kind(head, threat).perturb(X, Y, 0.2)
        theirs = kind(head, threat, encoder=nn.Identity()).perturb(X, Y, 0.2)
        np.testing.assert_allclose(ours.to_csr().toarray(), theirs.inputs, atol=1e-3)
        np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-5)
        np.testing.assert_array_equal(ours.predict(3)[1], theirs.predict(3)[1])


def test_names_of_threat_models_allow_negative_hidden_units_and_objects_say_themselves():
    head, X, Y = head_of(), torch.randn(N, H), labels_of()
    for options in ({}, {"encoder": nn.Identity()}):
        assert FGSM(head, **options).threat_model == Support(nonnegative=False)
        assert FGSM(head, "l1", **options).threat_model == L1(nonnegative=False)
        message = r"support keeps values >= 0, but X has -\d.* in row \d; use Support\(nonnegative=False\)"
        with pytest.raises(ValueError, match=message):
            FGSM(head, Support(), **options).perturb(X, Y, 0.1)
        with pytest.raises(ValueError, match=message):
            attack.evaluate(head, X, Y, threat_model=Support(), **options)
        low = X.relu()
        low[2, 3], low[5, 6] = -0.25, -0.5
        with pytest.raises(ValueError, match=r"X has -0.5 in row 5"):
            FGSM(head, Support(), **options).perturb(low, Y, 0.1)
        above = FGSM(head, Support(), **options).perturb(X.relu(), Y, 0.5)
        written = above.inputs if options else torch.from_numpy(above.to_csr().toarray())
        assert above.holds()
        assert (written >= 0).all()
    assert FGSM(mach_ext.nn.linear_model(head)).threat_model == Support()


def test_words_of_a_head_are_its_hidden_units():
    """Greedy sets hidden units to 0, and inserts only where a document has units of 0."""
    head, Y = head_of(), labels_of()
    X = torch.randn(N, H, generator=torch.Generator().manual_seed(0))
    removed = Greedy(head).perturb(X, Y, [1, 3])
    for count, each in zip((1, 3), removed, strict=True):
        assert each.holds()
        assert (each.norms["removed"] <= count).all()
        assert (each.loss > each.clean_loss).any()
    sparse = X.clone()
    sparse[:, ::2] = 0
    assert (Greedy(head, "insert(2)").perturb(sparse, Y, 0.5).norms["added"] <= 2).all()
    with pytest.raises(ValueError, match=r"m must be in 0 \.\.\. 0, because a document of X lacks only 0"):
        Greedy(head, "insert(2)").perturb(X, Y, 0.5)


def test_evaluate_and_transfer_take_heads():
    head, other, Y = head_of(), head_of(seed=3), labels_of(20)
    X = torch.randn(20, H, generator=torch.Generator().manual_seed(0))
    options = {"threat_model": "l2", "epsilons": [0.0, 0.5], "resamples": 10, "targeted": True}
    result = attack.evaluate(head, X, Y, transfer=other, **options)
    l2 = L2(nonnegative=False)
    first, second = (mach_ext.nn.linear_model(each) for each in (head, other))
    assert result == attack.evaluate(first, X, Y, transfer=second, **{**options, "threat_model": l2})
    found = FGSM(head, "dense").perturb(X, Y, 0.3)
    np.testing.assert_array_equal(found.predict(3, other)[1], found.predict(3, second)[1])
    expected = other.topk(torch.from_numpy(found.to_csr().toarray()), 3)[1]
    np.testing.assert_array_equal(found.predict(3, other)[1], expected)


# ----------------------------------------------------------------------------------- through an encoder


@pytest.mark.parametrize("name", ENCODERS)
def test_fgsm_is_the_one_by_hand(name):
    head, (encoder, X), Y = head_of(), build(name), labels_of()
    encoder.eval()
    gradient = slope(head, encoder, X, Y)
    sure = gradient.abs() > 1e-5 * gradient.abs().max()
    for threat in ("dense", "support"):
        fgsm = FGSM(head, threat, encoder=encoder, keep_best=False)
        for epsilon, found in zip(GRID, fgsm.perturb(X, Y, GRID), strict=True):
            by_hand = X + epsilon * gradient.sign()
            torch.testing.assert_close(found.inputs[sure], by_hand[sure], rtol=2e-7, atol=1e-7)
            assert ((found.inputs - X).sign() == epsilon * gradient.sign()).all() or epsilon
            np.testing.assert_allclose(found.clean_loss, losses(head, encoder(X), Y).detach(), rtol=1e-5)
            adversarial = losses(head, encoder(found.inputs), Y).detach()
            np.testing.assert_allclose(found.loss, adversarial, rtol=1e-5)
    direction = FGSM(head, "l2", encoder=encoder, keep_best=False).perturb(X, Y, 0.3).inputs - X
    by_hand = 0.3 * gradient / gradient.flatten(1).norm(dim=1).view(-1, *[1] * (X.dim() - 1))
    torch.testing.assert_close(direction, by_hand, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_pgd_is_the_one_by_hand(name):
    head, (encoder, X), Y = head_of(), build(name), labels_of()
    encoder.eval()
    found = PGD(head, "dense", encoder=encoder, keep_best=False, steps=4, step_size=0.4).perturb(X, Y, 0.1)
    x = X
    for _ in range(4):
        x = (x + 0.04 * slope(head, encoder, x, Y).sign()).clamp(X - 0.1, X + 0.1)
    close = (found.inputs - x).abs() < 1e-5
    assert close.double().mean() > 0.98  # a unit at its kink may send one the other way


@pytest.mark.parametrize("goal", attack.GOALS)
@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("name", ENCODERS)
def test_inputs_keep_the_threat_model_and_losses_rise(name, threat, goal):
    """loss(PGD) >= loss(FGSM) >= loss(clean), input by input; eps = 0 is the clean input to the bit."""
    head, (encoder, X), Y = head_of(), build(name), labels_of()
    X[2] = 0  # nothing that support may change
    X[3].view(-1)[::2] = -0.0
    fgsm = FGSM(head, threat, goal, 3, encoder=encoder, batch_size=4)
    pgd = PGD(head, threat, goal, 3, encoder=encoder, batch_size=4, steps=3, restarts=1)
    random = Random(head, threat, goal, 3, encoder=encoder)
    results = zip(*(each.perturb(X, Y, GRID) for each in (fgsm, pgd, random)), strict=True)
    for epsilon, (one, many, noise) in zip(GRID, results, strict=True):
        assert (one.loss >= one.clean_loss).all()
        assert (many.loss >= one.loss).all()
        for found in (one, many, noise):
            assert isinstance(found, InputPerturbation)
            assert found.holds()
            assert found.inputs.shape == X.shape
            assert found.norms[{1: "l1", 2: "l2"}.get(threat.norm, "linf")].max() <= epsilon * (1 + 1e-12)
            if isinstance(threat, Support):
                assert (found.inputs[X == 0] == 0).all()
                assert (found.norms["added"] == 0).all()
            if not epsilon:
                assert bitwise_equal(found.inputs, X)
                assert found.inputs.data_ptr() != X.data_ptr()
                np.testing.assert_array_equal(found.loss, found.clean_loss)
        if epsilon == 0.3:
            assert (one.loss > one.clean_loss).any()


def test_what_holds_is_compared_by_the_numbers():
    head, (encoder, X), Y = head_of(), build("transformer"), labels_of()
    X[:, 0] = 0
    for threat in THREATS:
        found = FGSM(head, threat, encoder=encoder).perturb(X, Y, 0.2)
        assert found.holds()
        found.inputs[3, 1, 2] += 0.5
        assert not found.holds()
    found = FGSM(head, "support", encoder=encoder).perturb(X, Y, 0.2)
    found.inputs[3, 0, 0] = 0.1  # within 0.2, but the entry was 0
    assert not found.holds()
    found = FGSM(head, Dense(nonnegative=True), encoder=encoder).perturb(X.abs(), Y, 0.2)
    assert found.holds()
    found.inputs[3, 0, 0] = -0.1
    assert not found.holds()


def test_losses_of_a_linear_function_rise_with_epsilon():
    head, (encoder, X), Y = head_of(), build("linear"), labels_of()
    for threat in THREATS:
        for kind in (FGSM, PGD):
            found = kind(head, threat, "negative", 3, encoder=encoder).perturb(X, Y, [0.0, 0.1, 0.2, 0.4])
            assert (np.diff([each.loss for each in found], axis=0) > 0).all()


def planted():
    """A head whose label n is the hidden unit n, behind an encoder that reverses and doubles the inputs."""
    table = torch.arange(6).expand(2, 6)
    hash = mach_ext.LabelHash.from_buckets(table, 6)
    head = mach_ext.MACHHead(6, 6, 2, 6, hash=hash)
    with torch.no_grad():
        head.bucket_weight.copy_(5 * torch.eye(6))
        head.bucket_bias.fill_(-2.0)
    X = torch.eye(6).flip(1) + 0.4 * torch.eye(6).roll(1, 1).flip(1)
    return head, lambda x: 2 * x.flip(1), X


def test_targeted_goals_succeed_where_they_can():
    head, encoder, X = planted()
    Y = torch.eye(6)
    assert head.topk(encoder(X), 2)[1].tolist() == [[n, (n + 1) % 6] for n in range(6)]
    for kind in (FGSM, PGD):
        out = kind(head, "dense", "positive", k=1, encoder=encoder).perturb(X, Y, 0.31)
        assert out.targets.tolist() == [0, 1, 2, 3, 4, 5]
        assert (out.predict(1)[1][:, 0] == (np.arange(6) + 1) % 6).all()
        into = kind(head, "l2", "negative", k=1, encoder=encoder).perturb(X, Y, [0.4, 0.45])
        assert into[0].targets.tolist() == [1, 2, 3, 4, 5, 0]
        assert (into[0].predict(1)[1][:, 0] == np.arange(6)).all()  # 0.3 sqrt(2) = 0.424 is needed
        assert (into[1].predict(1)[1][:, 0] == into[1].targets).all()
        chosen = kind(head, "l2", "negative", k=1, encoder=encoder)
        targets = np.array([3, 3, 4, -1, 0, 1])
        found = chosen.perturb(X, Y, 0.8, targets=targets)
        assert (found.targets == targets).all()
        assert (found.predict(1)[1][:, 0] == np.where(targets < 0, 3, targets)).all()
        own = kind(head, "dense", "own", k=1, encoder=encoder).perturb(X, None, 0.6)
        assert (own.predict(1)[1][:, 0] != np.arange(6)).all()


@pytest.mark.parametrize("name", ["mlp", "transformer"])
@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_captum_agrees(name):
    robust = pytest.importorskip("captum.robust", reason="Captum is not installed: nothing to compare with")
    head, (encoder, X), Y = head_of(), build(name), labels_of()
    encoder.eval()

    def loss(hidden, target):
        return losses(head, hidden, Y)

    options = {"encoder": encoder, "keep_best": False}
    ours = FGSM(head, "dense", **options).perturb(X, Y, 0.1).inputs
    theirs = robust.FGSM(encoder, loss).perturb(X.clone(), 0.1, target=0)
    assert ((ours - theirs).abs() < 1e-6).double().mean() > 0.999
    ours = PGD(head, "support", steps=4, step_size=0.3, **options).perturb(X, Y, 0.1).inputs
    theirs = robust.PGD(encoder, loss).perturb(X.clone(), 0.1, 0.03, 4, target=0, norm="Linf")
    assert ((ours - theirs).abs() < 1e-5).double().mean() > 0.98


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("goal", ["untargeted", "negative"])
def test_modes_gradients_and_statistics_are_left_alone(name, goal):
    head, (encoder, X), Y = head_of(), build(name), labels_of()
    encoder.train()
    next(iter(encoder.children()), encoder).eval()  # a module that was not in training mode
    for parameter in list(encoder.parameters())[::2]:
        parameter.requires_grad_(False)
    head.bucket_bias.grad = torch.ones_like(head.bucket_bias)
    before, modes = state_of(encoder, head)
    X.requires_grad_()
    rng = torch.get_rng_state()
    with torch.enable_grad():
        found = PGD(head, "dense", goal, 3, encoder=encoder, steps=2).perturb(X, Y, 0.1)
        attack.evaluate(head, X, Y, encoder=encoder, epsilons=[0.1], resamples=0)
        found.predict(3)
        found.hidden()
    after, modes_after = state_of(encoder, head)
    for (a, b, c), (x, y, z) in zip(before, after, strict=True):
        assert bitwise_equal(a, x)
        assert b == y
        assert c is z
    assert modes == modes_after
    assert any(modes)
    assert torch.equal(rng, torch.get_rng_state())
    assert X.grad is None
    assert not found.inputs.requires_grad
    assert not found.hidden().requires_grad
    again = PGD(head, "dense", goal, 3, encoder=encoder.eval(), steps=2).perturb(X, Y, 0.1)
    assert bitwise_equal(found.inputs, again.inputs)  # without dropout, whatever the mode was


def test_modes_come_back_after_an_error():
    head, (encoder, X), Y = head_of(), build("mlp"), labels_of()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        FGSM(head, encoder=encoder).perturb(X[:, :5], Y, 0.1)
    assert all(module.training for module in encoder.modules())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile looks at it
def test_modules_of_functions_are_in_eval_mode():
    """Compiled, a bound method, a partial function, a lambda, an object: dropout would change the result."""
    head, (body, X), Y = head_of(), build("mlp"), labels_of()

    class Wrapper:
        def __init__(self):
            self.body = body

        def __call__(self, x):
            return self.body(x)

    def apply(module, x):
        return module(x)

    encoders = [
        torch.compile(body, backend="eager"),
        body.forward,
        functools.partial(apply, body),
        lambda x: body(x),
        Wrapper(),
        Wrapper().__call__,
    ]
    expected = FGSM(head, encoder=body).perturb(X, Y, 0.1)
    for encoder in encoders:
        found = FGSM(head, encoder=encoder).perturb(X, Y, 0.1)
        assert bitwise_equal(found.inputs, expected.inputs)
        np.testing.assert_array_equal(found.loss, expected.loss)
        assert body.training
    assert (body[1].running_mean == 0).all()


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_contexts_around_do_not_matter(context):
    head, (encoder, X), Y = head_of(), build("transformer"), labels_of()
    expected = PGD(head, "l2", encoder=encoder, steps=2).perturb(X, Y, 0.1)
    with context(), torch.autocast("cpu", torch.bfloat16):
        inner = X.clone()
        found = PGD(head, "l2", encoder=encoder, steps=2).perturb(inner, Y, 0.1)
        assert torch.is_autocast_enabled("cpu")
        np.testing.assert_array_equal(found.predict(3)[1], expected.predict(3)[1])
    again = PGD(head, "l2", encoder=encoder, steps=2).perturb(inner, Y, 0.1)
    for each in (found, again):
        assert bitwise_equal(each.inputs.clone(), expected.inputs)
        np.testing.assert_array_equal(each.loss, expected.loss)


def test_half_precision_of_an_encoder_is_widened():
    head, (encoder, X), Y = head_of(), build("mlp"), labels_of()

    def half(x):
        with torch.autocast("cpu", torch.bfloat16):
            return encoder(x)

    found = FGSM(head, encoder=half).perturb(X, Y, 0.1)
    expected = FGSM(head, encoder=encoder).perturb(X, Y, 0.1)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=2e-2)
    assert found.hidden().dtype == torch.float32


def test_float64():
    head, (encoder, X), Y = head_of(dtype=torch.float64), build("mlp"), labels_of()
    encoder.double()
    found = FGSM(head, "dense", encoder=encoder).perturb(X.double().numpy(), Y, 1e-9)
    assert found.inputs.dtype == torch.float64
    assert found.holds()
    assert (found.loss > found.clean_loss).all()


@pytest.mark.parametrize("kind", [FGSM, PGD, Random])
def test_numpy_arrays_of_any_layout_are_taken(kind):
    head, (encoder, X), Y = head_of(), build("transformer"), labels_of()
    expected = kind(head, "l1", encoder=encoder).perturb(X, Y, 0.5)
    array = X.numpy()
    frozen = array.copy()
    frozen.flags.writeable = False
    fortran, reversed_ = np.asfortranarray(array), array[::-1].copy()[::-1]
    for given in (array, frozen, fortran, reversed_, array.astype(">f4"), X.mT.contiguous().mT):
        found = kind(head, "l1", encoder=encoder).perturb(given, Y.toarray(), 0.5)
        assert bitwise_equal(found.inputs, expected.inputs)
    assert (array == X.numpy()).all()


def test_an_encoder_may_overwrite_its_argument():
    head, (encoder, X), Y = head_of(), build("linear"), labels_of()
    rude = nn.Sequential(nn.ReLU(inplace=True), encoder)
    polite = nn.Sequential(nn.ReLU(), encoder)
    clean = X.clone()
    found, expected = (PGD(head, "dense", encoder=each).perturb(X, Y, 0.1) for each in (rude, polite))
    assert bitwise_equal(found.inputs, expected.inputs)
    assert bitwise_equal(X, clean)


@pytest.mark.parametrize("merge", ["mean_logit", "median_prob"])
def test_repetitions_with_hidden_units_of_their_own(merge):
    head = head_of(per_repetition=True, merge=merge)
    encoder = nn.Sequential(nn.Linear(12, R * H), nn.Tanh(), nn.Unflatten(1, (R, H)))
    X, Y = torch.randn(N, 12), labels_of()
    for goal in attack.GOALS:
        found = PGD(head, "l2", goal, 3, encoder=encoder, steps=3).perturb(X, Y, 0.5)
        assert found.holds()
        assert (found.loss >= found.clean_loss).all()
    assert found.hidden().shape == (N, R, H)
    np.testing.assert_array_equal(found.predict(3)[1], head.topk(encoder(found.inputs), 3)[1])
    gradient = slope(head, encoder, X, Y)
    found = FGSM(head, "dense", encoder=encoder, keep_best=False).perturb(X, Y, 0.1)
    torch.testing.assert_close(found.inputs, X + 0.1 * gradient.sign())
    result = attack.evaluate(head, X, Y, encoder=encoder, epsilons=[0.1], resamples=0)
    assert result["adversarial"][0]["loss"] > result["adversarial"][0]["clean_loss"]


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("threat", NAMES)
def test_results_are_the_same_in_every_call_and_for_every_batch_size(name, threat):
    head, (encoder, X), Y = head_of(), build(name), labels_of()
    for kind, options in ((FGSM, {}), (PGD, {"steps": 3}), (Random, {})):
        one, two = (kind(head, threat, encoder=encoder, **options).perturb(X, Y, 0.2) for _ in range(2))
        assert bitwise_equal(one.inputs, two.inputs)
        np.testing.assert_array_equal(one.loss, two.loss)
        assert [np.array_equal(a, b) for a, b in zip(one.predict(3), two.predict(3), strict=True)] == [
            True
        ] * 2
        if kind is not Random:  # the noise of a batch depends on where it begins
            small = kind(head, threat, encoder=encoder, batch_size=2, **options).perturb(X, Y, 0.2)
            np.testing.assert_allclose(small.loss, one.loss, rtol=1e-3)
    options = {"encoder": encoder, "keep_best": False, "steps": 1, "restarts": 1}
    restarts = [PGD(head, threat, seed=seed, **options) for seed in (0, 0, 1)]
    first, same, other = (each.perturb(X, Y, 0.2).inputs for each in restarts)
    assert bitwise_equal(first, same)
    assert not torch.equal(first, other) or threat == "l1"  # whose first step goes to a vertex


def test_what_a_perturbation_says_of_itself():
    head, (encoder, X), Y = head_of(), build("transformer"), labels_of()
    X[0, 0, 0] = 0.0
    found = FGSM(head, "l1", encoder=encoder).perturb(X, Y, 0.5)
    assert repr(found) == "InputPerturbation(N=7, l1, epsilon=0.5)"
    change = (found.inputs.double() - X.double()).flatten(1)
    assert list(found.norms) == list(FGSM(head).perturb(torch.ones(1, H), labels_of(1), 0.1).norms)
    np.testing.assert_array_equal(found.norms["linf"], change.abs().amax(1))
    np.testing.assert_allclose(found.norms["l2"], change.norm(dim=1))
    np.testing.assert_allclose(found.norms["l1"], change.abs().sum(1))
    np.testing.assert_array_equal(found.norms["added"], ((found.inputs != 0) & (X == 0)).flatten(1).sum(1))
    for n in range(N):
        moved = found.changes(n)
        assert len(moved) == (change[n] != 0).sum()
        for position, old, new in moved:
            assert (X[n][position].item(), found.inputs[n][position].item()) == (old, new)
    for n in (-1, N):
        with pytest.raises(ValueError, match=rf"changes: n must be in \[0, N=7\), got {n}"):
            found.changes(n)
    with pytest.raises(ValueError, match=r"InputPerturbation.predict: k must be in 1 \.\.\. L=90, got 91"):
        found.predict(91)
    encoder.eval()
    torch.testing.assert_close(found.hidden(), encoder(found.inputs), rtol=1e-4, atol=1e-5)
    scores, labels = head.topk(encoder(found.inputs))
    np.testing.assert_array_equal(found.predict()[1], labels)
    np.testing.assert_allclose(found.predict()[0], scores.detach(), rtol=1e-4, atol=1e-5)


def test_no_inputs():
    head, (encoder, X), Y = head_of(), build("mlp"), labels_of()
    found = FGSM(head, "l2", encoder=encoder).perturb(X[:0], Y[:0], 0.1)
    assert found.inputs.shape == (0, 12)
    assert found.loss.shape == (0,)
    assert found.predict(3)[1].shape == (0, 3)
    assert found.hidden().shape == (0, H)
    assert found.norms["l2"].shape == (0,)
    assert found.holds()


# -------------------------------------------------------------------------------------------------- evaluate


@pytest.mark.parametrize(("method", "threat"), [("fgsm", "dense"), ("pgd", "l2"), ("pgd", "support")])
@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_evaluate(name, method, threat):
    head, (encoder, _), Y = head_of(), build(name), labels_of(40)
    X = torch.randn(40, *((12,) if name == "mlp" else (T, E)))
    options = {
        "method": method, "threat_model": threat, "epsilons": (0.0, 0.05, 0.5), "targeted": True, "steps": 2,
        "inverse_propensity": mach_ext.metrics.inverse_propensity(Y), "resamples": 20,
        "bands": mach_ext.metrics.label_frequency_bands(Y, 1, 3),
    }  # fmt: skip
    result = attack.evaluate(head, X, Y, encoder=encoder, **options)
    hidden = encoder.eval()(X).detach()
    expected = attack.evaluate(mach_ext.nn.linear_model(head), hidden.abs(), Y, **options)

    def keys(entry):
        if isinstance(entry, list):
            return [keys(part) for part in entry]
        return {key: keys(value) for key, value in entry.items()} if isinstance(entry, dict) else type(entry)

    assert keys({**result, "nonnegative": 0}) == keys({**expected, "nonnegative": 0})
    assert result["nonnegative"] is False
    clean = mach_ext.metrics.evaluate(Y, head.topk(hidden, 5)[1].numpy())
    first, *_, last = result["adversarial"]
    for entry in (result["clean"], first["metrics"], first["random"]):
        assert entry["P@5"] == pytest.approx(clean["P@5"])
    assert first["size"]["l2"] == 0
    assert last["loss"] > last["clean_loss"] == pytest.approx(first["loss"])
    if threat == "l2":
        assert last["size"]["random_l2"] == pytest.approx(0.5, rel=1e-5)
    else:
        assert last["size"]["random_l2"] == pytest.approx(0.5 * X[0].numel() ** 0.5, rel=1e-5)
    assert report.plot_attack(result, sizes=[0.5]).axes


# ---------------------------------------------------------------------------------------------- many labels


def test_memory_does_not_grow_with_labels_and_buckets():
    """N R B would be 256 MiB of float32. The attack stays below a quarter of it, with L = 1M."""
    script = """
        import scipy.sparse, torch, numpy as np, mach_ext
        from mach_ext.attack import FGSM
        N, R, B, H, L = 128, 8, 65536, 2, 1_000_000
        head = mach_ext.MACHHead(H, L, R, B)
        encoder = torch.nn.Linear(4, H)
        X = torch.randn(N, 4)
        Y = scipy.sparse.csr_matrix((np.ones(N), np.arange(N), np.arange(N + 1)), (N, L))
        fgsm = FGSM(head, "dense", encoder=encoder, batch_size=N)
        fgsm.perturb(X[:1], Y[:1], 0.1)  # warm up
        def memory(key):  # ru_maxrss would begin at that of the process that started this one
            return 1024 * next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key))
        before = memory("VmRSS")
        open("/proc/self/clear_refs", "w").write("5")  # restart the peak
        found = fgsm.perturb(X, Y, 0.1)
        assert (found.loss > found.clean_loss).all()
        print(memory("VmHWM") - before)
        assert fgsm.perturb(X[:2], Y[:2], 0.1).predict(3)[1].max() < L
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 64 * 2**20
