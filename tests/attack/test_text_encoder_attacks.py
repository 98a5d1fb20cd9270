"""Attacks on the vectors of tokens, through a text encoder into a model with words beside."""

import numpy as np
import pytest
import scipy.sparse
import tiny_bert
import torch
from attack_cases import labels_of, true_losses
from test_nn import D, L, draw, model_of

import mach_ext
from mach_ext import attack
from mach_ext.attack import FGSM, PGD, HybridInputs, Random, TokenEncoder
from mach_ext.data import HybridMatrix

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = [
    "a big cat",
    "the dog and the bird sing",
    "fish",
    "a small red house",
    "",
    "birds swim",
    "old dogs bark",
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    tiny_bert.need_transformers()
    from mach_ext.text_encoder import TextEncoder

    return TextEncoder.load(tiny_bert.write(tmp_path_factory.mktemp("tiny")))


def case(name, encoder, **changes):
    model = model_of(name, num_dense=encoder.num_dense, **changes)
    dense = encoder.encode(TEXTS, progress=False)
    model.scale_dense(dense)
    tokens = TokenEncoder(encoder)
    return model, tokens, HybridInputs(tokens.vectors(TEXTS), draw()), HybridMatrix(draw(), dense)


@pytest.mark.parametrize("name", ["linear", "shared", "independent two layers"])
def test_fgsm_takes_the_gradient_through_encoder_and_model(name, encoder):
    model, tokens, X, clean = case(name, encoder)
    Y, epsilon = labels_of(), 0.01
    found = FGSM(model, "support", encoder=tokens, keep_best=False, batch_size=4).perturb(X, Y, epsilon)
    np.testing.assert_allclose(found.clean_loss, true_losses(model, model.join(clean), Y), rtol=1e-3)
    vectors = X.inputs.clone().requires_grad_()
    scaled = (tokens(vectors) - model.dense_center) * model.dense_scale
    joined = torch.cat((torch.from_numpy(X.sparse.toarray()), scaled), 1)
    (gradient,) = torch.autograd.grad(true_losses(model, joined, Y).sum(), vectors)
    step = epsilon * gradient.sign()
    sure = gradient.abs() > 1e-3 * gradient.abs().max()
    torch.testing.assert_close((found.inputs - X.inputs)[sure], step[sure], rtol=0, atol=1e-6)
    assert not found.inputs[X.inputs == 0].any()  # padding stays
    assert found.holds()
    written = HybridMatrix(X.sparse, tokens(found.inputs).detach())
    np.testing.assert_allclose(found.loss, true_losses(model, model.join(written), Y), rtol=1e-3)
    np.testing.assert_allclose(found.predict(5)[0], model.predict(written, 5)[0], rtol=1e-3, atol=1e-3)
    if name == "linear":
        with pytest.raises(ValueError, match=r"linear MACH .* has no hidden layer"):
            found.hidden()
    else:
        values, indices, indptr = (torch.from_numpy(a) for a in _arrays(X.sparse))
        hidden = model.encode(values, indices, indptr, dense=torch.from_numpy(written.dense))
        torch.testing.assert_close(found.hidden(), hidden.detach(), rtol=1e-4, atol=1e-4)
    assert all(p.grad is None for module in (model, encoder) for p in module.parameters())


def _arrays(X):
    return X.data, X.indices, X.indptr


@pytest.mark.parametrize("goal", attack.GOALS)
def test_pgd_is_at_least_fgsm_and_size_0_is_the_input(goal, encoder):
    model, tokens, X, clean = case("shared", encoder)
    Y = labels_of()
    options = {"encoder": tokens, "k": 3}
    none, one = FGSM(model, "support", goal, **options).perturb(X, Y, [0.0, 0.05])
    many = PGD(model, "support", goal, steps=4, **options).perturb(X, Y, 0.05)
    noise = Random(model, "l2", goal, **options).perturb(X, Y, 0.5)
    assert torch.equal(none.inputs, X.inputs)
    np.testing.assert_array_equal(none.predict(3)[1], model.predict(clean, 3)[1])
    assert (one.loss >= one.clean_loss).all()
    assert (many.loss >= one.loss).all()
    assert (many.loss > many.clean_loss).any()
    assert many.holds()
    assert noise.holds()


def test_evaluate_and_heads(encoder):
    model, tokens, X, clean = case("independent", encoder)
    Y = labels_of()
    options = {"encoder": tokens, "epsilons": [0, 0.1], "resamples": 0, "ks": [5], "targeted": True}
    result = attack.evaluate(model, X, Y, **options)
    expected = mach_ext.metrics.evaluate(Y, model.predict(clean, 5)[1])
    assert result["clean"]["P@5"] == pytest.approx(expected["P@5"])
    assert result["adversarial"][1]["loss"] > result["adversarial"][0]["loss"]
    assert result["unchanged"] == "sparse features"
    head = mach_ext.MACHHead(encoder.num_dense, L, 4, 16)
    found = FGSM(head, "support", encoder=tokens).perturb(X.inputs, Y, 0.05)
    assert (found.loss > found.clean_loss).any()


def test_refusals(encoder):
    model, tokens, X, _ = case("shared", encoder)
    Y = labels_of()
    with pytest.raises(TypeError, match=r"X must be a mach_ext\.attack\.HybridInputs with encoder="):
        FGSM(model, encoder=tokens).perturb(X.inputs, Y, 0.1)
    with pytest.raises(TypeError, match=r"model must be a mach_ext\.MACHHead if encoder is given"):
        FGSM(model_of(), encoder=tokens)
    with pytest.raises(ValueError, match="must have as many rows, got 7 and 2"):
        HybridInputs(X.inputs, X.sparse[:2])
    with pytest.raises(ValueError, match=f"X.sparse must have D={D} columns"):
        FGSM(model, encoder=tokens).perturb(HybridInputs(X.inputs, scipy.sparse.eye(7, 3)), Y, 0.1)
    with pytest.raises(ValueError, match=r"encoder must return dense features \[N=2, E=32\]"):
        FGSM(model, encoder=lambda x: x.mean(2)).perturb(X[:2], Y[:2], 0.1)
    with pytest.raises(ValueError, match="encoder must be differentiable"):
        FGSM(model, encoder=lambda x: tokens(x).detach()).perturb(X, Y, 0.1)
    with pytest.raises(ValueError, match="no words to delete or insert"):
        FGSM(model, "insert(2)", encoder=tokens)
