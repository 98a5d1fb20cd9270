"""Explanations and certificates of a head on its hidden units."""

import json

import numpy as np
import pytest
import scipy.sparse
import torch
from encoder_cases import HIDDEN, LABELS, H, L, X, head_of, tokens_encoder, uniform
from test_nn import MERGES
from torch import nn

import mach_ext
from mach_ext import explain

pytestmark = pytest.mark.usefixtures("one_thread")

NUMBERS = ("attributions", "scores", "baseline_scores", "model_scores", "delta")


@pytest.mark.parametrize("merge", MERGES)
def test_a_head_is_explained_as_linear_mach(merge):
    head = head_of(merge=merge)
    model, hidden = mach_ext.nn.linear_model(head), HIDDEN[:1]
    ours, theirs = (
        explain.integrated_gradients(each, hidden, LABELS, score="model") for each in (head, model)
    )
    assert ours.method == theirs.method == ("exact" if merge == "mean_logit" else "gausslegendre")
    for name in NUMBERS:
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    expected = head.label_scores(hidden, torch.tensor(LABELS), "model").detach()[0]
    np.testing.assert_allclose(ours.scores, expected, rtol=1e-5, atol=1e-6)
    assert ours.features.tolist() == hidden[0].nonzero().flatten().tolist()
    assert ours.shape is None
    assert not ours.is_summed
    assert explain.votes(head, hidden).labels.tolist() == head.topk(hidden)[1][0].tolist()
    check = explain.collisions(head, hidden, int(head.topk(hidden, 1)[1]))
    assert check.verdict in ("signal", "collision", "undecided")
    removed = explain.leave_one_out(head, hidden, 3)
    without = hidden.clone()
    without[0, removed.features[0]] = 0
    scores = head.label_scores(without, torch.from_numpy(removed.labels), "model").detach()[0]
    np.testing.assert_allclose(removed.scores + removed.changes[0], scores, rtol=1e-4, atol=1e-6)
    pair = explain.contrast(head, hidden, 3, 8).attributions[0]
    both = explain.integrated_gradients(head, hidden, [3, 8]).attributions
    np.testing.assert_allclose(pair, both[0] - both[1], atol=1e-12)


@pytest.mark.parametrize(
    "form",
    [
        scipy.sparse.csr_matrix,
        np.asarray,
        torch.as_tensor,
        lambda h: h[0],
        lambda h: torch.as_tensor(h).requires_grad_(),
        lambda h: torch.as_tensor(h).double(),
    ],
    ids=["scipy", "numpy", "torch", "one row", "grad", "float64"],
)
def test_hidden_units_in_any_form(form):
    head, hidden = head_of(), HIDDEN[:1].numpy()
    expected = explain.integrated_gradients(head, HIDDEN[:1], LABELS)
    given = form(hidden)
    np.testing.assert_array_equal(
        explain.integrated_gradients(head, given, LABELS).attributions, expected.attributions
    )
    assert explain.votes(head, given).labels.tolist() == explain.votes(head, hidden).labels.tolist()
    assert len(next(explain.explain_topk(head, given, 2)).labels) == 2
    _, inputs, _ = explain.captum_inputs(head, given, LABELS)
    torch.testing.assert_close(inputs, HIDDEN[:1])


def test_half_precision_hidden_units():
    head, hidden = head_of(), HIDDEN[:1].bfloat16()
    wide = explain.integrated_gradients(head, hidden.float(), LABELS).attributions
    np.testing.assert_array_equal(explain.integrated_gradients(head, hidden, LABELS).attributions, wide)
    assert explain.captum_inputs(head, hidden, LABELS)[1].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_is_gausslegendre_is_an_identity_encoder(dtype):
    head = head_of().to(dtype)
    x, baseline = HIDDEN[:1].to(dtype), HIDDEN[1:2].to(dtype)
    exact = explain.integrated_gradients(head, x, LABELS, baseline=baseline)
    assert exact.method == "exact"
    steps = explain.integrated_gradients(head, x, LABELS, baseline=baseline, n_steps=3)
    same = explain.integrated_gradients(head, x, LABELS, baseline=baseline, encoder=nn.Identity())
    assert steps.method == same.method == "gausslegendre"
    bound = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    np.testing.assert_allclose(steps.attributions, exact.attributions, atol=bound)
    np.testing.assert_allclose(same.attributions[:, exact.features], exact.attributions, atol=bound)
    for result in (exact, steps, same):
        assert np.abs(result.delta).max() < bound


def test_names_kept_with_a_head():
    head = head_of()
    head.attachments["labels.json"] = json.dumps([f"label {i}" for i in range(L)]).encode()
    by_name = explain.integrated_gradients(head, HIDDEN[:1], ["label 3"])
    assert by_name.labels.tolist() == [3]
    through = explain.integrated_gradients(head, X, "label 3", encoder=tokens_encoder())
    assert through.label_names == by_name.label_names == ["label 3"]
    assert explain.votes(head, X, "label 3", encoder=tokens_encoder()).label_names == ["label 3"]


def test_a_head_is_certified_as_linear_mach():
    head = head_of()
    hidden = uniform(6, H)
    best = head.topk(hidden, 2)[1]
    Y = torch.zeros(6, L)
    Y[torch.arange(6), best[:, 0]] = 1
    threat = mach_ext.attack.Support(nonnegative=False)
    options = {"threat_model": threat, "k": 2}
    ours, theirs = (
        mach_ext.certify.certify(each, hidden, Y, [0, 0.01, 1.0], zero=False, **options)
        for each in (head, mach_ext.nn.linear_model(head))
    )
    assert ours.precision(1).tolist() == theirs.precision(1).tolist()
    assert ours.precision(1)[0] == 1
    leads = head.topk(hidden, 2)[0].diff().neg().flatten().detach().numpy()
    lower = mach_ext.certify.margin_bounds(head, hidden, best.numpy(), 0.01, threat_model=threat)
    assert (lower < leads).all()
    with pytest.raises(ValueError, match=r"keeps values >= 0, but X has .* use Support\(nonnegative=False\)"):
        mach_ext.certify.certify(head, hidden, Y, [0.1])
    with pytest.raises(ValueError, match="certify: model must be a head whose repetitions share"):
        mach_ext.certify.certify(head_of(per_repetition=True), hidden, Y, [0.1])
